"""Run folders, written and read. No torch.

`frame` reads many runs at once:

    from pgt import runs

    runs.frame("runs", "demo")  # a pandas frame: a row a run, a column a value
"""

from pgt.runs.frame import frame

__all__ = ["frame"]
