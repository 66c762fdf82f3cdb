"""`python -m pgt`, and so `torchrun -m pgt train ...`: the `pgt` command."""

from pgt.cli.main import entry

entry()
