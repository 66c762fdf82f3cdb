"""`python -m pgt.cli`: the same as `python -m pgt`."""

from pgt.cli.main import entry

entry()
