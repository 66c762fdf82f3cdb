"""How a network is trained and evaluated; knows no config and no run folder."""
