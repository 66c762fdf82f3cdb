import errno
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console as Terminal

from pgt.cli.main import main
from pgt.config.identity import identity, run_id
from pgt.config.resources import conf_dir
from pgt.core.errors import InputError, TrainingError
from pgt.core.files import write_json
from pgt.core.types import Batch
from pgt.data import open_set
from pgt.launch.run import run
from pgt.methods import TRANSFORMS, smooth_labels
from pgt.runs.console import Console
from pgt.runs.folder import Summary, find, lock, read_epochs, read_metrics, read_summary, write_summary
from pgt.runs.norms import NormsFile, RecordFormat
from pgt.runs.sinks import JsonLines
from pgt.training import folder as run_folder
from pgt.training.assemble import assemble
from pgt.training.ranks import ALONE
from tests.conftest import ROOT, TINY, compose, pgt, train, until

DIGITS = ("experiment=demo/bn", "recipe.epochs=3", "recipe.warmup_epochs=1")


def folder():
    [found] = find(Path("runs"))
    return found[0]


@pytest.fixture(scope="module")
def root_of_finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    train(*DIGITS, f"paths.runs={root}")
    return root


@pytest.fixture
def finished(root_of_finished):
    """The summary of a finished run; `runs` is a copy of its folder."""
    shutil.copytree(root_of_finished, "runs")
    return read_summary(folder())


@pytest.fixture
def unfinished(finished):
    """The folder of a run whose checkpoint is whole, and which stopped before its summary said so."""
    path = folder()
    values = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**values, "status": "unfinished"}))
    return path


def curve(path):
    """Records without what the clock decides."""
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in read_metrics(path)]


@pytest.mark.parametrize("method", sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml")))
def test_every_method_trains_two_epochs(method):
    summary = train(*TINY, "recipe.epochs=2", "model=resnet20", f"method={method}")
    assert (summary.status, summary.epochs) == ("finished", 2)


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


@pytest.mark.slow
def test_same_seed_same_curve_bit_for_bit():
    train(*DIGITS, "paths.runs=a")
    train(*DIGITS, "paths.runs=b")
    train(*DIGITS, "paths.runs=c", "seed=1")
    first, second, other = (curve(find(Path(root))[0][0]) for root in "abc")
    assert first == second
    assert first != other


def test_a_finished_run_is_returned_at_once(finished, capsys):
    summary = finished
    before = (folder() / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert train(*DIGITS) == summary
    assert "finished earlier" in capsys.readouterr().out
    assert (folder() / "metrics.jsonl").stat().st_mtime_ns == before
    assert asdict(train(*DIGITS, "trainer.force=true"))["test_top1_final"] == summary.test_top1_final
    assert (folder() / "metrics.jsonl").stat().st_mtime_ns > before


def test_a_run_that_is_started_over_can_be_read_meanwhile(finished, monkeypatch):
    """Whatever has gone by then, no summary counts epochs that are not there."""
    remove, seen = Path.unlink, []

    def counted():
        return [len(read_epochs(one, summary.epochs)) for one, summary in find(Path("runs"))]

    def removes(path, **options):
        remove(path, **options)
        seen.append(counted())

    assert counted() == [3]
    monkeypatch.setattr(Path, "unlink", removes)
    run_folder.clear(folder(), ())
    assert len(seen) > 1
    assert not any(seen)


def test_another_commit_is_reported_and_other_data_refused(finished, capsys):
    path = folder() / "summary.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "commit": "0123456789ab"}))
    train(*DIGITS)
    assert "by commit 0123456789ab; this is" in capsys.readouterr().out
    path.write_text(json.dumps({**values, "manifest": "other data"}))
    with pytest.raises(InputError, match=r"was made from other data \(other data, now .*trainer.force=true"):
        train(*DIGITS)


def killed_after(epochs, *overrides):
    """`pgt train` in a process of its own, killed once that many epochs are in its summary.

    Returns the number that its checkpoint has, which is written before the summary.
    """
    command = [sys.executable, "-m", "pgt", "train", *overrides]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    until(lambda: (found := find(Path("runs"))) and found[0][1].epochs >= epochs, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return run_folder.load(folder())["summary"]["epochs"]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_whole_epoch_to_the_same_curve(capsys):
    overrides = ("experiment=demo/bn", "recipe.epochs=12")
    epochs = killed_after(2, *overrides)
    before = read_summary(folder())
    assert before.status == "unfinished"
    assert 2 <= epochs < 12
    summary = train(*overrides)
    assert f"12 epochs of 14 steps, from epoch {epochs + 1}" in capsys.readouterr().out
    assert summary.status == "finished"
    assert summary.started == before.started
    resumed, starts = curve(folder()), json.loads((folder() / "environment.json").read_text())["starts"]
    assert len(starts) == 2
    train(*overrides, "paths.runs=whole")
    assert resumed == curve(find(Path("whole"))[0][0])


def test_a_damaged_checkpoint_gets_one_line(unfinished):
    path = unfinished / "checkpoints" / "last.pt"
    whole = path.read_bytes()
    for damage in (b"hello", b"", b"PK\x03\x04 torn", "empty", "half"):
        path.write_bytes(whole)
        damaged(path, damage)


def damaged(path, damage):
    if damage == "empty":
        torch.save({}, path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == "half" else damage)
    with pytest.raises(InputError, match=r"^cannot load the checkpoint .*last.pt \(\w+\): it is damaged; put it back"):
        train(*DIGITS)


def stopped_before_checkpoint(monkeypatch, number, then=lambda: None):
    """A run that ends in its third epoch: what `then` does, or a kill, comes before checkpoint `number` is written."""
    save, saves = run_folder.save, itertools.count(1)

    def dies(*arguments):
        if next(saves) == number:
            then()
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("pgt.training.folder.save", dies)
        with pytest.raises(KeyboardInterrupt):
            train(*DIGITS)
    return folder() / "checkpoints"


def without_a_key(path):
    torch.save({k: v for k, v in torch.load(path, weights_only=True).items() if k != "metrics_size"}, path)


def test_damaged_checkpoints_are_both_named_and_one_that_cannot_be_read_now_is_kept(monkeypatch, capsys):
    checkpoints = stopped_before_checkpoint(monkeypatch, 3)
    last, previous = checkpoints / "last.pt", checkpoints / "previous.pt"
    whole = last.read_bytes(), previous.read_bytes()

    def io_error(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(last))

    with monkeypatch.context() as patch:
        patch.setattr("torch.load", io_error)
        assert main(["train", *DIGITS]) == 2
    assert capsys.readouterr().err == f"pgt: {last}: Input/output error\n"
    assert (last.read_bytes(), previous.read_bytes()) == whole
    without_a_key(last)
    torch.save([1], previous)
    assert main(["train", *DIGITS]) == 2
    err = capsys.readouterr().err
    assert (err.count("\n"), err.count(str(last)), err.count(str(previous))) == (1, 1, 1)
    assert "trainer.force=true" in err


def test_a_run_that_diverges_keeps_its_last_checkpoint_alone(monkeypatch):
    checkpoints = stopped_before_checkpoint(monkeypatch, 3)
    assert (checkpoints / "previous.pt").exists()

    def diverges(*_):
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr("pgt.training.run.train_epochs", diverges)
    with pytest.raises(TrainingError):
        train(*DIGITS)
    assert read_summary(folder()).status == "diverged"
    assert {path.name for path in checkpoints.iterdir()} == {"best.pt", "last.pt"}


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "damage", [cut, *(pytest.param(one, marks=pytest.mark.slow) for one in (Path.unlink, without_a_key))]
)
def test_a_damaged_checkpoint_costs_no_more_than_the_one_before_it(monkeypatch, capsys, root_of_finished, damage):
    """The last one is damaged, or lost between two renames: the run goes on from `previous.pt` to the same curve."""
    checkpoints = stopped_before_checkpoint(monkeypatch, 3)
    assert {path.name for path in checkpoints.iterdir()} == {"best.pt", "last.pt", "previous.pt"}
    damage(checkpoints / "last.pt")
    lost = not (checkpoints / "last.pt").exists()
    capsys.readouterr()
    train(*DIGITS)
    out = capsys.readouterr().out
    assert "3 epochs of 14 steps, from epoch 2  ->" in out
    assert out.count("last.pt cannot be read: goes on from previous.pt") == (not lost)
    assert curve(folder()) == curve(find(root_of_finished)[0][0])
    assert {path.name for path in checkpoints.iterdir()} == {"best.pt", "last.pt"}


@contextmanager
def full(size=0):
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_gets_one_line_and_leaves_the_checkpoint_before_whole(monkeypatch, capsys, root_of_finished):
    save, saves = run_folder.save, itertools.count(1)

    def fills(*arguments):
        with full(100_000 if next(saves) == 3 else resource.RLIM_INFINITY):
            save(*arguments)

    monkeypatch.setattr("pgt.training.folder.save", fills)
    assert main(["train", *DIGITS]) == 2
    path, err = folder() / "checkpoints", capsys.readouterr().err
    assert re.fullmatch(rf"pgt: {path}/(last|best).pt: File too large: .*ulimit.*\n", err), err
    assert not list(path.glob(".*"))
    assert run_folder.load(folder())["summary"]["epochs"] == 2
    train(*DIGITS)
    assert "from epoch 3" in capsys.readouterr().out
    assert curve(folder()) == curve(find(root_of_finished)[0][0])


def test_a_checkpoint_that_a_killed_process_left_unfinished_is_removed(unfinished):
    left = unfinished / "checkpoints" / ".last.pt.1.tmp"
    left.write_bytes(b"half")
    assert train(*DIGITS).status == "finished"
    assert not left.exists()


def open_lock():
    with lock(Path(".")):
        pass


def log_a_line():
    with closing(Console("run", 1, Path("log.txt"), Terminal(file=io.StringIO()))) as console:
        console.say("hello")


def record_a_step():
    with closing(JsonLines(Path("metrics.jsonl"))) as file:
        file.write(0, {"loss": 1.0})


def record_norms():
    form = RecordFormat((), 1)
    with closing(NormsFile(Path("."), form)) as file:
        file.write(0, np.zeros(form.record.itemsize // 4 - 2, np.float32))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("metrics.jsonl", record_a_step),
        ("norms.bin", record_norms),
        ("log.txt", log_a_line),
        ("file", lambda: write_json(Path("file"), {})),
        ("lock", open_lock),
    ],
)
def test_whatever_meets_a_full_disk_names_its_file(name, write):
    with full(), pytest.raises(InputError, match=rf"^{name}: File too large: .*ulimit"):
        write()


def test_a_damaged_environment_gets_one_line_and_the_run_goes_on_without_it(unfinished):
    path = unfinished / "environment.json"
    for damage in (b"{torn", b"", b"\xff\xfe", b"[]", b'{"starts": [1]}'):
        path.write_bytes(damage)
        with pytest.raises(
            InputError, match=r"^cannot read .*environment.json \(\w+\): delete it, and its run goes on"
        ):
            train(*DIGITS)
        assert path.read_bytes() == damage
    path.unlink()
    assert train(*DIGITS).status == "finished"
    assert len(json.loads(path.read_text())["starts"]) == 1


def test_without_its_checkpoint_a_run_begins_anew_and_keeps_nothing_measured(unfinished):
    """As the message about a damaged checkpoint advises; its old best must not stand beside new weights."""
    path = unfinished
    values = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**values, "test_top1_best": 100.0}))
    (path / "checkpoints" / "last.pt").unlink()
    again = train(*DIGITS)
    assert again.test_top1_best == values["test_top1_best"] < 100
    assert again.started == values["started"]
    assert [record["epoch"] for record in read_metrics(path) if record["event"] == "epoch"] == [0, 1, 2]


def test_lost_metrics_are_noticed_before_they_are_appended_to(unfinished):
    path = unfinished / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-15])
    with pytest.raises(InputError, match="has lost records that its checkpoint counts"):
        train(*DIGITS)


def test_a_folder_that_cannot_be_written_gets_one_line(capsys):
    Path("file").write_text("in the way")
    assert main(["train", *DIGITS, "paths.runs=file"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pgt: file/demo/bn/{run_id(identity(compose(*DIGITS)))}")
    assert said.endswith(": Not a directory\n")
    assert said.count("\n") == 1
    assert main(["train", *DIGITS, "paths.runs="]) == 2
    assert "paths.runs must not be empty" in capsys.readouterr().err


def test_a_diverged_run_says_so_and_is_not_repeated(capsys):
    overrides = (*TINY, "model=resnet20_nobn", "recipe.lr_peak=1e30", "recipe.epochs=2")
    with pytest.raises(TrainingError, match="the loss is not finite since step"):
        train(*overrides)
    summary = read_summary(folder())
    assert (summary.status, summary.epochs) == ("diverged", 0)
    assert "the loss is not finite since step" in summary.reason
    assert train(*overrides) == summary
    assert "diverged earlier" in capsys.readouterr().out


HOOK = (*DIGITS, "method=authors_hook", "recipe.global_batch=32", "trainer.log_every=1")


@pytest.mark.parametrize("groups", [pytest.param(count, marks=pytest.mark.slow) for count in (1, 4)])
def test_the_authors_hook_measures_its_own_group(groups):
    """In float32 the loss scale is 1, and so S/N² is 1/N² whatever the groups of a step."""
    local = 32 // groups
    train(*HOOK, f"recipe.local_batch={local}", "recipe.lr_start=1e-12", "recipe.lr_peak=1e-12")
    first = read_metrics(folder())[0]
    assert first["hook_scale_ratio"] == pytest.approx(1 / local**2, rel=1e-3)
    assert 0 <= first["hook_flushed"] <= 1


@pytest.mark.slow
def test_the_hooks_warning_reaches_the_user():
    done = pgt("train", *HOOK, "recipe.local_batch=32", "recipe.lr_start=1e-12", "recipe.lr_peak=1e-12")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: S/N² is 0.000977: the authors' hook computes Eq. 9 only if it is 1") == 1
    assert "warning: S/N²" in (folder() / "log.txt").read_text()


def test_an_interrupted_forced_run_does_not_bring_the_old_one_back(finished, capsys):
    """Forced, killed in its first epoch, and asked again without force: it begins anew."""
    write_summary(folder(), replace(finished, started="2000-01-01T00:00:00+00:00"))
    config = compose(*DIGITS, "trainer.force=true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgt.training.epochs._epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert (read_summary(folder()).status, read_summary(folder()).epochs) == ("unfinished", 0)
    capsys.readouterr()
    again = train(*DIGITS)
    assert "from epoch" not in capsys.readouterr().out
    assert again.started > "2001"
    assert [record["epoch"] for record in read_metrics(folder()) if record["event"] == "epoch"] == [0, 1, 2]


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_a_run_goes_on_with_all_it_had_measured(finished):
    """Stopped after its checkpoint and before its summary: nothing of the last epoch is lost."""
    whole = finished
    path = folder() / "summary.json"
    path.unlink()
    assert {**asdict(train(*DIGITS)), "started": "", "finished": ""} == {**asdict(whole), "started": "", "finished": ""}


def test_not_every_epoch_needs_an_evaluation(tmp_path):
    """Every second one, and the last; the rest of the chain takes it as it is."""
    summary = train(*TINY, "model=resnet20", "recipe.epochs=5", "trainer.evaluate_every=2", "experiment=demo/bn")
    [path] = (folder for folder, _ in find(Path("runs")))
    epochs = [record for record in read_metrics(path) if record["event"] == "epoch"]
    assert [record["epoch"] for record in epochs if "test_top1" in record] == [1, 3, 4]
    assert summary.test_top1_final == epochs[-1]["test_top1"]
    assert summary.test_top1_best == max(record.get("test_top1", 0) for record in epochs)
    assert main(["figure", "4", "demo/bn", "--output", "curves.png"]) == 0


def test_the_order_of_the_config_is_the_order_of_the_chain():
    gc, agc = "{name: gc, max_norm: 1.0}", "{name: agc, clip_factor: 0.01, eps: 1e-3}"
    for order in ([gc, agc], [agc, gc]):
        config = compose(*DIGITS, f"method.transforms=[{','.join(order)}]")
        _, _, trainer = assemble(config, open_set(name="digits"), ALONE)
        names = [alteration.transform for alteration in trainer.alterations]
        assert names == [TRANSFORMS["gc" if "max_norm" in text else "agc"] for text in order]


@pytest.mark.parametrize(("method", "alpha"), [("baseline", 1.0), ("pgt", 0.25)])
@pytest.mark.parametrize("smoothing", ["paper", "uniform"])
def test_the_label_smoothing_of_the_config_is_that_of_the_gradient(method, alpha, smoothing):
    smoothed = ("method.label_smoothing=0.1", f"method.smoothing={smoothing}")
    _, _, trainer = assemble(compose(*DIGITS, f"method={method}", *smoothed), open_set(name="digits"), ALONE)
    z, y = torch.randn(6, 10, dtype=torch.float64, requires_grad=True), torch.randint(10, (6,))
    trainer.loss(z, y).backward()
    target = smooth_labels(y, 10, 0.1, smoothing, torch.float64)
    torch.testing.assert_close(z.grad, ((alpha * z.detach()).softmax(1) - target) / 6)


def test_the_seed_decides_the_initial_weights():
    """A learning rate this small leaves them as they are."""
    filters = []
    for seed in (0, 1):
        train(*TINY, "model=resnet20", "recipe.lr_start=1e-12", "recipe.lr_peak=1e-12", f"seed={seed}")
        [path] = (path for path, summary in find(Path("runs")) if summary.seed == seed)
        filters.append(torch.load(path / "checkpoints/last.pt", weights_only=True)["model"]["conv1.weight"])
    assert (filters[0] - filters[1]).abs().max() > 0.1


def test_the_seed_decides_what_the_network_draws_at_a_step():
    """As dropout does."""
    drawn = []
    for seed in (0, 0, 1):
        _, _, trainer = assemble(compose(*DIGITS, f"seed={seed}"), open_set(name="digits"), ALONE)
        trainer.model.register_forward_hook(lambda *_: drawn.append(torch.rand(8)))
        trainer.train_step([Batch(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))], 0)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_what_the_config_says_of_the_trainer_reaches_it():
    fp16 = ("trainer.precision=fp16", "trainer.loss_scale=128", "trainer.loss_scale_growth_interval=7")
    config = compose(*DIGITS, *fp16, "trainer.compile=true")
    _, _, trainer = assemble(config, open_set(name="digits"), ALONE)
    assert (trainer.scaler.get_scale(), trainer.scaler.get_growth_interval()) == (128, 7)
    assert trainer.compiled
    filters = [p for p in trainer.model.parameters() if p.ndim == 4]
    assert len(filters) > 1
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)


@pytest.mark.slow
def test_deterministic_runs_are_alike_bit_for_bit_and_a_later_run_is_free_again():
    overrides = (*TINY, "model=resnet20", "trainer.deterministic=true")
    weights = []
    for root in ("a", "b"):
        train(*overrides, f"paths.runs={root}")
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        [(path, _)] = find(Path(root))
        weights.append(torch.load(path / "checkpoints" / "last.pt", weights_only=True)["model"])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    train(*TINY, "model=resnet20", "paths.runs=c")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_reading_a_checkpoint_writes_nothing():
    assert run_folder.load(Path("runs")) is None
    assert not Path("runs").exists()


def test_smoothing_that_the_classes_do_not_allow_is_refused():
    with pytest.raises(InputError, match=r"method.label_smoothing 0.95 leaves the true one of 10 classes"):
        train(*DIGITS, "method.label_smoothing=0.95")
    assert not Path("runs").exists()


def test_a_run_in_progress_is_not_joined(finished, monkeypatch):
    monkeypatch.setattr("pgt.runs.folder.LOCK_SECONDS", 0.3)
    config = compose(*DIGITS, "trainer.force=true")
    before = read_summary(folder())
    with lock(folder()), pytest.raises(InputError, match=r"is being trained by another process \(.*, process \d+\)"):
        run(config)
    assert read_summary(folder()) == before


def test_a_summary_of_another_schema_is_refused(finished):
    path = folder() / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        train(*DIGITS)
    for damaged in (b"{torn", b"", b"\xff\xfe", b"[]", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"^cannot read .*summary.json \(\w+\): .* its run goes on from its chec"):
            train(*DIGITS)


@pytest.mark.slow
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


def test_the_best_weights_are_the_first_of_several_that_are_the_best(monkeypatch):
    from pgt.training import epochs, job

    measured = ("train_top1", "train_loss", "images_per_second", "test_top1", "test_top5", "test_loss",
                "test_loss_alpha", "test_logit_norm", "test_ece", "test_ece_alpha")  # fmt: skip
    monkeypatch.setattr(epochs, "_epoch", lambda *parts: dict.fromkeys(measured, 0.0) | {"epoch": parts[3]})
    config, best = compose(*TINY, "model=resnet20", "recipe.epochs=3"), []
    fresh = job.prepare(config).summary
    stateful = SimpleNamespace(state_dict=dict, ranks=ALONE, skipped=set())
    epochs.train_epochs(
        config, stateful, (stateful, stateful), fresh, None, lambda _, state, is_best: best.append(is_best), None
    )
    assert best == [True, False, False]
