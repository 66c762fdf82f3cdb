"""A run that is asked to stop writes a checkpoint between two steps, and resumes to the same numbers."""

import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from pgt.cli.main import main
from pgt.core import signals as stopping
from pgt.core.errors import InputError, Stopped
from pgt.runs.folder import find, read_metrics
from pgt.training.epochs import Breaks
from tests.conftest import ROOT, SECONDS, TINY, last_wins, train, until
from tests.data.helpers import BACKENDS

RUN = last_wins(*TINY, "model=resnet20", "recipe.epochs=2", "data.num_samples=24", "recipe.local_batch=4",
       "record.norms_every=2")  # fmt: skip
"""Two epochs of three steps of two groups, and one test batch: four breaks an epoch."""


class Asked:
    """A `Stop` that has been asked by the time somebody looks the n-th time."""

    def __init__(self, at):
        self.looks, self.at = 0, at

    @property
    def wanted(self):
        self.looks += 1
        return signal.SIGTERM if self.looks >= self.at else 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def result(root):
    """All of a run that must not depend on when it was interrupted: records, norms, summary, weights."""
    [(folder, summary)] = find(Path(root))
    timeless = [{k: v for k, v in record.items() if k != "images_per_second"} for record in read_metrics(folder)]
    kept = {k: v for k, v in vars(summary).items() if k not in ("started", "finished", "images_per_second")}
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    norms = {path.name: path.read_bytes() for path in (folder / "norms").iterdir()}
    momenta = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    return timeless, kept, norms, [*state["model"].values(), *momenta]


def assert_same(one, other):
    assert one[:3] == other[:3]
    assert all(torch.equal(a, b) for a, b in zip(one[3], other[3], strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a run that nobody stops."""
    root = tmp_path_factory.mktemp("whole")
    train(*RUN, f"paths.runs={root}")
    return result(root)


def stopped_at(monkeypatch, look, *more):
    with monkeypatch.context() as patch:
        patch.setattr("pgt.training.run.Stop", lambda: Asked(look))
        with pytest.raises(Stopped) as caught:
            train(*RUN, *more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("look", "place", "begin"),
    [
        pytest.param(1, "step 1 of epoch 1", "from epoch 1, step 2", marks=pytest.mark.slow),
        (3, "step 3 of epoch 1", "from the evaluation of epoch 1"),
        pytest.param(4, "step 3 of epoch 1", "from the evaluation of epoch 1", marks=pytest.mark.slow),
        (5, "step 1 of epoch 2", "from epoch 2, step 2"),
        pytest.param(8, "step 3 of epoch 2", "from the evaluation of epoch 2", marks=pytest.mark.slow),
    ],
)
def test_wherever_it_is_stopped_it_goes_on_to_the_same_numbers(monkeypatch, capsys, whole, look, place, begin):
    assert stopped_at(monkeypatch, look) == f"stopped by SIGTERM after {place}; the same command goes on there"
    capsys.readouterr()
    train(*RUN)
    assert f"2 epochs of 3 steps, {begin}  ->" in capsys.readouterr().out
    assert_same(result("runs"), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        "trainer.evaluate_every=2",
        "recipe.bn_statistics=mean",
        "method=amplification_per_weight",
        "method=gcgd_pgt method.transforms.1.every=2",
        "trainer.precision=fp16 trainer.loss_scale=1e8 trainer.loss_scale_growth_interval=2 data.image_size=8",
    ],
)
def test_no_setting_makes_the_numbers_depend_on_stops(monkeypatch, overrides):
    more = overrides.split()
    train(*RUN, *more, "paths.runs=whole")
    places = [stopped_at(monkeypatch, look, *more) for look in (2, 3)]
    assert "after step 2 of epoch 1" in places[0]
    assert "of epoch 2" in places[1]
    train(*RUN, *more)
    assert_same(result("runs"), result("whole"))


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_comes_to_its_end(monkeypatch, whole):
    places = [stopped_at(monkeypatch, 2) for _ in range(4)]
    assert len({*places}) == 4
    train(*RUN)
    assert_same(result("runs"), whole)


def test_a_killed_run_goes_on_from_its_last_checkpoint_within_an_epoch(monkeypatch, capsys, whole):
    pause, looks = Breaks.pause, itertools.count(1)

    def dies(breaks):
        if next(looks) == 6:  # after the fifth step; one look was the evaluation's
            raise KeyboardInterrupt
        pause(breaks)

    with monkeypatch.context() as patch:
        patch.setattr("pgt.training.epochs.Breaks.pause", dies)
        with pytest.raises(KeyboardInterrupt):
            train(*RUN, "trainer.checkpoint_minutes=1e-9")
    capsys.readouterr()
    train(*RUN)
    assert "from epoch 2, step 2  ->" in capsys.readouterr().out
    assert_same(result("runs"), whole)


def test_checkpoints_within_an_epoch_wait_for_their_time(monkeypatch):
    saved = []
    monkeypatch.setattr("pgt.training.folder.save", lambda *arguments: saved.append(arguments))
    train(*RUN)
    assert len(saved) == 2
    train(*RUN, "trainer.checkpoint_minutes=1e-9", "trainer.force=true")
    assert len(saved) == 2 + 8 + 2
    assert main(["train", *RUN, "trainer.checkpoint_minutes=0"]) == 2


STEPS = 8
LONG = last_wins(*TINY, "model=resnet20", "recipe.epochs=12", f"data.num_samples={STEPS * 8}")
"""Epochs of `STEPS` steps."""


def assert_goes_on(said, epoch, steps):
    """A run says that it begins after so many steps of an epoch (from 0)."""
    begin = f"epoch {epoch + 1}, step {steps + 1}" if steps < STEPS else f"the evaluation of epoch {epoch + 1}"
    assert f", from {begin}  ->" in said


def begun(*command, steps=10, **options):
    """A process that trains and has written some steps' records."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}

    def written():
        return sum(path.read_text().count("\n") for path in Path("runs").glob("**/metrics.jsonl"))

    before, process = written(), subprocess.Popen(last_wins(*command), **options)
    until(lambda: written() >= before + steps, process)
    return process


NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
SLOW_TO_ASK = pytest.param(signal.SIGINT, marks=pytest.mark.slow), pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)


@pytest.mark.parametrize("number", [signal.SIGTERM, *SLOW_TO_ASK])
def test_a_signal_stops_a_process_in_order(capsys, number):
    process = begun(sys.executable, "-m", "pgt", "train", *LONG)
    process.send_signal(number)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number
    said = re.fullmatch(rf"pgt: stopped by {NAMES[number]} after step (\d) of epoch (\d+); the same .* there\n", err)
    assert said, err
    step, epoch = map(int, said.groups())
    train(*LONG)
    assert_goes_on(capsys.readouterr().out, epoch - 1, step)
    [(folder, summary)] = find(Path("runs"))
    assert summary.status == "finished"
    assert [record["step"] for record in read_metrics(folder) if record["event"] == "step"] == list(range(12 * STEPS))


FILES = tuple(override for override in LONG if not override.startswith(("data=", "data.num_samples")))
"""What of `LONG` goes with `images`."""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_a_signal_to_every_process_stops_in_order(backend, number, times):
    """As Slurm sends it, twice, or a terminal: data workers that died of it would fail the run within a step."""
    run = (*FILES, *images("images", backend), "data.workers=1", "recipe.epochs=200")
    process = begun(sys.executable, "-m", "pgt", "train", *run, start_new_session=True)
    for _ in range(times):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        time.sleep(0.2)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number, err
    assert re.fullmatch(rf"pgt: stopped by {NAMES[number]} after step \d of epoch \d+; .*\n", err), err


def images(root, backend="torchvision"):
    """A folder of sixteen small images a class."""
    for split, label, i in itertools.product(("train", "val"), "ab", range(16)):
        Path(root, split, label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), (16 * i, 0, 0)).save(Path(root, split, label, f"{i}.png"))
    return ("data=imagefolder", f"data.root={root}", f"data.backend={backend}")


def test_a_run_that_fails_ends_its_data_workers():
    """At once: what an exception refers to is freed some time later, in an order that leaves them waiting."""
    overrides = images("images")
    Path("images", "train", "a", "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read the image .*3.png") as caught:
        train(*FILES, *overrides, "data.workers=2")
    assert not multiprocessing.active_children()
    del caught


@pytest.mark.slow
@pytest.mark.parametrize("look", [2, 4])
def test_files_that_were_left_out_before_it_was_stopped_count(monkeypatch, look):
    run = [override for override in RUN if not override.startswith(("data=", "data.num_samples", "recipe.epochs"))]
    run += [*images("images"), "data.workers=0", "data.on_bad_file=skip", "recipe.epochs=1"]
    for name in ("3", "4", "5"):
        Path("images", "train", "a", f"{name}.png").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("pgt.training.run.Stop", lambda: Asked(look))
        with pytest.raises(Stopped):
            train(*run)
    assert train(*run).skipped_files == 3


@pytest.mark.slow
def test_test_images_that_were_left_out_before_it_was_stopped_count(monkeypatch):
    """Also before the next evaluation: after epoch 2, it is stopped in the third of four."""
    run = [override for override in RUN if not override.startswith(("data=", "data.num_samples", "recipe.epochs"))]
    run += [*images("images"), "data.workers=0", "data.on_bad_file=skip", "recipe.epochs=4", "trainer.evaluate_every=2"]
    Path("images", "val", "a", "3.png").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("pgt.training.run.Stop", lambda: Asked(11))
        with pytest.raises(Stopped, match="of epoch 3"):
            train(*run)
    summary = train(*run)
    epochs = read_metrics(Path("runs/custom") / summary.run_id, "epoch")
    assert [record.get("skipped_files", 0) for record in epochs] == [0, 1, 1, 1]


def test_a_request_that_comes_too_late_for_a_run_stops_the_sweep(monkeypatch, capsys):
    """Once it is finished there is nothing left of it to stop."""
    finished = iter([True, False])

    def asked(summary):
        if next(finished):
            os.kill(os.getpid(), signal.SIGUSR1)
        return "finished"

    monkeypatch.setattr("pgt.training.run.result_line", asked)
    monkeypatch.setattr(stopping.Stop, "unanswered", 0)
    assert main(["train", "-m", *RUN, "seed=0,1,2"]) == 138
    assert capsys.readouterr().err == "pgt: stopped by SIGUSR1 between two runs; the same command goes on there\n"
    assert [summary.status for _, summary in find(Path("runs"))] == ["finished"]


def place():
    """(epoch from 0, steps) that the run's checkpoint stands at."""
    [path] = Path("runs").glob("**/last.pt")
    progress = torch.load(path, weights_only=True)["progress"]
    return progress["epoch"], progress["steps"]


@pytest.mark.slow
def test_processes_that_train_together_stop_at_the_same_step():
    run = ("pgt", "train", *LONG, "recipe.epochs=200", "recipe.local_batch=4", "trainer.devices=2")
    places = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = begun(sys.executable, "-m", *run)
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 128 + number, err
        places.append(place())
        expected = f"after step {places[-1][1]} of epoch {places[-1][0] + 1}; the same command goes on there"
        assert err == f"pgt: stopped by {number.name} {expected}\n"
    assert places[0] < places[1]
    epoch, steps = places[0]
    assert_goes_on(out, epoch, steps)
    assert not list(Path("runs").glob("**/log.rank1.txt"))


@pytest.mark.slow
def test_processes_that_train_together_end_their_data_workers():
    """In order: what they leave behind would be complained of."""
    run = (
        *FILES,
        *images("images"),
        "data.workers=1",
        "recipe.local_batch=4",
        "recipe.epochs=200",
        "trainer.devices=2",
    )
    process = begun(sys.executable, "-m", "pgt", "train", *run, steps=2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for _ in range(2):  # as Slurm signals them, and the parent, which asks the first of them, too
        for pid in (process.pid, *ranks):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert len(ranks) == 2
    assert not list(Path("runs").glob("**/log.rank1.txt"))
    assert re.fullmatch(r"pgt: stopped by SIGTERM after step \d of epoch \d+; .*\n", err), err


def assert_same_weights(one, other):
    """To the rounding of float64."""
    paths = [next(Path(root).glob("**/last.pt")) for root in (one, other)]
    weights, others = (torch.load(path, weights_only=True)["model"] for path in paths)
    for key in weights:
        torch.testing.assert_close(others[key], weights[key], rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_what_one_process_began_two_go_on_with_in_the_middle_of_an_epoch(monkeypatch):
    fine = "trainer.precision=fp64"
    whole = train(*RUN, fine, "paths.runs=whole")
    assert "after step 2 of epoch 1" in stopped_at(monkeypatch, 2, fine)
    shared = train(*RUN, fine, "trainer.devices=2")
    assert (shared.epochs, shared.world_size, shared.run_id) == (2, 2, whole.run_id)
    assert_same_weights("whole", "runs")


@pytest.mark.slow
def test_what_two_processes_began_one_goes_on_with(capsys):
    run = last_wins(*LONG, "recipe.epochs=6", "recipe.local_batch=4", "recipe.lr_peak=0.001", "trainer.precision=fp64")
    process = begun(sys.executable, "-m", "pgt", "train", *run, "trainer.devices=2", steps=3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM, err
    epoch, steps = place()
    assert train(*run).world_size == 1
    assert_goes_on(capsys.readouterr().out, epoch, steps)
    train(*run, "paths.runs=whole")
    assert_same_weights("whole", "runs")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_passes_the_request_on(number):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    process = begun(*launcher, "pgt", "train", *LONG, "recipe.epochs=200", "recipe.local_batch=4")
    process.send_signal(number)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    epoch, steps = place()
    assert f"pgt: stopped by {NAMES[number]} after step {steps} of epoch {epoch + 1}" in err


STOP = """
import os, signal, subprocess, sys, time
from pgt.core.signals import Stop

before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
with Stop() as stop:
    assert stop.wanted == 0
    forked = os.fork()
    if not forked:
        time.sleep(60)
    started = subprocess.Popen(["sleep", "60"])
    time.sleep(0.5)
    for pid in (forked, started.pid):
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    assert os.waitpid(forked, os.WNOHANG) == (0, 0)
    assert started.poll() is None
    for pid in (forked, started.pid):
        os.kill(pid, signal.SIGKILL)
    assert stop.wanted == 0
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.wanted == signal.SIGUSR1
assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
assert not {signal.SIGTERM, signal.SIGUSR1} & (signal.sigpending() | signal.pthread_sigmask(signal.SIG_BLOCK, ()))
with Stop() as stop:
    for _ in range(2):  # srun, which is asked itself, passes on what its tasks are told anyway
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted == signal.SIGTERM
print("asked", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


def test_signals_are_remembered_and_what_was_there_before_comes_back():
    done = subprocess.run([sys.executable, "-c", STOP], capture_output=True, text=True, timeout=SECONDS, cwd=ROOT)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "asked\n"), done.stderr


def test_a_thread_from_before_may_get_the_signal(monkeypatch):
    """Where a library's threads have not blocked it, the handler has it remembered."""
    monkeypatch.setattr(stopping.Stop, "unanswered", 0)
    with stopping.Stop() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.wanted == signal.SIGUSR1


CTRL_C = """
import os, signal
from pgt.core.signals import Stop

with Stop() as stop:
    forked = os.fork()
    if not forked:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 7
    assert stop.wanted == 0
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.wanted == signal.SIGINT
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        print("ends at once")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
signal.signal(signal.SIGINT, signal.SIG_IGN)
with Stop() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.wanted == 0
"""


def test_a_second_ctrl_c_ends_at_once_and_data_workers_see_none():
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=SECONDS, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "ends at once\n"), done.stderr


def test_a_delayed_ctrl_c_stays_blocked_in_a_process_that_never_sees_it():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with stopping.uninterrupted(signal.SIGUSR1):
            assert {signal.SIGINT, signal.SIGUSR1} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {*before, signal.SIGINT}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_ctrl_c_in_a_sweep_stops_the_run_and_the_sweep(monkeypatch, capsys):
    pause, looks = Breaks.pause, itertools.count(1)

    def interrupted(breaks):
        if next(looks) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        pause(breaks)

    monkeypatch.setattr("pgt.training.epochs.Breaks.pause", interrupted)
    assert main(["train", "-m", *RUN, "seed=0,1"]) == 130
    assert capsys.readouterr().err == "pgt: stopped by Ctrl-C after step 2 of epoch 1; the same command goes on there\n"
    assert len(find(Path("runs"))) == 1
    assert place() == (0, 2)
