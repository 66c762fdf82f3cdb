"""Configs of the user's own: found in their folders, and told from those that Hydra would compose wrongly."""

import sys
from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.config.choices import experiments
from pgt.config.compose import compose_all, compose_jobs
from pgt.config.resources import choices, own_conf
from pgt.core.errors import InputError
from pgt.launch.jobs import own_files, parse
from pgt.runs.folder import find
from tests.conftest import TINY, last_wins

EXPERIMENT = """# @package _global_
defaults:
  - override /method: mine
sweep: {method.alpha: [0.5, 0.25]}
"""
HEADER = "# @package _global_\n"


def write(name, text):
    path = Path("own", f"{name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def _own():
    write("experiment/my/grid", EXPERIMENT)
    write("method/mine", "defaults: [gc]\nlabel_smoothing: 0.1\n")
    write("start", "defaults: [train, _self_]\nseed: 7\n")


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize("folders", [["own"], ["file://own"], ["own", "own"]])
def test_own_choices_stand_beside_those_of_the_package_only_while_they_are_asked_for(folders):
    with own_conf(folders):
        assert "my/grid" in choices("experiment")
        assert "demo/bn" in choices("experiment")
        found = compose_all(["experiment=my/all"], multirun=True)
    assert [(c.experiment, c.method.alpha, c.method.label_smoothing) for c in found] == [
        ("my/grid", 0.5, 0.1),
        ("my/grid", 0.25, 0.1),
    ]
    assert "my/grid" not in choices("experiment")


@pytest.mark.usefixtures("_own")
def test_a_search_path_is_a_package_or_a_folder(monkeypatch):
    Path("own/__init__.py").touch()
    monkeypatch.syspath_prepend(".")
    for entry in ("pkg://own", "file://own", "own"):
        assert compose_all([f"hydra.searchpath=[{entry}]", "method=mine"])[0].method.label_smoothing == 0.1


def test_modules_are_found_in_the_folders_of_a_search_path():
    write("method/mine", "defaults: [baseline]\ntransforms: [{_target_: beside_it.nothing}]\n")
    Path("own/beside_it.py").write_text("def nothing(parameters, step):\n    pass\n")
    assert main(last_wins("train", *TINY, "hydra.searchpath=[file://own]", "method=mine")) == 0
    sys.modules.pop("beside_it")


@pytest.mark.parametrize("text", ["override /hydra/sweeper: optuna", "/experiment/searching"])
def test_a_sweeper_that_a_file_chooses_gets_the_intervals(text):
    write("experiment/searching", HEADER + "defaults:\n  - override /hydra/sweeper: optuna\n")
    write("experiment/search", HEADER + f"defaults:\n  - {text}\n")
    with own_conf(["own"]):
        jobs = compose_jobs(["experiment=search", "method.alpha=interval(0.1,1)", "seed=choice(0,1,2)"], multirun=True)
    assert jobs.searches
    assert [(config.method.alpha, config.seed) for config in jobs.configs] == [(0.1, 0), (1.0, 1), (1.0, 2)]


@pytest.mark.usefixtures("_own")
def test_own_experiments_train_and_stand_in_plan_table_and_status(capsys):
    own = ("--config-dir", "own")
    assert main(["plan", "experiment=my/grid", *TINY, *own]) == 0
    assert "2 distinct runs" in capsys.readouterr().out
    assert main(["train", "-m", "experiment=my/grid", "method.alpha=0.5", *TINY, "model=resnet20", *own]) == 0
    assert main(["train", "method=mine", *TINY, "model=resnet20", *own, "--config-name", "start"]) == 0
    assert [(s.experiment, s.seed) for _, s in find(Path("runs"))] == [(None, 7), ("my/grid", 0)]
    for command in ("table", "status"):
        capsys.readouterr()
        assert main([command, "my/grid"]) == 0
        assert "my/grid" in capsys.readouterr().out
    assert main(["table", "my/grit", *own]) == 2
    assert "did you mean my/grid?" in capsys.readouterr().err
    assert main(["train", "experiment=my/grid", "method.alpha=1", "--cfg", "job", *own]) == 0
    assert "label_smoothing: 0.1" in capsys.readouterr().out


@pytest.mark.usefixtures("_own")
def test_the_stored_command_stands_for_the_same_jobs(monkeypatch):
    """`pgt status --retry-failed` gives it again."""
    write("other/recipe/short", "defaults: [demo]\nepochs: 3\n")
    for words in (
        ["method=mine", "--config-dir", "own", "--config-name", "start"],
        ["--config-dir", "own", "--config-name", "start", "hydra.searchpath=[own/other]", "recipe=short"],
        ["method=mine", "--config-dir", "own"],
    ):
        given = parse(words)
        with own_files(given):
            jobs = compose_jobs(given.overrides)
        with monkeypatch.context() as patch:
            patch.chdir("/")
            again = parse(jobs.command)
            with own_files(again):
                assert compose_jobs(again.overrides).configs == jobs.configs
        assert jobs.configs[0].seed == (7 if "start" in words else 0)


@pytest.mark.parametrize(
    "text",
    [
        "defaults:\n  - override /hydra/launcher: slurm\n",
        "defaults:\n  - override /hydra/sweeper: optuna\n",
        "defaults:\n  - override /hydra/launcher: local\nhydra: {launcher: {cpus_per_job: 1}}\n",
    ],
)
@pytest.mark.parametrize("swept", ["my/a,my/b", "my/all", "glob(my/*)", "demo/nobn,my/a", "my/a,demo/nobn"])
def test_experiments_that_choose_a_launcher_do_not_share_a_sweep(text, swept):
    for name in "ab":
        write(f"experiment/my/{name}", f"# @package _global_\n{text}")
    with own_conf(["own"]):
        with pytest.raises(InputError, match="the swept choices set some: give them on the command line"):
            compose_all([f"experiment={swept}"], multirun=True)
        assert compose_all(["experiment=my/a", "method=baseline,pgt"], multirun=True)


def test_a_group_that_the_sweep_alone_chooses_may_be_missing_without_it():
    write("mine", "defaults:\n  - train\n  - override /model: ???\n  - _self_\n")
    with own_conf(["own"], "mine"):
        configs = compose_all(["experiment=demo/bn", "model=resnet20,resnet20_nobn"], multirun=True)
    assert [config.model.name for config in configs] == ["resnet20", "resnet20_nobn"]


def test_options_of_a_launcher_in_several_experiments_must_be_the_same():
    for name, seed, partition in (("a", 1, "gpu"), ("b", 2, "cpu")):
        options = f"hydra: {{launcher: {{partition: {partition}}}}}"
        write(f"experiment/my/{name}", f"# @package _global_\nseed: {seed}\n{options}\n")
    with own_conf(["own"]):
        for more in ([], ["hydra.launcher.qos=high"]):
            with pytest.raises(InputError, match="the swept choices set some"):
                compose_all(["experiment=my/a,my/b", "hydra/launcher=slurm", *more], multirun=True)
        given = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
        assert compose_all(["experiment=my/a,my/b", *given], multirun=True)


@pytest.mark.parametrize("time", ["4:00:00", "10:30", "240"])
def test_a_time_in_a_file_needs_quotes(time):
    """YAML reads the first two as numbers of seconds, which would be minutes to sbatch."""
    write("hydra/launcher/mine", f"defaults: [slurm]\ntime: {time}\n")
    write("hydra/launcher/quoted", f"defaults: [slurm]\ntime: '{time}'\n")
    with own_conf(["own"]):
        with pytest.raises(InputError, match=r"hydra.launcher.time must be in quotes in a file: '4:00:00', or '240'"):
            compose_all(["hydra/launcher=mine"])
        assert compose_jobs(["hydra/launcher=quoted"]).hydra.launcher.time == time
        assert compose_jobs(["hydra/launcher=mine", "hydra.launcher.time=240"]).hydra.launcher.time == 240


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--config-dir", "nowhere"], "no folder nowhere"),
        (["hydra.searchpath=[pkg://no_such_package.conf]"], "no folder no_such_package.conf"),
        (["--config-name", "nothing"], "no nothing.yaml"),
        (["--config-path", "own"], "--config-dir"),
        (["--config-dir"], "expected one argument"),
    ],
)
def test_a_folder_that_is_not_there_gets_one_line(capsys, arguments, fact):
    assert main(["train", "seed=0", *arguments]) == 2
    err = capsys.readouterr().err
    assert fact in err
    assert err.count("\n") == 1


def test_a_file_with_a_name_of_the_package_is_refused_since_hydra_would_not_read_it():
    for name in ("method/pgt", "hydra/launcher/local", "train"):
        write(name, "alpha: 0.9")
        with pytest.raises(InputError, match=rf"own/{name}.yaml has the name"), own_conf(["own"]):
            pass
        Path("own", f"{name}.yaml").unlink()


def test_a_primary_config_may_name_more_folders(monkeypatch):
    monkeypatch.setenv("HERE", str(Path.cwd()))
    write("../other/recipe/short", "defaults: [demo]\nepochs: 7\n")
    for folder in ("file://other", "'file://${oc.env:HERE}/other'"):
        write("start", f"defaults: [train, _self_]\nhydra: {{searchpath: [{folder}]}}\n")
        with own_conf(["own"], "start"):
            assert compose_all(["recipe=short"])[0].recipe.epochs == 7


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("sweep: {seed: [1, 2]}\n", ["a sweep belongs in the file of an experiment"]),
        ("recipe.epochs: 3\n", ["write `recipe: {epochs: ...}`"]),
        ("hydra: {sweeper: {params: {seed: '0,1'}}}\n", ["a sweep belongs in the file of an experiment: sweep: {"]),
        ("hydra: {searchpath: file://other}\n", ["hydra.searchpath must be a list"]),
        ("hydra: {searchpath: ['${oc.env:NOT_SET}/x']}\n", ["hydra.searchpath cannot be resolved", "NOT_SET"]),
        ("hydra: {job: {chdir: true}}\n", ["leave out hydra.job.chdir"]),
        ("hydra: {searchpath: [nowhere]}\n", ["no folder nowhere"]),
    ],
)
def test_a_faulty_primary_config_is_named_with_the_mend(capsys, text, facts):
    write("start", f"defaults: [train, _self_]\n{text}")
    assert main(["train", "-m", "experiment=demo/bn", "--config-dir", "own", "--config-name", "start"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(fact in said for fact in facts), said


def test_an_experiment_goes_through_the_values_of_the_one_that_it_builds_on():
    write("experiment/grid", HEADER + "defaults: [demo/bn]\nsweep: {method.alpha: [0.5, 0.25], seed: [1, 2]}\n")
    write("experiment/more", HEADER + "defaults: [/experiment/grid, _self_]\nsweep: {seed: [3]}\n")
    with own_conf(["own"]):
        found = compose_all(["experiment=more"], multirun=True)
        with pytest.raises(InputError, match=r"is a sweep over method\.alpha, seed"):
            compose_all(["experiment=more"])
    assert [(c.method.alpha, c.seed) for c in found] == [(0.5, 3), (0.25, 3)]


def test_what_an_experiment_sets_itself_is_not_swept():
    write(
        "experiment/grid", HEADER + "defaults: [demo/bn]\nsweep: {method.alpha: [0.5, 0.25], method: [pgt, gc_pgt]}\n"
    )
    text = "defaults:\n  - grid\n  - override /method: agc_pgt\nmethod: {alpha: 0.1}\n"
    write("experiment/one", HEADER + text)
    with own_conf(["own"]):
        [config] = compose_all(["experiment=one"])
    assert (config.method.alpha, config.method.transforms[0].name) == (0.1, "agc")


def test_an_experiment_may_choose_a_launcher_that_builds_on_one_of_hydras():
    write("hydra/launcher/cluster", "defaults: [basic]\n")
    write("experiment/x", HEADER + "defaults:\n  - override /hydra/launcher: cluster\n")
    with own_conf(["own"]):
        assert compose_jobs(["experiment=x"]).hydra.runtime.choices["hydra/launcher"] == "cluster"


def test_a_list_of_experiments_may_name_all_of_another_folder():
    write("experiment/all", "experiments: [demo/all, tiny/bn]\n")
    write("experiment/mine/all", "experiments: [mine/all]\n")
    assert experiments("demo/all") == ["demo/bn", "demo/nobn"]
    with own_conf(["own"]):
        assert experiments("all") == ["demo/bn", "demo/nobn", "tiny/bn"]


def test_lists_of_experiments_that_name_each_other_end():
    write("experiment/a/all", "experiments: [b/all, demo/bn]\n")
    write("experiment/b/all", "experiments: [a/all, tiny/bn]\n")
    with own_conf(["own"]):
        assert experiments("a/all") == ["tiny/bn", "demo/bn"]


@pytest.mark.parametrize(
    ("files", "words", "facts"),
    [
        ({"method/a": "defaults: [b]\n", "method/b": "defaults: [a]\n"}, ["method=a"], ["builds on itself", "a -> "]),
        (
            {"method/a": "defaults: [a]\n", "experiment/x": "defaults:\n  - override /method: a\n"},
            ["experiment=x"],
            ["own/method/a.yaml", "is this file"],
        ),
        (
            {"method/a": "defaults: [gc]\nmethod.alpha: 1\n", "experiment/x": "defaults:\n  - override /method: a\n"},
            ["experiment=x"],
            ["own/method/a.yaml", "write `method: {alpha: ...}`"],
        ),
        ({"experiment/x": "hydra: {job: {chdir: true}}\n"}, ["experiment=x"], ["leave out hydra.job.chdir", "x.yaml"]),
    ],
)
def test_files_that_the_chosen_ones_name_are_checked(files, words, facts):
    for name, text in files.items():
        write(name, (HEADER if name.startswith("experiment") else "") + text)
    with own_conf(["own"]), pytest.raises(InputError) as refused:
        compose_all(words)
    assert all(fact in str(refused.value) for fact in facts), refused.value


def test_an_argument_of_a_function_of_ones_own_may_be_added_with_a_plus():
    write("model/net", "_target_: package.net\nwidth: 3\n")
    with own_conf(["own"]):
        [config] = compose_all(["model=net", "+model.dropout=0.3"])
        assert config.model.arguments == {"width": 3, "dropout": 0.3}
        with pytest.raises(InputError, match=r"unknown key 'model\.dropout'"):
            compose_all(["model=net", "model.dropout=0.3"])
        with pytest.raises(InputError, match=r"model has a mapping with keys of several kinds"):
            compose_all(["model=net", "model.width={1: a, b: c}"])
        assert compose_all(["model=net", "model.width={0: 0.1, 0.5: 0.2}"])[0].model.arguments["width"][0.5] == 0.2


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (HEADER + "recipe: {epochs: [1\n", ["line 3", "not valid YAML"]),
        (HEADER + "recipe:\n\t- 1\n", ["line 3", "not valid YAML"]),
        ("recipe: {epochs: 1}\n", ["# @package _global_"]),
        ("recipe: {epochs: 1}\n" + HEADER, ["# @package _global_"]),
        ("# Mine.\n" + HEADER + "recipe: {epochs: 1}\n", ["# @package _global_"]),  # Hydra does not see it there
        ("#" + HEADER + "recipe: {epochs: 1}\n", ["# @package _global_"]),
        ("- recipe\n", ["must be a mapping"]),
        ("42\n", ["mapping"]),
        ("", ["is empty"]),
        ("# a comment\n", ["is empty"]),
        (HEADER + "sweep: [1, 2]\n", ["sweep must map keys to lists"]),
        (HEADER + "sweep: {seed: 3}\n", ["sweep must map keys to lists"]),
        (HEADER + "sweep: {sed: [3, 4]}\n", ["unknown key 'sed'", "did you mean 'seed'?"]),
        (HEADER + "recipe: {epocs: 3}\n", ["unknown key 'recipe.epocs'", "did you mean 'recipe.epochs'?"]),
        (HEADER + "metod: {alpha: 3}\n", ["unknown key 'metod.alpha'", "did you mean 'method.alpha'?"]),
        (HEADER + "recipe: {epochs: many}\n", ["recipe.epochs must be a whole number, got many"]),
        (HEADER + "defaults:\n  - override /method: [gc, pgt]\n", ["override /method", "must be one choice"]),
        (HEADER + "defaults:\n  - override /modl: resnet20\n", ["`override /modl`", "write `override /model`"]),
        (HEADER + "defaults:\n  - override /: resnet20\n", ["names no group"]),
        (HEADER + "defaults:\n  - override /model: resnet21\n", ["model 'resnet21'", "did you mean 'resnet20'?"]),
        (HEADER + "defaults:\n  - override /model:\n", ["model 'null'", "resnet20"]),
        (HEADER + "defaults:\n  - override /logger: [wandb, nope]\n", ["logger 'nope'"]),
        (HEADER + "defaults:\n  - /model: resnet20\n", ["as `override /model: resnet20`"]),
        (HEADER + "defaults:\n  - override model: resnet20\n", ["as `override /model: resnet20`"]),
        (HEADER + "defaults:\n  - model: resnet20\n", ["as `override /model: resnet20`"]),
        (HEADER + "defaults:\n  - overide /model: resnet20\n", ["as `override /model: resnet20`"]),
        (HEADER + "defaults: {override /model: resnet20}\n", ["defaults: must be a list", "- override /model"]),
        (HEADER + "defaults:\n", ["defaults: must be a list"]),
        (HEADER + "defaults: [3]\n", ["`3`", "- override /model: resnet20"]),
        (HEADER + "defaults: [resnet20]\n", ["no file experiment/resnet20.yaml", "override /model: resnet20"]),
        (HEADER + "defaults: [/experiment/no/such]\n", ["no file experiment/no/such.yaml"]),
        (HEADER + "defaults: [my]\n", ["`my`: is this file"]),
        (HEADER + "defaults:\n  - override /model: resnet20\n  - demo/bn\n", ["`demo/bn` must come before"]),
        (
            HEADER + "defaults:\n  - override /model: resnet20\n  - override /model: resnet50\n",
            ["one line"],
        ),
        ("\ufeff" + HEADER + "recipe: {epochs: 1}\n", ["byte-order mark", "save it"]),
        (HEADER + "recipe.epochs: 3\n", ["write `recipe: {epochs: ...}`"]),
        (HEADER + "hydra.launcher.nodes: 3\n", ["write `hydra: {launcher: {nodes: ...}}`"]),
        (HEADER + "hydra: {launcher: local}\n", ["`- override /hydra/launcher: local`"]),
        (HEADER + "hydra: {sweeper: optuna}\n", ["`- override /hydra/sweeper: optuna`"]),
        (HEADER + "hydra: 3\n", ["hydra must be a mapping"]),
        (HEADER + "method: {transforms: {name: gc}}\n", ["method.transforms must be a list"]),
        (HEADER + "recipe: [3]\n", ["recipe must be a mapping"]),
        (HEADER + "hydra: {sweeper: {params: {seed: '0,1'}}}\n", ["sweep: {"]),
        (HEADER + "hydra: [1]\n", ["hydra must be a mapping"]),
    ],
)
def test_a_faulty_experiment_is_named_with_the_place_and_the_mend(text, facts):
    write("experiment/my", text)
    with own_conf(["own"]), pytest.raises(InputError) as refused:
        compose_all(["experiment=my"], multirun=True)
    said = str(refused.value)
    assert "\n" not in said
    assert "own/experiment/my.yaml" in said
    assert all(fact in said for fact in facts), said


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("alpha: 0.3\n", ["lacks implementation, label_smoothing", "add the line `defaults: [baseline]`"]),
        ("defaults: [baseline]\ntransforms: {name: gc}\n", ["method.transforms must be a list"]),
        ("defaults: [baseline]\nmethod.alpha: 0.3\n", ["'method.alpha'", "write `method: {alpha: ...}`"]),
    ],
)
def test_a_faulty_method_is_named_with_the_mend(text, facts):
    write("method/mine", text)
    with own_conf(["own"]), pytest.raises(InputError) as refused:
        compose_all(["method=mine"])
    said = str(refused.value)
    assert "own/method/mine.yaml" in said
    assert said.count("missing") == 0
    assert all(fact in said for fact in facts), said


def test_a_method_that_the_command_line_completes_trains_without_defaults():
    write("method/mine", "implementation: exact\nlabel_smoothing: 0\nsmoothing: paper\ntransforms: []\nalpha: ???\n")
    with own_conf(["own"]):
        assert compose_all(["method=mine", "method.alpha=0.3"])[0].method.alpha == 0.3


def test_a_folder_with_the_name_of_a_file_is_no_choice(capsys):
    Path("own/experiment/my.yaml").mkdir(parents=True)
    with own_conf(["own"]):
        assert "my" not in choices("experiment")
    assert main(["plan", "experiment=my", "--config-dir", "own"]) == 2
    assert "did you mean 'my'" not in capsys.readouterr().err


def test_a_wrong_value_of_the_command_line_is_not_blamed_on_a_file():
    write("experiment/my", HEADER + "recipe: {epochs: 3}\n")
    with own_conf(["own"]), pytest.raises(InputError) as refused:
        compose_all(["experiment=my", "recipe.epochs=x"])
    assert "my.yaml" not in str(refused.value)


def test_a_faulty_file_that_an_experiment_builds_on_is_named():
    write("experiment/base", HEADER + "recipe: {epochs: [1\n")
    write("experiment/my", HEADER + "defaults: [/experiment/base, _self_]\nseed: 3\n")
    with own_conf(["own"]), pytest.raises(InputError, match=r"own/experiment/base.yaml, line 3"):
        compose_all(["experiment=my"])
