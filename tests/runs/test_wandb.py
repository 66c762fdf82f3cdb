"""wandb: its offline files are read back, and what only a server sees is recorded."""

import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pgt.cli.main import main
from pgt.core.errors import InputError
from pgt.launch.run import run as run_config
from pgt.runs import mirrors
from pgt.runs.folder import read_metrics
from pgt.runs.mirrors import WandbRun, start_mirrors
from pgt.runs.trackers import About
from pgt.training.job import prepare
from tests.conftest import ROOT, SECONDS, TINY, compose, last_wins, train
from tests.runs.test_mirrors import RUN, expected, killed_before_checkpoint

WANDB = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def finished_records(path):
    """Return all records of a run. wandb's own process still writes for a moment after `finish` has returned."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        records = list(wandb_records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.2)
    raise AssertionError(f"{path} has no exit record")


def wandb_records(path):
    """Yield the records of an offline run: a LevelDB log after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):  # being written
            return
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def items(updates):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates}


@WANDB
def test_wandb_holds_every_metric_the_config_and_the_environment(capsys):
    logger = ("logger=wandb", "logger.wandb.mode=offline", "logger.wandb.project=mine", "logger.wandb.tags=[night]")
    summary = run_config(compose(*RUN, *logger, "record.norms_every=1"), "[2/3] ")
    [folder] = Path("runs").glob("custom/*")
    assert f"`wandb sync {folder}/wandb`" in capsys.readouterr().out
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    history, norms, config, run, final, metrics = {}, {}, {}, None, {}, {}
    for record in finished_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "metric":
            metrics[record.metric.name or record.metric.glob_name] = record.metric
        if kind == "summary":
            final |= items(record.summary.update)
        if kind == "exit":
            assert record.exit.exit_code == 0
        if kind == "history":
            row = items(record.history.item)
            if "epochs.path" not in row:
                assert record.history.step.num == 2 * row["step"] + ("epoch/epoch" in row)
            history |= {(row["step"], key): value for key, value in row.items() if key.startswith(("step/", "epoch/"))}
            norms |= {key: value for key, value in row.items() if key.startswith("norms/")}
        if kind == "run":
            run = record.run
            config |= items(record.run.config.update)
        if kind == "config":
            config |= items(record.config.update)
    assert (run.run_id[:12], run.project, run.run_group, run.job_type) == (summary.run_id, "mine", "custom", "pgt")
    assert run.display_name == "resnet20 on synthetic pgt α=0.25 seed 0"  # without its place in a sweep
    assert list(run.tags) == ["resnet20", "synthetic", "night"]
    assert metrics["epoch/test_top1"].summary.max
    assert metrics["*"].step_metric == metrics["epoch/test_top1"].step_metric == "step"
    assert (final["status"], final["test_top1_best"]) == ("finished", summary.test_top1_best)
    assert history == expected(folder)
    assert len(history) > 20
    assert history[3, "epoch/zeroed_filters_by_layer"] == [0] * 19
    assert len({key.split(".")[0] for key in norms}) == 19, norms.keys()
    assert (config["method"]["name"], config["method"]["alpha"]) == ("pgt", 0.25)
    assert config["group_id"] == summary.group_id
    assert config["environment"]["packages"]["torch"]
    [table] = folder.glob("wandb/offline-run-*/files/media/table/epochs*.json")
    assert len(json.loads(table.read_text())["data"]) == 2


@pytest.mark.slow
@WANDB
def test_wandb_has_a_table_of_all_epochs_after_an_interruption(monkeypatch, tmp_path):
    run = (*RUN, "logger=wandb", "logger.wandb.mode=offline", "trainer.evaluate_every=2")
    run += (f"paths.runs={tmp_path}/runs",)  # wandb's own process, which all tests share, stays where it began
    killed_before_checkpoint(monkeypatch, 5, *run)
    train(*run)
    [folder] = Path("runs").glob("custom/*")
    *_, last = sorted(folder.glob("wandb/offline-run-*"))
    [log] = last.glob("*.wandb")
    rows = [record.history for record in finished_records(log) if record.WhichOneof("record_type") == "history"]
    assert [row.step.num for row in rows] == [6, 7, 8]  # of step 3, its epoch, and the table
    [path] = last.glob("files/media/table/epochs*.json")
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    records = read_metrics(folder, "epoch")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows == [{key: record.get(key) for key in table["columns"]} for record in records]
    assert "test_top1" in table["columns"]


def test_a_service_that_cannot_be_reached_stops_no_training(monkeypatch):
    def unreachable(*_, **__):
        raise TimeoutError("no answer after 60 seconds")

    monkeypatch.setattr(WandbRun, "__init__", unreachable)
    assert train(*RUN, "logger=wandb").status == "finished"
    [log] = Path("runs").glob("custom/*/log.txt")
    assert "warning: wandb has failed and is left alone (no answer after 60 seconds)" in log.read_text()


@pytest.fixture
def no_key(monkeypatch):
    """Make the home folder one without API keys."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", os.getcwd())


ENTRY = "machine {host}\n  login {login}\n  password {key}\n"


def test_wandb_online_without_a_key_is_refused_before_anything_is_written(no_key, capsys):
    assert main(["train", *RUN, "logger=wandb"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pgt: wandb has no API key: ")
    assert all(mend in captured.err for mend in ("wandb login", "WANDB_API_KEY", "logger.wandb.mode=offline"))
    assert not Path("runs").exists()
    Path(".netrc").write_text(ENTRY.format(host="example.org", login="someone", key="secret"))
    with pytest.raises(InputError, match="wandb has no API key"):
        mirrors.check({"wandb": {"mode": "online"}})
    mirrors.check({"wandb": {"mode": "offline"}})


def test_a_key_is_found_where_wandb_leaves_it(no_key, monkeypatch):
    online = {"wandb": {"mode": "online"}}
    entry = ENTRY.format(host="api.wandb.ai", login="user", key="a" * 40)
    Path(".netrc").write_text(entry)
    mirrors.check(online)
    Path(".netrc").rename("elsewhere")
    monkeypatch.setenv("NETRC", "elsewhere")
    mirrors.check(online)
    Path("elsewhere").write_text("machine\n")
    with pytest.raises(InputError, match="wandb has no API key"):
        mirrors.check(online)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    mirrors.check(online)


class Server:
    """Stands for `wandb.init` and the run that it returns; keeps what it is asked for."""

    offline = False

    def __init__(self, on_log=lambda: None):
        self.inits, self.rows, self.summary, self.calls, self.on_log = [], [], {}, [], on_log
        self.settings = SimpleNamespace(wandb_dir="wandb")

    @property
    def step(self):
        """The number of the next row, as wandb tells it of a run that is resumed."""
        return max((step for step, _ in self.rows if step is not None), default=-1) + 1

    def init(self, **options):
        self.inits.append(options)
        return self

    def log(self, row, step=None, commit=True):
        self.rows.append((step, row))
        self.on_log()

    def define_metric(self, *_, **__):
        pass

    def mark_preempting(self):
        self.calls.append("preempting")

    def finish(self, exit_code):
        self.calls.append(exit_code)


@pytest.fixture
def online(monkeypatch):
    """A server in the place of wandb's, with a key and no other variable of wandb."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    server = Server()
    monkeypatch.setattr(wandb, "init", server.init)
    return server


@WANDB
def test_wandb_hears_of_a_stop_and_goes_on_where_the_run_was(online):
    stops = iter([lambda: os.kill(os.getpid(), signal.SIGTERM)])
    online.on_log = lambda: next(stops, lambda: None)()
    arguments = ("train", *RUN, "logger=wandb")
    assert main(arguments) == 143
    assert online.calls == ["preempting", 143]
    assert online.summary["status"] == "stopped"
    stopped = len(online.rows)
    assert main(arguments) == 0
    assert online.calls[2:] == [0]
    assert [options["resume"] for options in online.inits] == [None, "allow"]
    rows = [step for step, row in online.rows if "step" in row]
    assert rows == sorted(set(rows)), "wandb drops what does not come in order"
    [folder] = Path("runs").glob("custom/*")
    assert len(rows) == len(read_metrics(folder))
    assert online.rows[stopped][0] > online.rows[0][0]


@WANDB
def test_records_that_a_killed_process_did_not_send_are_sent_when_it_resumes(online, monkeypatch):
    run = (*RUN, "logger=wandb")
    stops = iter([lambda: None] * 2 + [lambda: os.kill(os.getpid(), signal.SIGTERM)])
    online.on_log = lambda: next(stops, lambda: None)()
    assert main(["train", *run]) == 143
    sent = [step for step, _ in online.rows]
    del online.rows[1:]  # what was on its way
    assert main(["train", *run]) == 0
    rows = [step for step, row in online.rows if "step" in row]
    assert rows == sorted({*rows, *sent})
    [folder] = Path("runs").glob("custom/*")
    assert len(rows) == len(read_metrics(folder))


@WANDB
def test_the_same_run_in_two_folders_is_two_runs_of_wandb(online):
    for root in ("a", "b"):
        train(*RUN, "logger=wandb", f"paths.runs={root}")
    train(*RUN, "logger=wandb", "paths.runs=b", "trainer.force=true")
    first, other, again = (options["id"] for options in online.inits)
    assert first != other == again
    assert first[:12] == other[:12]


@WANDB
@pytest.mark.filterwarnings("ignore:overflow")
def test_wandb_hears_that_a_run_has_diverged_or_failed(online, monkeypatch):
    assert main(["train", *last_wins(*RUN, "recipe.lr_peak=1e30"), "logger=wandb"]) == 1
    assert online.calls == [1]
    assert online.summary["status"] == "diverged"
    assert "not finite" in online.summary["reason"]

    def fails(*arguments):
        raise InputError("a full disk")

    monkeypatch.setattr("pgt.training.folder.save", fails)
    assert main(["train", *RUN, "logger=wandb"]) == 2
    assert online.calls == [1, 2]
    assert online.summary["status"] == "failed"


@WANDB
def test_the_suggested_command_sends_a_run_as_its_own_command_would_have(online, capsys):
    run = (*RUN, "paths.runs=my runs")
    train(*run)
    capsys.readouterr()
    given = ("logger=wandb", "logger.wandb.project=mine", "logger.wandb.entity=us", "logger.wandb.tags=['a b',c]")
    assert main(["train", *run, *given]) == 0
    command = re.search("`(pgt mirror wandb .*)` sends", capsys.readouterr().out)[1]
    assert online.inits == []
    assert main(shlex.split(command)[1:]) == 0
    [options] = online.inits
    assert (options["project"], options["entity"], options["tags"][2:]) == ("mine", "us", ["a b", "c"])
    assert online.calls == [0]


@WANDB
def test_the_config_comes_before_the_environment_and_that_before_defaults(online, monkeypatch):
    train(*RUN, "logger=wandb")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_NAME", "a name")
    monkeypatch.setenv("WANDB_TAGS", "x,y")
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    train(*RUN, "logger=wandb", "trainer.force=true")
    train(*RUN, "logger=wandb", "trainer.force=true", "logger.wandb.project=mine", "logger.wandb.tags=[z]")
    default, environment, config = online.inits
    assert [options["project"] for options in online.inits] == ["pgt", None, "mine"]  # None: wandb reads its variable
    assert [options["tags"][2:] for options in online.inits] == [[], ["x", "y"], ["z"]]
    assert (environment["name"], config["name"]) == (None, None)
    assert default["settings"].console == "off"
    assert "console" not in environment["settings"].model_fields_set
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", os.getcwd())
    monkeypatch.setenv("WANDB_MODE", "offline")
    mirrors.check({"wandb": {"mode": None}})
    with pytest.raises(InputError, match="no API key"):
        mirrors.check({"wandb": {"mode": "online"}})
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(InputError, match="WANDB_MODE=sometimes: export one of online, offline"):
        mirrors.check({"wandb": {}})


@WANDB
@pytest.mark.parametrize(("minutes", "seconds"), [(0.5, 15), (10, 60)])
def test_wandb_begins_while_the_other_ranks_still_wait(monkeypatch, minutes, seconds):
    import wandb

    asked = []

    def init(**options):
        asked.append(options["settings"].init_timeout)
        raise TimeoutError

    monkeypatch.setattr(wandb, "init", init)
    config = compose(*RUN, f"trainer.timeout_minutes={minutes}")
    about = About(prepare(config).summary, Path("."), config.model_dump(), {}, say=lambda text: None)
    start_mirrors({"wandb": {"mode": "offline"}}, about)
    assert asked == [seconds]


@WANDB
@pytest.mark.slow
def test_a_network_of_ones_own_has_the_name_of_its_function():
    """In processes of their own: wandb keeps what earlier runs of a process have set."""
    Path("own/model").mkdir(parents=True)
    Path("own/model/mine.yaml").write_text("_target_: wandb_networks.Linear")
    Path("own/wandb_networks.py").write_text(NETWORK)
    own = ("model=mine", "--config-dir", "own")
    environment = {"PATH": os.environ["PATH"], "HOME": os.getcwd(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for words in (
        ["train", *last_wins(*TINY, *own), "logger=wandb", "logger.wandb.mode=offline"],
        ["mirror", "wandb", "--mode", "offline"],
    ):
        said = subprocess.run(
            [sys.executable, "-m", "pgt", *words], env=environment, capture_output=True, text=True, check=True
        )
        assert "has failed" not in said.stdout
        [folder] = Path("runs").glob("custom/*")
        assert tags_in(folder) == ["wandb_networks.Linear", "synthetic"]
        shutil.rmtree(folder / "wandb")


NETWORK = """
from torch import nn


def Linear(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""


def tags_in(folder):
    """The tags of a run's only offline run."""
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    [run] = [record.run for record in finished_records(path) if record.WhichOneof("record_type") == "run"]
    return [*run.tags]
