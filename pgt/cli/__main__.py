"""`python -m pgt.cli`: the `pgt` command."""

from pgt.cli.main import entry

entry()
