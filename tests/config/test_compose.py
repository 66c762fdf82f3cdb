import itertools
import shlex
from pathlib import Path

import pytest

from pgt.config.compose import compose_all, compose_jobs, expand
from pgt.config.composition import in_hydra
from pgt.config.grammar import parse, written
from pgt.config.identity import group_id, identity, run_id
from pgt.config.resources import choices, conf_dir, read_conf
from pgt.core.errors import InputError
from pgt.core.registry import DATA_SETS, PARAMETERS
from pgt.data import open_set
from pgt.methods import ALTERATIONS, LOSSES, TRANSFORMS
from pgt.models import MODELS
from tests.conftest import compose


@pytest.fixture
def _data_sets(monkeypatch):
    for name in ("IMAGENET", "TINY_IMAGENET", "TINY_IMAGENET_20", "CIFAR"):
        monkeypatch.setenv(name, ".")


def jobs_of(overrides):
    """The overrides of each job of a sweep."""
    with in_hydra():
        return expand(overrides, multirun=True)


def refused(*overrides):
    """What is said of overrides that cannot be run."""
    with pytest.raises(InputError) as caught:
        compose_all(overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("_data_sets")
def test_every_experiment_composes_and_is_short():
    names = choices("experiment")
    assert len(names) > 40
    grids = [name for name in names if "sweep" in read_conf(f"experiment/{name}")]
    single = [name for name in names if name not in grids]
    composed = compose_all([f"experiment={','.join(single)}"], multirun=True)
    for grid in grids:
        first = [f"{key}={values[0]}" for key, values in read_conf(f"experiment/{grid}")["sweep"].items()]
        composed += compose_all([f"experiment={grid}", *first])
    assert [config.experiment for config in composed] == single + grids
    for name in names:
        lines = (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
        assert lines[0] == "# @package _global_"
        assert any(line.startswith("# pgt train ") and f"experiment={name}" in line for line in lines[1:4])
        assert len(lines) <= 12


@pytest.mark.parametrize("group", ["model", "data", "recipe", "schedule", "method", "trainer", "logger"])
@pytest.mark.usefixtures("_data_sets")
def test_every_choice_of_every_group_composes(group):
    for choice in choices(group):
        named = {"imagefolder": ["data.root=."], "timm": ["model.name=timm/resnet18"]}.get(choice, [])
        part = getattr(compose(f"{group}={choice}", *named), group)
        assert getattr(part, "name", choice).split("/")[0] == choice


def test_schema_groups_and_code_name_the_same_things():
    assert choices("model") == sorted([*MODELS, "timm"])
    assert sorted(MODELS) == sorted(PARAMETERS)
    for name in MODELS:
        assert compose(f"model={name}").model.name == name
    assert choices("data") == sorted(DATA_SETS)
    used = {t.name for choice in choices("method") for t in compose(f"method={choice}").method.transforms}
    assert used == {*TRANSFORMS, *ALTERATIONS}, "a transform that no method offers"
    for implementation in LOSSES:
        assert compose(f"method.implementation={implementation}").method.implementation == implementation
    assert open_set.__doc__ is not None
    assert all(f"`{name}`" in open_set.__doc__ for name in DATA_SETS)


@pytest.mark.parametrize("typo", ["runs.dir=x", "hydr=1"])
def test_a_hint_never_names_keys_of_hydra(typo):
    with pytest.raises(InputError, match="unknown key") as refused:
        compose(typo)
    assert "hydra" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (["metod.alpha=0.5"], ["unknown key 'metod.alpha'", "did you mean 'method.alpha'?"]),
        (["metod=pgt"], ["unknown key 'metod'", "did you mean 'method'?"]),
        (["method=pgtt"], ["unknown method 'pgtt'", "did you mean 'pgt'?"]),
        (["experiment=demo/bm"], ["unknown experiment 'demo/bm'", "did you mean 'demo/bn'?"]),
        (["data.root=x"], ["unknown key 'data.root'", "data=cifar10 or cifar100 or imagefolder or imagenet or tiny"]),
        (["+nonsense=1"], ["unknown key 'nonsense'", "`pgt train --cfg job`"]),
        (["recipe=3"], ["unknown recipe '3'", "authors, demo, paper"]),
        (["recipe.epochs.x=3"], ["unknown key 'recipe.epochs.x'", "did you mean 'recipe.epochs'?"]),
        (["method.alpha=1.3"], ["method.alpha must lie in [0, 1], got 1.3"]),
        (["method.alpha=nan"], ["method.alpha must be finite, got nan"]),
        (["method.alpha=big"], ["method.alpha must be a number, got big"]),
        (["method.alpha=true"], ["method.alpha must be a number, got True"]),
        (["recipe.epochs=3.0"], ["recipe.epochs must be a whole number, got 3.0"]),
        (["recipe.epochs=true"], ["recipe.epochs must be a whole number, got True"]),
        (["recipe.epochs=null"], ["recipe.epochs must not be null"]),
        (["trainer.force=maybe"], ["trainer.force must be true or false, got maybe"]),
        (["seed=-1"], ["seed must lie in [0, 4294967295], got -1"]),
        (["seed=100000000000000000000"], ["seed must lie in [0, 4294967295], got 100000000000000000000"]),
        (["recipe.lr_peak=0"], ["recipe.lr_peak must be above 0, got 0"]),
        (["record.norms_every=-1"], ["record.norms_every must be at least 0, got -1"]),
        (["record=3"], ["record must be a mapping, got 3"]),
        (["trainer.precision=fp8"], ["trainer.precision must be one of fp32, tf32, bf16, fp16, fp64; got fp8"]),
        (["model.name=lenet"], ["model.name must be one of resnet18, ", "; got lenet"]),
        (["schedule=step", "schedule.milestones=[x]"], ["schedule.milestones.0 must be a whole number, got x"]),
        (["data=imagefolder"], ["data.root is missing: add data.root=..."]),
        (["~recipe"], ["recipe is missing: add recipe=..."]),
        (["paths.runs="], ["paths.runs must not be empty"]),
        (["method.alpha=${oc.env:NOT_SET}"], ["method.alpha is missing: export NOT_SET=... or add method.alpha=..."]),
        (["recipe.epochs=${nope}"], ["recipe.epochs", "'nope' not found"]),
        (["seed=0,1"], ["'seed=0,1' is a sweep: add -m"]),
        (["/tmp"], ["cannot read the override '/tmp': write key=value"]),  # a folder, as other programs take it
        ([""], ["cannot read the override '': write key=value"]),
        (["logger=wandb", "logger.wandb.name=tags", "logger.wandb.tags=3"], ["logger.wandb.tags must be a list"]),
        (["=3"], ["cannot read the override '=3': write key=value"]),
        (["demo/bn"], ["write experiment=demo/bn"]),
        (["demo"], ["-m experiment=demo/all"]),
        (["demo/all"], ["-m experiment=demo/all"]),
        (["experiment", "demo/bn"], ["write experiment=NAME", "without spaces"]),
        (["resnet50"], ["write model=resnet50"]),
        (["method.alpha", "=", "0.3"], ["write key=value, without spaces around ="]),
        (["method.alpha=", "0.3"], ["write key=value, without spaces around ="]),
        (["method=pgt alpha=0.3"], ["for 2 overrides write method=pgt alpha=0.3", "method='pgt alpha=0.3'"]),
        (["experiment=demo"], ["'demo' is a folder", "-m experiment=demo/all"]),
        (["experiment=mine/small"], ["unknown experiment", "--config-dir missing?"]),
        (["logger=wandb,tensorboard"], ["logger=[wandb,tensorboard]"]),
        (["alpha=0.3"], ["did you mean 'method.alpha'?"]),
        (["epochs=3"], ["did you mean 'recipe.epochs'?"]),
        (["recipe.batch_size=64"], ["did you mean 'recipe.global_batch'?"]),
        (["learning_rate=1"], ["did you mean 'recipe.lr_peak'?"]),
        (["recipe.lr=0.1"], ["did you mean 'recipe.lr_peak'?"]),
        (["lr=0.1"], ["'recipe.lr_peak'"]),
        (["launcher=local"], ["did you mean 'hydra/launcher'?"]),
        (["logger.wandb.mode=offline"], ["it goes with logger=wandb"]),
        (["model.name=mobilenetv3_small_050"], ["model.name=timm/mobilenetv3_small_050"]),
        (["recipe=null"], ["unknown recipe 'null'", "authors, demo, paper"]),
        (["model="], ["unknown model ''", "resnet18"]),
        (["logger=null"], ["unknown logger 'null'", "none, tensorboard, wandb"]),
        (["experiment=null"], ["unknown experiment 'null'", "demo"]),
        (["method=[]"], ["method takes one choice", "agc_pgt"]),
        (["method=[gc,pgt]"], ["method takes one choice", "method=gc_pgt", "-m method=gc,pgt"]),
        (["model=[resnet18]"], ["model takes one choice", "model=resnet18"]),
        (["recipe=[demo,paper]"], ["recipe takes one choice"]),
        (["schedule=[cosine,step]"], ["schedule takes one choice"]),
        (["experiment=[demo/bn,demo/nobn]"], ["experiment takes one choice", "-m experiment=demo/bn,demo/nobn"]),
        (["seed=1", "seed=2"], ["seed is set twice", "'seed=1'", "'seed=2'"]),
        (["method.alpha=0.1", "+method.alpha=0.2"], ["method.alpha is set twice"]),
        (["seed=glob(*)"], ["'seed=glob(*)' fits no choice", "method=glob(gc*)"]),
        (["method=glob(x*)"], ["'method=glob(x*)' fits no choice"]),
        (["hydra.mode=MULTIRUN"], ["leave out 'hydra.mode=MULTIRUN'", "-m"]),
        (["hydra.job.chdir=true"], ["leave out 'hydra.job.chdir=true'"]),
        (["hydra.sweeper.params={seed: 1}"], ["leave out 'hydra.sweeper.params={seed: 1}'", "-m seed=0,1"]),
        (["hydra.searchpath=own"], ["hydra.searchpath must be a list"]),
        (["schedule=step", "schedule.milestones=30"], ["schedule.milestones=[30]", "got 30"]),
        (["schedule=step", "recipe.epochs=12", "schedule.milestones=[6,12,30]"], ["epoch 12 is never", "epochs=12"]),
        (["schedule=step", "recipe.epochs=90"], ["epoch 90 is never reached", "schedule.milestones=[45,67]"]),
        (["schedule=step", "schedule.milestones=[-1]"], ["schedule.milestones must be epochs from 1 on", "[-1]"]),
        (["schedule=step", "schedule.milestones=[0]"], ["schedule.milestones must be epochs from 1 on", "[0]"]),
        (["schedule=step", "schedule.milestones=[2,2]"], ["each later than the one before", "[2, 2]"]),
        (["schedule=step", "schedule.milestones=[30,10]"], ["each later than the one before", "[30, 10]"]),
        (["method.transforms=[gc]"], ["method.transforms.0 must be a mapping with a name", "got gc"]),
        (["method.transforms=[{name: nope}]"], ["transforms.0.name must be one of gc, value, agc, ", "; got nope"]),
        (["method.transforms=[{name: gc, norm: 1}]"], ["unknown key 'method.transforms.0.norm'"]),
        (
            ["method=agc", "method.transforms.0.clip_factor=-1"],
            ["method.transforms.0.clip_factor must be above 0, got -1"],
        ),
        (
            ["method=agc", "method.transforms.0.exclude='(fc'"],
            ["method.transforms.0.exclude is no regular expression: missing )"],
        ),
        (
            ["method=amplification", "method.transforms.0.epochs=[[5,3]]"],
            ["method.transforms.0.epochs.0 must be [first, end) of a phase", "got [5, 3]"],
        ),
        (
            ["method=amplification", "method.transforms.0.epochs=[[0,9],[100,120]]"],
            ["method.transforms.0.epochs", "the phase [100, 120] begins after the last of recipe.epochs=100"],
        ),
        (
            ["method=amplification", "method.transforms.0.select=random"],
            ["method.transforms.0 needs a ratio with select=random"],
        ),
        (
            ["method=amplification", "method.transforms.0.ratio=0.5"],
            ["method.transforms.0 needs a ratio with select=random, and ratio=null without"],
        ),
        (["model=vgg19_bn", "model.stem=small"], ["unknown key 'model.stem'", "model=resnet101 or resnet18 or"]),
        (
            ["model=resnet18", "model.name=vgg19_bn", "model.stem=small"],
            ["vgg19_bn has no other stem: leave model.stem=small out"],
        ),
        (
            ["recipe.global_batch=100"],
            ["recipe.global_batch (100) must be a multiple of recipe.local_batch (256): add recipe.local_batch=100"],
        ),
        (
            ["method.implementation=surrogate", "method.alpha=0"],
            ["no gradient at method.alpha=0: use method.implementation=exact"],
        ),
        (["model=resnet50", "recipe.local_batch=null"], ["resnet50 has batch norm", "set recipe.local_batch", "=1024"]),
        (
            ["model=resnet18_nobn", "method=authors_hook", "recipe.local_batch=null"],
            ["authors' hook", "set recipe.local_batch (recipe.local_batch=1024: "],
        ),
        (["trainer.devices=3"], ["3 devices cannot share recipe.global_batch=1024", "trainer.devices to 2 or 4"]),
        (["recipe.epochs=3"], ["recipe.epochs (3) must exceed recipe.warmup_epochs"]),
        (["sweep.seed=[7]"], ["leave out 'sweep.seed=[7]'", "seed=0,1"]),
        (["hydra.job={chdir: true}"], ["leave out hydra.job.chdir: "]),
        (["hydra.sweeper.max_batch_size=0"], ["hydra.sweeper.max_batch_size must be at least 1, got 0"]),
        (["~method.transforms.0", "method=gc"], ["'~method.transforms.0'", "give the whole list"]),
        (["~recipe.momentum"], ["recipe.momentum is missing: add recipe.momentum=..."]),
        (["recipe={epochs: x}"], ["recipe.epochs must be a whole number, got x"]),
        (["schedule=step", "schedule.milestones=30,60"], ["'schedule.milestones=[30,60]'"]),
        (["logger=wandb", "logger.wandb.tags=a,b"], ["'logger.wandb.tags=[a,b]'"]),
        (["model.name=resnet50"], ["model.name=resnet50 goes with model=resnet50"]),
        (["model.name=resnet50", "model=timm"], ["model.name=resnet50 goes with model=resnet50"]),
        (["paths.runs=2024_01_02"], ["read as the number 20240102", "\"paths.runs='2024_01_02'\""]),
        (["paths.runs=1.10"], ["\"paths.runs='1.10'\""]),
        (["logger=wandb", "logger.wandb.group=1e3"], ["\"logger.wandb.group='1e3'\""]),
        (["paths.runs='${now:%Y}'"], ["paths.runs must name the same folder each time", "leave out ${now:%Y}"]),
        (["paths.runs='r/${hydra:job.num}'"], ["paths.runs must name the same folder each time"]),
        (["paths.runs='r/${ now:%Y}'"], ["paths.runs must name the same folder each time"]),
        (["paths.runs='r/${oc.env:SLURM_JOB_ID,x}'"], ["paths.runs must name the same folder each time"]),
        (["data=imagefolder", "data.root=a,b"], ["'data.root=a,b' is a sweep", "\"data.root='a,b'\""]),
        (["data=cifar10", "data.root=a,b"], ["'data.root=a,b' is a sweep", "\"data.root='a,b'\""]),
    ],
)
def test_bad_input_is_named_with_what_must_be_and_how_to_mend_it(overrides, facts):
    said = refused(*overrides)
    assert all(fact in said for fact in facts), said


@pytest.mark.parametrize("runs", ["2024", "'2024_01_02'", "'1.10'"])
def test_a_folder_may_look_like_a_number(runs):
    assert compose(f"paths.runs={runs}").paths.runs == runs.strip("'")


def test_a_folder_may_be_that_of_the_command():
    runs = compose("paths.runs='${hydra:runtime.cwd}/r/${hydra:job.name}'").paths.runs
    assert runs.startswith(f"{Path.cwd()}/r/")


@pytest.mark.parametrize("value", ["null", "'2024_01_02'", '"it\'s"'])
def test_values_reach_each_job_of_a_sweep_over_a_group_as_they_are_written(value):
    key = "logger.wandb.group"
    jobs = compose_jobs(["method=baseline,pgt", "logger=wandb", f"{key}={value}"], multirun=True)
    [alone] = compose_all(["method=pgt", "logger=wandb", f"{key}={value}"])
    by_hydra = [compose(*job).logger for job in jobs_of(jobs.overrides)]
    assert [config.logger for config in jobs.configs] == by_hydra == [alone.logger] * 2


@pytest.mark.parametrize("exclude", ["null", "bias"])
def test_a_key_that_only_the_swept_choices_have_is_given_to_each_job(exclude):
    jobs = compose_jobs(["method=agc,agc_pgt", f"method.transforms.0.exclude={exclude}"], multirun=True)
    wanted = None if exclude == "null" else exclude
    for config in (*jobs.configs, *(compose(*job) for job in jobs_of(jobs.overrides))):
        assert config.method.transforms[0].exclude == wanted


def test_a_text_that_such_a_sweep_would_change_is_refused():
    with pytest.raises(InputError, match="give each choice a command of its own"):
        compose_all(["method=agc,agc_pgt", "method.transforms.0.exclude='1'"], multirun=True)


@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        ("range(0.1,0.4,0.1)", [0.1, 0.2, 0.3, 0.4]),
        ("sort(range(0.05,0.16,0.05))", [0.05, 0.1, 0.15]),
        ("range(1,3)", [1, 2]),
        ("range(1e-13,3e-13,1e-13)", [1e-13, 2e-13]),
    ],
)
def test_a_range_of_decimals_has_the_values_that_one_would_write(sweep, values):
    jobs = compose_jobs([f"recipe.lr_peak={sweep}"], multirun=True)
    assert [config.recipe.lr_peak for config in jobs.configs] == values
    assert [compose(*job).recipe.lr_peak for job in jobs_of(jobs.overrides)] == values


@pytest.mark.parametrize("text", ["1", "true", "null", "1e-3", "007", "a,b", "a b", "it's", "", "plain", "1_0", "${x}"])
def test_a_text_of_a_file_is_written_so_that_it_stays_a_text(text):
    value = parse(f"key={written(text)}").value()
    assert getattr(value, "text", value) == text
    for one in parse(f"key={written(text)},other").sweep_string_iterator():
        again = parse(f"key={one}").value()
        assert getattr(again, "text", again) in (text, "other")


LOCAL, SLURM = "hydra/launcher=local", "hydra/launcher=slurm"


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (["hydra.launcher=local"], ["write hydra/launcher=local"]),
        (["hydra.launcher=null"], ["write hydra/launcher=basic"]),
        (["hydra.sweeper=optuna"], ["write hydra/sweeper=optuna"]),
        (["hydra/launcher=slrum"], ["unknown hydra/launcher 'slrum': did you mean 'slurm'?", "basic", "local, slurm"]),
        (["hydra/launcher=xyz"], ["unknown hydra/launcher 'xyz': choose one of basic", "local, slurm"]),
        (["hydra/sweeper=bsic"], ["unknown hydra/sweeper 'bsic': did you mean 'basic'?"]),
        ([LOCAL, "hydra.launcher.cpus_per_job=two"], ["hydra.launcher.cpus_per_job must be a whole number, got two"]),
        ([LOCAL, "hydra.launcher.cpus_per_job=1.5"], ["cpus_per_job must be a whole number, got 1.5"]),
        ([LOCAL, "hydra.launcher.cpus_per_job=0"], ["hydra.launcher.cpus_per_job must be at least 1, got 0"]),
        ([LOCAL, "hydra.launcher.cpus_per_job=${nope}"], ["hydra.launcher.cpus_per_job cannot be resolved", "'nope'"]),
        ([LOCAL, "hydra.launcher.gpus_per_job=-1"], ["hydra.launcher.gpus_per_job must be at least 0, got -1"]),
        ([LOCAL, "hydra.launcher.gpu_per_job=1"], ["unknown key", "did you mean 'hydra.launcher.gpus_per_job'?"]),
        ([LOCAL, "+hydra.launcher.gpu_per_job=1"], ["unknown key", "did you mean 'hydra.launcher.gpus_per_job'?"]),
        ([LOCAL, "hydra.launcher.n_jobs=2"], ["hydra.launcher.n_jobs'", "choose one of hydra.launcher.cpus_per_job"]),
        (["hydra.launcher.partition=gpu"], ["it goes with hydra/launcher=slurm"]),
        ([SLURM, "hydra.launcher.partion=gpu"], ["'hydra.launcher.partition'?", "+hydra.launcher.partion=..."]),
        ([SLURM, "hydra.launcher.exclude=node7"], ["sbatch", "+hydra.launcher.exclude=..."]),
        ([SLURM, "hydra.launcher.nodes=1-2"], ["hydra.launcher.nodes must be a whole number, got 1-2"]),
        ([SLURM, "hydra.launcher.gpus_per_node=two"], ["gpus_per_node must be a whole number, or a type", "got two"]),
        ([SLURM, "hydra.launcher.wait=maybe"], ["hydra.launcher.wait must be true or false, got maybe"]),
        ([SLURM, "hydra.launcher.setup=x"], ["must be a list, as in hydra.launcher.setup=[x]"]),
        ([f"{LOCAL},slurm"], ["gives several values", "give hydra/launcher one value"]),
        ([SLURM, "hydra.launcher.partition=a,b"], ["one value, or if the comma", "\"hydra.launcher.partition='a,b'\""]),
        (["hydra.swep.dir=x"], ["unknown key 'hydra.swep.dir': did you mean 'hydra.sweep.dir'?"]),
        (["hydra.job.env_set={A:1}"], ["it takes new keys with a plus, +hydra.job.env_set=..."]),
        (["~hydra/launcher"], ["write hydra/launcher=basic"]),
        (["~hydra/sweeper"], ["write hydra/sweeper=basic"]),
        ([SLURM, "+hydra.launcher.comment=mine"], ["leave out hydra.launcher.comment: pgt finds the jobs"]),
        ([SLURM, "+hydra.launcher.signal=USR2@60"], ["hydra.launcher.signal: write hydra.launcher.warning=SECONDS"]),
        ([SLURM, "hydra.launcher.signal=USR2@60"], ["hydra.launcher.signal': write hydra.launcher.warning=SECONDS"]),
        ([SLURM, "+hydra.launcher.no-requeue=true"], ["leave out hydra.launcher.no-requeue: a job that is stopped"]),
        ([SLURM, "+hydra.launcher.array=0-3", "+hydra.launcher.output=x"], ["launcher.array: ", "launcher.output: "]),
        (
            [SLURM, "hydra.launcher.then='pgt report'", "hydra.sweeper.max_batch_size=2"],
            ["leave out hydra.launcher.then", "hydra.sweeper.max_batch_size"],
        ),
    ],
)
def test_options_of_launchers_are_checked_with_the_command_line(overrides, facts):
    said = refused(*overrides)
    assert "Could not" not in said
    assert all(fact in said for fact in facts), said


@pytest.mark.parametrize(
    "overrides",
    [
        [LOCAL],
        [LOCAL, "hydra.launcher.cpus_per_job=${recipe.epochs}"],
        [LOCAL, "hydra.launcher.gpus_per_job=0", "hydra.launcher.cpus_per_job=2"],
        [SLURM],
        [SLURM, "+hydra.launcher.mail_type=END", "hydra.launcher.gpus_per_node=a100:2", "hydra.launcher.nodes=2"],
        [SLURM, "hydra.launcher.time=240"],
        [SLURM, "hydra.launcher.time=4:00:00", "+hydra.launcher.comment=null"],
    ],
)
def test_options_of_launchers_that_can_be_used_are_taken(overrides):
    assert compose_all(overrides)


def test_all_that_is_wrong_is_told_at_once():
    choices = refused("method=pgtt", "model=resnet5")
    assert "'pgt'?" in choices
    assert "'resnet50'?" in choices
    keys = refused("method.alhpa=3", "trainer.precison=fp16", "method.alpha=2", "data=imagefolder")
    assert "'method.alpha'?" in keys
    assert "'trainer.precision'?" in keys
    assert "method.alpha must lie in [0, 1]" in keys
    assert "data.root is missing" in keys
    fit = refused("recipe.epochs=3", "recipe.global_batch=100")
    assert "must exceed" in fit
    assert "must be a multiple" in fit


def test_values_of_other_types_are_taken_where_the_meaning_is_plain():
    config = compose("method.alpha=1", "seed='3'", "paths.runs=2024", "trainer.force=yes", "recipe.epochs=${seed}0")
    assert (config.method.alpha, config.seed, config.paths.runs, config.recipe.epochs) == (1.0, 3, "2024", 30)
    assert isinstance(config.method.alpha, float)
    assert config.trainer.force is True


def test_run_ids_stay_what_they_are():
    """A finished run would be trained again if its id changed."""
    names = {"experiment=demo/bn": "2d4294a379e6", "method=agc_pgt recipe=demo model=resnet20": "c890ccebc37d"}
    assert {key: run_id(identity(compose(*key.split()))) for key in names} == names


def test_a_sweep_is_the_product_in_order():
    jobs = jobs_of(["method=gc,pgt", "seed=0,1", "recipe=demo"])
    assert jobs == [[f"method={m}", f"seed={s}", "recipe=demo"] for m, s in itertools.product(["gc", "pgt"], [0, 1])]


@pytest.mark.parametrize(
    "value", ["a=b", "a#b", "a(b", "Übung", "a&b", "a!b", "a'b", 'a"b', "a $x' b", "a(\\\\", "`a`{"]
)
def test_a_value_that_needs_quotes_is_shown_in_quotes_that_a_shell_takes(value):
    said = refused("data=imagefolder", f"data.root={value}")
    mended = shlex.split(said.partition(": write ")[2])
    assert len(mended) == 1
    assert compose("data=imagefolder", *mended).data.root == value


def test_a_comma_in_a_value_is_shown_in_quotes():
    said = refused("data=imagefolder", "data.root=/images,2")
    assert "add -m" in said
    mended = shlex.split(said.rpartition("write ")[2])
    assert compose("data=imagefolder", *mended).data.root == "/images,2"
    assert "'/" not in refused("model=resnet20,resnet50")


@pytest.mark.parametrize(
    ("value", "elements"),
    [
        ("[module load cuda,source ~/venv/bin/activate]", ["module load cuda", "source ~/venv/bin/activate"]),
        ("['a (b)', c(d]", ["a (b)", "c(d"]),
        ("""["it's, so",x#y]""", ["it's, so", "x#y"]),
    ],
)
def test_a_list_that_needs_quotes_is_shown_with_quotes_around_each_element(value, elements):
    said = refused(SLURM, f"hydra.launcher.setup={value}")
    [mended] = shlex.split(said.partition(": write ")[2])
    assert compose_jobs([SLURM, mended]).hydra.launcher.setup == elements


def test_a_sweep_without_values_is_refused():
    with pytest.raises(InputError, match=r"'seed=range\(0\)' is a sweep without a value"):
        compose_all(["seed=range(0)"], multirun=True)


def test_a_home_folder_is_named_in_full(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert refused("data.root=~/images").endswith("\"data.root='/home/ann/images'\"")


def test_glob_chooses_of_a_group_as_hydras_does_and_of_experiments_in_folders():
    methods = compose_all(["method=glob([pg*,gc],exclude=*_*)"], multirun=True)
    assert [(c.method.alpha, len(c.method.transforms)) for c in methods] == [(1.0, 1), (0.25, 0)]  # gc, pgt
    found = compose_all(["experiment=glob(demo/*)", "seed=range(2)"], multirun=True)
    assert [(c.experiment, c.seed) for c in found] == [(f"demo/{e}", s) for e in ("bn", "nobn") for s in (0, 1)]


def test_one_bad_job_refuses_the_sweep():
    with pytest.raises(InputError, match=r"method.alpha must lie in \[0, 1\], got 2.0"):
        compose_all(["method=pgt", "method.alpha=0.5,2"], multirun=True)


def test_a_sweep_that_names_a_run_twice_is_refused():
    with pytest.raises(InputError, match=r"two jobs .* are the same run: 'method=baseline method.alpha=0.5' and 'meth"):
        compose_all(["method=baseline,pgt", "method.alpha=0.5"], multirun=True)
    assert len(compose_all(["method=pgt", "method.alpha=1,0.5"], multirun=True)) == 2


def test_identity_has_what_changes_the_numbers_and_nothing_else():
    def name(*overrides):
        return run_id(identity(compose(*overrides)))

    base = name("method=pgt")
    assert name("method=baseline", "method.alpha=0.25") == base
    for same in ("paths.runs=elsewhere", "trainer.log_every=7", "trainer.force=true", "record.norms_every=50"):
        assert name("method=pgt", same) == base
    changed = [name(o) for o in ("seed=1", "method.alpha=0.5", "method=gc", "data=synthetic", "recipe=authors",
                                 "schedule=step", "model=resnet50", "trainer.precision=bf16")]  # fmt: skip
    assert len({base, *changed}) == len(changed) + 1
    folder = ["data=imagefolder", "data.root=a"]
    assert name(*folder) == name("data=imagefolder", "data.root=b", "data.workers=9")


def test_seeds_of_one_setting_share_a_group():
    first, second = (identity(compose(f"seed={seed}")) for seed in (0, 1))
    assert run_id(first) != run_id(second)
    assert group_id(first) == group_id(second) != group_id(identity(compose("method=gc")))


def test_a_key_that_came_later_leaves_the_ids_of_earlier_runs_alone():
    standard, small = compose("model.stem=standard"), compose("model.stem=small")
    assert identity(standard) == identity(compose())
    assert "stem" not in identity(standard)["model"]
    assert identity(small)["model"]["stem"] == "small"
    assert run_id(identity(small)) != run_id(identity(standard))
    assert run_id(identity(compose("experiment=demo/bn", "method=baseline"))) == "6d24d70f946f"  # in results/runs/demo


def test_amplification_lasts_until_the_first_drop_of_the_rate_unless_said_otherwise():
    def epochs(*overrides):
        return compose("method=amplification", *overrides).method.transforms[0].epochs

    assert epochs() == [[1, 100]]
    assert epochs("schedule=step") == [[1, 30]]
    assert epochs("recipe.epochs=8", "method.transforms.0.epochs=[[2,4],[6,8]]") == [[2, 4], [6, 8]]
