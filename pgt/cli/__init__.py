"""The `pgt` command."""
