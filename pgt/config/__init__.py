"""From a command line to checked configs. No torch."""
