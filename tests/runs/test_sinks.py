import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console as Terminal

from pgt.core.errors import InputError
from pgt.runs import console, trackers
from pgt.runs.console import Console
from pgt.runs.folder import last_record
from pgt.runs.sinks import JsonLines, Sinks

RECORD = {"event": "epoch", "epoch": 1, "train_loss": 0.5, "train_top1": 80.0, "test_top1": 70.0, "lr": 0.1,
          "loss_scale": 1.0, "images_per_second": 1234.5}  # fmt: skip


def test_jsonl_keeps_what_a_checkpoint_vouches_for():
    path = Path("metrics.jsonl")
    sink = JsonLines(path)
    sink.write(0, {"loss": 1.0})
    size = sink.sync()
    sink.write(1, {"loss": math.nan, "bad": math.inf})
    sink.close()
    assert [json.loads(line) for line in path.read_text().splitlines()][1] == {"step": 1, "loss": None, "bad": None}
    again = JsonLines(path, size)
    assert again.sync() == size  # a checkpoint before the first new record
    again.write(1, {"loss": 2.0})
    again.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0]
    with pytest.raises(InputError, match="has lost records"):
        JsonLines(path, 10_000)


@pytest.mark.parametrize("terminal", [True, False])
def test_console_shows_progress_and_logs_epochs(terminal, monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0)
    out = io.StringIO()
    sink = Console("a run", 10, Path("log.txt"), Terminal(file=out, force_terminal=terminal, width=200))
    sink.write(4, {**RECORD, "warning": "after step 0: careful"})
    sink.write(5, {**RECORD, "warning": "after step 1: careful; after step 1: slow"})
    sink.say("done")
    sink.close()
    state = "epoch 2  loss 0.500  train 80.00%  test 70.00%  lr 0.1  1,234 images/s"
    assert state in out.getvalue()
    assert ("step 5/10" in out.getvalue()) == (not terminal)
    log = Path("log.txt").read_text().splitlines()
    assert log == [
        "a run: warning: after step 0: careful",
        state,
        "a run: warning: after step 1: slow",
        state,
        "done",
    ]


def test_a_record_without_a_finite_loss_is_read_back_and_shown():
    """As of an fp16 run whose first steps are all skipped: JSON has null for NaN."""
    sink = JsonLines(Path("metrics.jsonl"))
    sink.write(0, {**RECORD, "train_loss": math.nan, "train_top1": math.nan})
    sink.close()
    record = last_record(Path())
    assert console.line(record).startswith("epoch 2  loss nan  train nan%  test 70.00%")
    assert {"epoch/train_loss", "epoch/train_top1"}.isdisjoint(trackers.named(record))


def test_the_progress_line_fits_80_columns_and_says_how_long_it_takes():
    """Even if records are minutes apart."""
    clock = [0.0]
    out = io.StringIO()
    terminal = Terminal(file=out, force_terminal=True, width=80, get_time=lambda: clock[0])
    sink = Console("table1/resnet50_cosine_pgt pgt α=0.05 seed 0", 100, Path("log.txt"), terminal)
    record = {**RECORD, "event": "step", "epoch": 99, "lr": 0.0993, "loss_scale": 65536.0}
    del record["test_top1"]
    for step in range(4):
        clock[0] += 100
        sink.write(step, record)
    sink.close()
    last = out.getvalue().split("epoch 100")[-1]
    assert last.startswith(" loss 0.500 train 80.00% lr 0.0993 scale 65536 1,234 images/s\n")
    assert "2:40:00" in out.getvalue()  # 96 steps of 100 seconds


class Closing:
    def __init__(self, name, closed, error=None):
        self.name, self.closed, self.error = name, closed, error

    def close(self):
        self.closed.append(self.name)
        if self.error:
            raise self.error


def test_all_sinks_are_closed_in_order_if_one_fails():
    closed = []
    sinks = Sinks([Closing("a", closed), Closing("b", closed, OSError("disk full")), Closing("c", closed)])
    with pytest.raises(OSError, match="disk full"):
        sinks.close()
    assert closed == ["a", "b", "c"]
