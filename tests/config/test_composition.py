import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pgt.config.compose import compose_job
from pgt.config.composition import compose, composed, forget, in_hydra
from pgt.core.errors import InputError


@pytest.fixture(autouse=True)
def _in_hydra():
    forget()
    with in_hydra():
        yield


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=demo/bn", "seed=3", "recipe.lr_peak=0.2", "model=resnet20"],
        ["recipe.epochs=3", "paths.runs='a b'", "method.alpha=null", "logger.wandb.tags=[a,'x,y']", "logger=wandb"],
        ["recipe={epochs: 3, lr_peak: 0.1}", "recipe.epochs=4"],
        ["recipe.epochs=40", "recipe={epochs: 30}"],
        ["paths.runs=y", "paths={runs: x}", "hydra.job.env_copy=[HOME]"],
        ["logger=wandb", "logger.wandb.tags=[a,c]", "logger.wandb.tags.0=b"],
        ["recipe.epochs=${seed}0", "logger=wandb", "logger.wandb.group=${hydra:job.override_dirname}"],
        ["hydra/launcher=slurm", "hydra.launcher.nodes=2", "trainer.devices=8"],
        ["recipe.epochs=3", "hydra.job.config.override_dirname={exclude_keys: [seed], kv_sep: '-'}", "seed=1"],
        ["+recipe.more=1", "recipe.epochs=3"],
        ["++recipe.epochs=3", "recipe.epochs=4"],
        ["recipe.epochs=3", "~recipe.epochs"],
        ["~logger", "seed=2"],
    ],
)
def test_values_are_set_as_hydra_sets_them(overrides):
    expected = hydra.compose("train", overrides, return_hydra_config=True)
    for _ in range(2):  # what the first call composed is not changed by it
        assert OmegaConf.to_container(compose(overrides)) == OmegaConf.to_container(expected)


def test_a_hydra_that_is_at_work_is_put_back():
    at_work = GlobalHydra.instance().hydra
    assert at_work is not None
    compose_job(["experiment=demo/bn"])
    assert GlobalHydra.instance().hydra is at_work


def test_a_sweep_over_values_is_composed_once(monkeypatch):
    calls = []
    real = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
    wanted = [(alpha, seed) for alpha in (0.1, 0.2) for seed in (0, 1)]
    found = [compose(["method=pgt", f"method.alpha={alpha}", f"seed={seed}"]) for alpha, seed in wanted]
    assert [(one.method.alpha, one.seed) for one in found] == wanted
    assert len(calls) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        "recipe.epochs.more=3",
        "recipe.no_such=1",
        "seed.x={a: 1}",
        "seed@model=3",
        "method.transforms.a=1",
        "recipe.epochs=glob(*)",
    ],
)
def test_what_is_wrong_is_said_as_by_hydra(wrong):
    with pytest.raises(InputError) as hydras:
        composed(["seed=1", wrong])
    with pytest.raises(InputError) as ours:
        compose(["seed=1", wrong])
    assert str(ours.value) == str(hydras.value)
