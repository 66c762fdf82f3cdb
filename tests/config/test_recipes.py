"""The numbers of the paper's text and of the authors' commands, spelled out: no config file vouches for another."""

import pytest

from pgt.training.schedule import build
from tests.conftest import compose

SAME = {"epochs": 100, "global_batch": 1024, "local_batch": 256, "warmup_epochs": 5, "momentum": 0.9,
        "weight_decay": 5e-4, "bn_statistics": "first", "lr_reference_batch": 1024}  # fmt: skip
RECIPES = {
    "paper": {"lr_start": 4e-4, "lr_peak": 0.4, "lr_end": 0.0, "lr_rule": "paper", "lr_scaling": "linear",
              "cooldown_epochs": 0},
    "authors": {"lr_start": 0.01, "lr_peak": 0.1, "lr_end": 1e-4, "lr_rule": "authors", "lr_scaling": "none",
                "cooldown_epochs": 10},
}  # fmt: skip

EPOCHS = (0, 5, 30, 60, 90)
RATES = {
    # 0.4·256/1024 = 0.1; then 0.05·(1 + cos(π·(epoch − 5)/95))
    ("table2/batch256_pgt", "paper"): (1e-4, 0.1, 0.0838641, 0.0377257, 0.00270914),
    ("table1/resnet18_step_pgt", "paper"): (4e-4, 0.4, 0.04, 0.004, 0.0004),
    # 0.1 at any batch; 1e-4 + 0.04995·(1 + cos(π·(epoch + 1)/90))
    ("table2/batch256_pgt", "authors"): (0.01, 0.0989085, 0.0735001, 0.0235805, 0.0001),
    ("table1/resnet18_step_pgt", "authors"): (0.01, 0.1, 0.01, 0.001, 0.0001),
}
"""Learning rates at the first step of `EPOCHS`, by experiment and recipe."""


@pytest.fixture(autouse=True)
def _imagenet(monkeypatch):
    monkeypatch.setenv("IMAGENET", "nowhere")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_this_and_nothing_else(name):
    config = compose(f"recipe={name}")
    assert config.recipe.model_dump() == SAME | RECIPES[name]
    assert config.method.smoothing == {"paper": "paper", "authors": "uniform"}[name]
    assert compose(f"recipe={name}", "method.smoothing=paper").method.smoothing == "paper"


@pytest.mark.parametrize("recipe", RECIPES)
def test_step_decay_is_a_tenth_at_three_epochs(recipe):
    schedule = compose("schedule=step", f"recipe={recipe}").schedule
    assert schedule.model_dump() == {"name": "step", "milestones": [30, 60, 90], "factor": 0.1}


@pytest.mark.parametrize(("experiment", "recipe"), RATES)
def test_an_experiment_trains_at_these_rates(experiment, recipe):
    config = compose(f"experiment={experiment}", f"recipe={recipe}")
    rate = build(config.recipe, config.schedule, 1000)
    assert [rate(1000 * epoch) for epoch in EPOCHS] == pytest.approx(RATES[experiment, recipe], rel=1e-5)
