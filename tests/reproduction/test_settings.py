"""Labels that say what differs, and which settings are shown."""

from pathlib import Path

import pytest

from pgt.reproduction.groups import telling
from pgt.reproduction.settings import foremost, label, method_names, ordered, recipe_names, settings
from pgt.runs import frame
from tests.reproduction.helpers import plant


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"method": "gc+pgt", "alpha": 0.25, "recipe.lr_peak": 0.1}, "gc+pgt α=0.25 lr_peak=0.1"),
        ({"method": "baseline", "alpha": 1.0}, "baseline"),
        ({"alpha": 1.0}, "α=1"),
        ({"experiment": "demo/bn", "data.name": "cifar10"}, "demo/bn cifar10"),
        ({"recipe.epochs": 3, "schedule.epochs": None}, "recipe.epochs=3 schedule.epochs=null"),
        ({"method": "gc", "method.transforms.0.max_norm": 2, "method.transforms.0.clip_factor": None}, "gc max_norm=2"),
        ({"method": "gc", "method.label_smoothing": 0.0, "recipe.local_batch": None}, "gc local_batch=null"),
        ({"method": "pgt", "alpha": 0.5, "method.label_smoothing": 0.1}, "pgt α=0.5 label_smoothing=0.1"),
        ({"method.transforms.0.max_norm": None}, "max_norm=null"),
        ({}, ""),
    ],
)
def test_a_label_is_as_short_as_it_can_be(values, text):
    assert label(values) == text


def test_only_what_differs_is_told_and_once():
    for model in ("resnet20", "resnet18"):  # the interpolation of the evaluation changes with the network
        for method in ("baseline", "pgt"):
            plant("demo/bn", method, 0, 90.0, 80.0, overrides=[f"model={model}"])
    runs = frame("runs")
    assert telling(runs, recipe_names(runs)) == ["model.name"]
    assert list(settings(runs, recipe_names(runs))) == ["resnet18", "resnet20"]
    assert list(settings(runs, method_names(runs))) == ["baseline", "pgt"]
    assert telling(runs, recipe_names(runs), known=["model.interpolation", "model.name"]) == []
    assert list(settings(runs[runs.method == "pgt"], method_names(runs))) == [""]


def test_runs_without_a_key_that_others_have_are_settings_of_their_own():
    plant("demo/nobn", "baseline", 0, 90.0, 80.0)
    for norm, factor in ((1, 0.01), (2, 0.02)):
        plant("demo/nobn", "gc", 0, 90.0, 80.0, overrides=[f"method.transforms.0.max_norm={norm}"])
        plant("demo/nobn", "agc", 0, 90.0, 80.0, overrides=[f"method.transforms.0.clip_factor={factor}"])
    runs = frame("runs")
    found = settings(runs, method_names(runs))
    assert list(found) == ["baseline", "gc max_norm=1", "gc max_norm=2", "agc clip_factor=0.01", "agc clip_factor=0.02"]
    assert sorted(run for members in found.values() for run in members.run) == sorted(runs.run)


def test_the_targets_of_smoothing_are_part_of_the_recipe():
    """The authors' recipe sets them for runs without label smoothing, too."""
    for recipe in ("demo", "authors"):
        plant("demo/bn", "baseline", 0, 90.0, 80.0, overrides=[f"recipe={recipe}"])
    runs = frame("runs")
    assert runs["method.smoothing"].nunique() == 2
    assert list(settings(runs, method_names(runs))) == [""]
    assert len(settings(runs, recipe_names(runs))) == 2


def test_values_that_look_alike_have_labels_of_their_own():
    for rate in (0.1, 0.1000001, 0.2):
        plant("demo/bn", "baseline", 0, 90.0, 80.0, overrides=[f"recipe.lr_peak={rate}"])
    runs = frame("runs")
    found = settings(runs, recipe_names(runs))
    assert list(found) == ["lr_peak=0.1", "lr_peak=0.1000001", "lr_peak=0.2"]
    assert [len(members) for members in found.values()] == [1, 1, 1]


def test_the_foremost_settings_are_the_best_by_their_means_over_seeds():
    for rate, tops in ((0.1, (80, 82)), (0.2, (70, 99)), (0.3, (10, 11))):
        for seed, top in enumerate(tops):
            plant("demo/bn", "baseline", seed, 90.0, top, overrides=[f"recipe.lr_peak={rate}"])
    runs = frame("runs")
    found = settings(runs, recipe_names(runs))
    assert list(foremost(found, 2)[0]) == ["lr_peak=0.1", "lr_peak=0.2"]
    assert "2 of 3 recipes" in foremost(found, 2, "recipes")[1]
    assert list(foremost(found, 2, keep="lr_peak=0.3")[0]) == ["lr_peak=0.2", "lr_peak=0.3"]
    assert foremost(found, 3) == (found, "")


def test_values_are_in_the_order_of_numbers_and_methods_in_that_of_the_paper():
    assert ordered("recipe.local_batch", [16, None, 8, 16]) == [None, 8, 16]
    assert ordered("method", ["pgt", "other", "gc", "baseline"]) == ["baseline", "gc", "pgt", "other"]
    assert ordered("data.name", ["b", "a"]) == ["a", "b"]
    assert Path("runs").exists() is False
