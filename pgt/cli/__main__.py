"""`python -m pgt.cli`: another name of `python -m pgt`, which older scripts use."""

from pgt.cli.main import entry

entry()
