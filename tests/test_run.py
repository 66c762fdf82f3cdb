import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pgt.compose import conf_dir
from pgt.errors import InputError, TrainingError
from pgt.run import run
from pgt.runs import Summary, find, lock, read_metrics, read_summary
from tests.conftest import ROOT, TINY, compose, train

DIGITS = ("experiment=demo/bn", "recipe.epochs=3", "recipe.warmup_epochs=1")


def folder():
    [found] = find(Path("runs"))
    return found[0]


def curve(path):
    """Records without what the clock decides."""
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in read_metrics(path)]


@pytest.mark.parametrize("method", sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml")))
def test_every_method_trains_two_steps(method):
    summary = train(*TINY, "model=resnet20", f"method={method}")
    assert (summary.status, summary.epochs) == ("finished", 1)


def test_a_run_is_a_folder_that_proves_itself():
    summary = train(*DIGITS, "method=pgt")
    path = folder()
    assert path == Path("runs/demo/bn") / summary.run_id
    assert {p.name for p in path.iterdir()} == {
        "config.yaml", "environment.json", "metrics.jsonl", "summary.json", "checkpoints", "log.txt", "lock",
    }  # fmt: skip
    assert read_summary(path) == summary
    assert OmegaConf.load(path / "config.yaml").method.alpha == 0.25
    environment = json.loads((path / "environment.json").read_text())
    assert environment["starts"][0]["packages"]["torch"] == torch.__version__.split("+")[0]
    epochs = [record for record in read_metrics(path) if record["event"] == "epoch"]
    assert [record["epoch"] for record in epochs] == [0, 1, 2]
    assert summary.test_top1_final == epochs[-1]["test_top1"]
    assert summary.test_top1_best == max(record["test_top1"] for record in epochs)
    assert summary.test_top1_best > 50
    assert summary.test_loss_alpha > 0
    log = (path / "log.txt").read_text()
    assert "epoch 3  loss" in log
    best = torch.load(path / "checkpoints" / "best.pt", weights_only=True)
    assert set(best) == {"model"}


def test_same_seed_same_curve_bit_for_bit():
    train(*DIGITS, "paths.runs=a")
    train(*DIGITS, "paths.runs=b")
    train(*DIGITS, "paths.runs=c", "seed=1")
    first, second, other = (curve(find(Path(root))[0][0]) for root in "abc")
    assert first == second
    assert first != other


def test_a_finished_run_is_returned_at_once(capsys):
    summary = train(*DIGITS)
    before = (folder() / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert train(*DIGITS) == summary
    assert "finished earlier" in capsys.readouterr().out
    assert (folder() / "metrics.jsonl").stat().st_mtime_ns == before
    assert train(*DIGITS, "trainer.force=true").started >= summary.started
    assert (folder() / "metrics.jsonl").stat().st_mtime_ns > before


def test_another_commit_is_reported_and_other_data_refused(capsys):
    train(*DIGITS)
    path = folder() / "summary.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "commit": "0123456789ab"}))
    train(*DIGITS)
    assert "by commit 0123456789ab; this is" in capsys.readouterr().out
    path.write_text(json.dumps({**values, "manifest": "other data"}))
    with pytest.raises(InputError, match=r"was made from other data \(other data, now .*trainer.force=true"):
        train(*DIGITS)


def killed_after(epochs, *overrides):
    """`pgt train` in a process of its own, killed once that many epochs are in its summary."""
    command = [sys.executable, "-m", "pgt.cli", "train", *overrides]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.02)
        found = find(Path("runs"))
        if found and found[0][1].epochs >= epochs:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_from_its_last_whole_epoch_to_the_same_curve(capsys):
    overrides = ("experiment=demo/bn", "recipe.epochs=12")
    killed_after(2, *overrides)
    before = read_summary(folder())
    assert before.status == "unfinished"
    assert 2 <= before.epochs < 12
    summary = train(*overrides)
    assert f"from epoch {before.epochs + 1}" in capsys.readouterr().out
    assert summary.status == "finished"
    assert summary.started == before.started
    resumed, starts = curve(folder()), json.loads((folder() / "environment.json").read_text())["starts"]
    assert len(starts) == 2
    train(*overrides, "paths.runs=whole")
    assert resumed == curve(find(Path("whole"))[0][0])


def test_a_diverged_run_says_so_and_is_not_repeated(capsys):
    overrides = (*TINY, "model=resnet20_nobn", "recipe.lr_peak=1e30", "recipe.epochs=2")
    with pytest.raises(TrainingError, match="the loss is not finite since step"):
        train(*overrides)
    summary = read_summary(folder())
    assert (summary.status, summary.epochs) == ("diverged", 0)
    assert "the loss is not finite since step" in summary.reason
    assert train(*overrides) == summary
    assert "diverged earlier" in capsys.readouterr().out


def test_the_authors_hook_measures_itself_and_warns(caplog):
    """In float32 the loss scale is 1: the hook's gradient is wrong by the squared batch, and here diverges."""
    with pytest.raises(TrainingError, match="not finite"):
        train(*DIGITS, "method=authors_hook")
    first = read_metrics(folder())[0]
    assert first["hook_scale_ratio"] == pytest.approx(1 / 64**2, rel=1e-3)
    assert 0 <= first["hook_flushed"] <= 1
    assert "the authors' hook computes Eq. 9 only where it is 1" in caplog.text
    assert read_summary(folder()).status == "diverged"


def test_a_run_in_progress_is_not_joined():
    train(*DIGITS)
    config = compose(*DIGITS, "trainer.force=true")
    before = read_summary(folder())
    with lock(folder()), pytest.raises(InputError, match="is being trained by another process"):
        run(config)
    assert read_summary(folder()) == before


def test_a_summary_of_another_schema_is_refused():
    train(*DIGITS)
    path = folder() / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        find(Path("runs"))
    path.write_text("{torn")
    with pytest.raises(InputError, match="delete its folder to run it again"):
        find(Path("runs"))


def test_it_learns_from_image_folders(tmp_path):
    """Real files, real worker processes: two colours are told apart."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, name in [(s, n) for s in ("train", "val") for n in ("dark", "light")]:
        (tmp_path / "images" / split / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 100, (36, 40, 3), dtype=np.uint8) + (120 if name == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / split / name / f"{i}.jpg")
    summary = train("experiment=demo/bn", "data=imagefolder", "data.root=images", "data.image_size=32",
                    "data.workers=2", "recipe.epochs=3", "recipe.global_batch=16", "recipe.local_batch=16")  # fmt: skip
    assert isinstance(summary, Summary)
    assert summary.test_top1_best == 100
