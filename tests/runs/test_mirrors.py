"""Mirrors fail without harm to the run and are sent what they have missed; TensorBoard's files are read back."""

import itertools
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pgt.cli.main import main
from pgt.core.errors import InputError
from pgt.runs import mirrors
from pgt.runs.folder import read_metrics
from pgt.runs.mirrors import Mirror, start_mirrors
from pgt.runs.norms import FOLDER, RECORDS, read_format, read_norms
from pgt.runs.trackers import norms_by_layer
from pgt.training import folder as run_folder
from tests.conftest import SECONDS, TINY, compose, last_wins, train
from tests.training.test_stopping import STEPS, begun

RUN = last_wins(*TINY, "model=resnet20", "recipe.epochs=2")


def expected(folder):
    """Return (step, name) -> value for everything in metrics.jsonl."""
    return {
        (record["step"], f"{record['event']}/{key}"): value
        for record in read_metrics(folder)
        for key, value in record.items()
        if key not in ("step", "event")
    }


def numbers(folder):
    """Return (step, name) -> value for what TensorBoard takes: no lists and no warnings."""
    return {key: value for key, value in expected(folder).items() if isinstance(value, (int, float))}


def test_tensorboard_holds_every_metric_the_config_and_the_environment():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(*RUN, "record.norms_every=1", "logger=tensorboard")
    [folder] = Path("runs").glob("custom/*")
    events = EventAccumulator(str(folder / "tensorboard"), {"histograms": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("end/")]
    found = {(e.step, tag): e.value for tag in tags for e in events.Scalars(tag)}
    kept = numbers(folder)
    assert found.keys() == kept.keys()
    assert (3, "epoch/zeroed_filters") in found
    histograms = {tag: events.Histograms(tag) for tag in events.Tags()["histograms"]}
    assert [len(series) for series in histograms.values()] == [2] * 19  # an epoch each
    last = read_norms(folder).filters(1)[-1]
    [first] = [series[-1].histogram_value for tag, series in histograms.items() if tag.startswith("norms/01 ")]
    assert (first.num, first.min, first.max) == (16, pytest.approx(last.min()), pytest.approx(last.max()))
    for key, value in kept.items():
        assert found[key] == pytest.approx(value, rel=1e-6)
    [config] = events.Tensors("config/text_summary")
    assert b"alpha: 0.25" in config.tensor_proto.string_val[0]
    assert "environment/text_summary" in events.Tags()["tensors"]


def hyperparameters(folder):
    """Return what the tab HPARAMS of TensorBoard shows of a run: hyperparameters, metrics and status."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    parts = [HParamsPluginData.FromString(content) for content in events.PluginTagToContent("hparams").values()]
    data = {part.WhichOneof("data"): part for part in parts}
    start = data["session_start_info"].session_start_info.hparams
    metrics = [info.name.tag for info in data["experiment"].experiment.metric_infos]
    return (
        {name: value.string_value or value.number_value for name, value in start.items()},
        {tag: [event.value for event in events.Scalars(tag)] for tag in metrics},
        Status.Name(data["session_end_info"].session_end_info.status),
    )


@pytest.mark.filterwarnings("ignore:overflow")
def test_tensorboard_compares_runs_by_hyperparameters_and_final_metrics(monkeypatch):
    run = (*RUN, "logger=tensorboard")
    killed_before_checkpoint(monkeypatch, 5, *run)
    summary = train(*run)
    [folder] = Path("runs").glob("custom/*")
    chosen, metrics, status = hyperparameters(folder)
    assert (chosen["method"], chosen["method.alpha"], chosen["recipe.epochs"]) == ("pgt", 0.25, 2)
    assert metrics["end/test_top1_best"] == [pytest.approx(summary.test_top1_best)]
    assert metrics["end/test_loss"] == [pytest.approx(summary.test_loss)]
    assert status == "STATUS_SUCCESS"
    assert main(["train", *last_wins(*run, "recipe.lr_peak=1e30", "paths.runs=other")]) == 1
    [diverged] = Path("other").glob("custom/*")
    assert hyperparameters(diverged)[2] == "STATUS_FAILURE"


def test_a_run_of_one_step_is_sent_once(capsys):
    train(*last_wins(*RUN, "recipe.epochs=1", "recipe.global_batch=16", "recipe.local_batch=16"))
    assert main(["mirror", "tensorboard"]) == 0
    [folder] = Path("runs").glob("custom/*")
    assert {step for step, _ in expected(folder)} == {0}
    assert_holds_once(folder)
    assert hyperparameters(folder)[0]["seed"] == 0


def test_runs_that_have_ended_are_sent_as_if_the_mirror_had_been_there(capsys):
    train(*RUN, "record.norms_every=1")
    [folder] = Path("runs").glob("custom/*")
    capsys.readouterr()
    assert main(["train", *RUN, "record.norms_every=1", "logger=tensorboard"]) == 0
    said = capsys.readouterr().out
    command = re.search("`pgt (mirror tensorboard .*)`", said)[1].split()
    assert "recorded no norms" not in said
    assert main(command) == 0
    assert f"{folder}: sent to tensorboard" in capsys.readouterr().out
    events, norms = assert_holds_once(folder), read_norms(folder)
    series = [events.Histograms(tag) for tag in sorted(events.Tags()["histograms"])]
    assert [[event.step for event in one] for one in series] == [[1, 3]] * 19
    for event in series[0]:
        assert event.histogram_value.max == pytest.approx(norms.filters(1)[event.step].max())
    assert main(command) == 0
    assert "left alone" in capsys.readouterr().out


def test_a_run_says_which_records_it_has_not_and_a_failed_mirror_leaves_nothing(capsys, monkeypatch):
    train(*RUN, "paths.runs=other")
    [folder] = Path("other").glob("custom/*")
    capsys.readouterr()
    train(*RUN, "paths.runs=other", "record.norms_every=1", "logger=tensorboard")
    said = capsys.readouterr().out
    assert "without a record of norms: trainer.force=true" in said
    assert f"`pgt mirror tensorboard custom/{folder.name} --runs other`" in said
    assert main(["mirror", "tensorboard", "nothing", "--runs", "other"]) == 2

    def fails(about):
        (about.folder / "tensorboard").mkdir()
        raise RuntimeError("no such service")

    monkeypatch.setitem(mirrors.KINDS, "tensorboard", fails)
    capsys.readouterr()
    assert main(["mirror", "tensorboard", "--runs", "other"]) == 2
    assert capsys.readouterr().err == f"pgt: {folder}: tensorboard has failed (no such service)\n"
    assert not (folder / "tensorboard").exists()


def killed_before_checkpoint(monkeypatch, number, *overrides):
    """Train with a checkpoint after each step, evaluation and epoch, and die before checkpoint `number` is written."""
    save, saves = run_folder.save, itertools.count(1)

    def dies(*arguments):
        if next(saves) == number:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("pgt.training.folder.save", dies)
        with pytest.raises(KeyboardInterrupt):
            train(*overrides, "trainer.checkpoint_minutes=1e-9")
    next_second()


def next_second():
    """Wait for the next second: TensorBoard's files are named, and so ordered, by the second."""
    time.sleep(1.1 - time.time() % 1)


def assert_holds_once(folder):
    """Check that the event files hold each number of metrics.jsonl once and no other; return the accumulator."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("end/")]
    found = [((e.step, tag), e.value) for tag in tags for e in events.Scalars(tag)]
    kept = numbers(folder)
    assert sorted(key for key, _ in found) == sorted(kept)
    assert dict(found) == pytest.approx(kept, rel=1e-6)
    return events


@pytest.mark.parametrize(
    ("number", "starts"),
    [
        pytest.param(1, [0], marks=pytest.mark.slow),  # no checkpoint yet
        pytest.param(2, [0, 1], marks=pytest.mark.slow),
        pytest.param(3, [0, 1], marks=pytest.mark.slow),  # the next checkpoint, of the evaluation, is of this step, too
        pytest.param(4, [0, 1], marks=pytest.mark.slow),  # the epoch's record was written
        (5, [0, 2]),
    ],
)
def test_tensorboard_forgets_what_a_killed_run_writes_again(monkeypatch, number, starts):
    run = (*RUN, "record.norms_every=1", "logger=tensorboard")
    killed_before_checkpoint(monkeypatch, number, *run)
    train(*run)
    [folder] = Path("runs").glob("custom/*")
    events = assert_holds_once(folder)
    for tag in events.Tags()["histograms"]:
        assert [event.step for event in events.Histograms(tag)] == [1, 3]
    for name in ("config", "environment"):
        assert sorted({event.step for event in events.Tensors(f"{name}/text_summary")}) == starts


@pytest.mark.slow
def test_tensorboard_misses_nothing_of_a_run_that_was_killed_by_force():
    run = (*TINY, "model=resnet20", "recipe.epochs=20", f"data.num_samples={STEPS * 8}", "logger=tensorboard")
    process = begun(sys.executable, "-m", "pgt", "train", *run, steps=12)  # an epoch's nine records, and three
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    next_second()
    train(*run)
    [folder] = Path("runs").glob("custom/*")
    assert len(list(folder.glob("tensorboard/*"))) == 2
    assert_holds_once(folder)


def test_both_at_once_and_the_same_numbers_as_without():
    config = compose(*RUN, "logger=[wandb,tensorboard]", "logger.wandb.mode=offline")
    chosen = config.logger.chosen()
    assert set(chosen) == {"wandb", "tensorboard"}
    assert chosen["wandb"]["mode"] == "offline"
    assert compose(*RUN).logger.chosen() == {}
    assert train(*RUN, "logger=tensorboard").run_id == train(*RUN).run_id


class Failing:
    """A service that fails after some records."""

    def __init__(self, good):
        self.good, self.closed = good, False

    def write(self, step, record):
        self.good -= 1
        if self.good < 0:
            raise OSError(28, "No space left on device\nand more of it")

    def close(self):
        raise ConnectionError


@pytest.mark.parametrize("good", [0, 2, 9])
def test_a_failing_mirror_is_left_alone_and_said_once(good):
    said = []
    mirror = Mirror("wandb", lambda: Failing(good), said.append)
    for step in range(5):
        mirror.write(step, {})
    mirror.close()
    [line] = said
    reason = "No space left on device" if good < 5 else "ConnectionError"
    assert line.startswith("warning: wandb has failed and is left alone (")
    assert reason in line
    assert "\n" not in line


def test_a_mirror_that_fails_at_its_end_fails_no_run(monkeypatch, capsys):
    def close(self):
        raise TimeoutError("no network")

    monkeypatch.setattr("pgt.runs.mirrors.TensorBoard.close", close)
    assert main(["train", *TINY, "model=resnet20", "logger=tensorboard"]) == 0
    assert "no network" in capsys.readouterr().out


def test_what_is_not_installed_is_said_before_anything_is_written(monkeypatch, capsys):
    monkeypatch.setattr("pgt.runs.mirrors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^logger=wandb needs the package wandb: pip install wandb"):
        mirrors.check({"wandb": {}})
    assert start_mirrors({}, None) == []
    assert main(["train", *RUN, "logger=wandbb"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "logger" in captured.err


def test_norms_that_are_not_finite_cost_no_mirror():
    """In a network that diverges: here, all norms of layer 1 and one of layer 2."""
    train(*RUN, "record.norms_every=1")
    [folder] = Path("runs").glob("custom/*")
    record_format = read_format(folder / FOLDER)
    records = np.memmap(folder / FOLDER / RECORDS, record_format.record, "r+")
    parts = record_format.split(records["filters"])
    parts[0][-1], parts[1][-1][0] = np.nan, np.inf
    records.flush()
    norms = norms_by_layer(folder, 10**6, {"zeroed_filters": 0})
    assert [len(values) for values in norms.values()][:2] == [parts[1].shape[1] - 1, parts[2].shape[1]]
    assert all(np.histogram(values)[0].sum() == len(values) for values in norms.values())
