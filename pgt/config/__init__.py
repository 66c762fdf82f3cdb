"""The schema of a config, and the way from a command line to checked configs."""
