"""The frame of runs, and what else is read from their folders."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pgt import runs
from pgt.config.identity import identity
from pgt.runs import folder
from pgt.runs.frame import dotted
from pgt.runs.labels import as_pgt
from tests.conftest import ROOT, compose
from tests.reproduction.helpers import plant, plant_summary


def test_a_row_a_run_and_a_column_a_value():
    plant("demo/nobn", "gc_pgt", 1, 91.0, 90.0, curve=(1, 2))
    plant("demo/bn", "baseline", 0, None, None, status="diverged", overrides=["recipe.epochs=3"])
    found = runs.frame("runs")
    assert list(found.columns[:9]) == [
        "run", "experiment", "run_id", "group_id", "seed", "status", "reason", "method", "alpha",
    ]  # fmt: skip
    baseline, pgt = found.to_dict("records")
    assert (baseline["method"], baseline["alpha"], baseline["status"]) == ("baseline", 1.0, "diverged")
    assert (pgt["experiment"], pgt["method"], pgt["alpha"], pgt["seed"]) == ("demo/nobn", "gc+pgt", 0.25, 1)
    assert pgt["run"] == Path("runs/demo/nobn") / pgt["run_id"]
    assert (pgt["epochs"], pgt["train_top1"], pgt["test_top1_best"]) == (2, 91.0, 90.0)
    assert math.isnan(baseline["test_top1_best"])
    assert (baseline["recipe.epochs"], pgt["recipe.epochs"]) == (3, 30)
    assert (baseline["method.transforms.0.max_norm"], pgt["method.transforms.0.max_norm"]) == (None, 1.0)


def test_the_columns_with_a_dot_are_the_identity():
    config = compose("experiment=demo/nobn", "method=agc")
    folder, _ = plant_summary(config)
    [row] = runs.frame("runs", "demo/nobn").to_dict("records")
    assert {name: value for name, value in row.items() if "." in name} == dotted(identity(config))
    assert row["run"] == folder


def test_pgt_by_any_implementation_is_called_pgt_and_nothing_else_is():
    assert as_pgt("gc+authors_hook", "authors_hook") == "gc+pgt"
    assert as_pgt("mine.exact_clip+exact", "exact") == "mine.exact_clip+pgt"


def test_whole_numbers_stay_whole_beside_a_missing_one():
    plant("demo/nobn", "pgt", 0, 1.0, 1.0, overrides=["recipe.local_batch=32"])
    plant("demo/nobn", "pgt", 0, 1.0, 1.0, overrides=["recipe.local_batch=null"])
    assert {str(value) for value in runs.frame("runs")["recipe.local_batch"]} == {"32", "None"}


def test_runs_of_an_experiment_or_of_a_folder_of_them():
    plant("demo/bn", "pgt", 0, 1.0, 1.0)
    one = plant("demo/nobn", "pgt", 0, 1.0, 1.0)
    assert [len(runs.frame("runs", name)) for name in (None, "demo", "demo/bn", "table1")] == [2, 2, 1, 0]
    assert list(runs.frame("runs", f"demo/nobn/{one.run_id}").run_id) == [one.run_id]
    assert runs.frame("nowhere").empty
    assert "status" in runs.frame("nowhere").columns


def test_a_damaged_summary_is_left_out(capsys):
    for seed in range(2):
        plant("demo/bn", "pgt", seed, 1.0, 1.0)
    root = Path("runs").resolve()
    path = next(root.rglob("summary.json"))
    path.write_text("{")
    assert len(runs.frame(root)) == len(runs.frame(root)) == 1
    assert capsys.readouterr().err.count(str(path)) == 1


def test_the_package_imports_pandas_only_when_a_frame_is_asked_for():
    code = "import sys, pgt.runs, pgt.runs.folder; sys.exit('pandas' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("text", "step"),
    [('{"step": 1}\n{"step": 2}\n', 2), ('{"step": 1}\n{"st', 1), ('{"step": 1}\nnull\n{\n', 1), ("", None)],
)
def test_the_last_whole_record(tmp_path, text, step):
    assert folder.last_record(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text(text)
    assert folder.last_record(tmp_path).get("step") == step


def test_the_last_record_of_a_long_file(tmp_path):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step}) + "\n")
    assert folder.last_record(tmp_path) == {"step": 19_999}
