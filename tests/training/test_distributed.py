"""The same mathematics on any number of processes."""

import numpy as np
import pytest

from pgt import layout, workers
from pgt.errors import InputError
from pgt.training.distributed import ALONE, lost
from tests.conftest import compose
from tests.training.layouts import in_place, trained

SMALL = ("data=synthetic", "data.num_samples=75", "data.image_size=8", "recipe=demo", "recipe.global_batch=24",
         "recipe.local_batch=6", "recipe.lr_peak=0.005", "recipe.warmup_epochs=0", "recipe.epochs=7")  # fmt: skip
METHODS = ["baseline", "pgt", "gc", "agc_pgt"]
CASES = {
    **{f"{method} {precision}": (f"method={method}", "model=resnet20_nobn", f"trainer.precision={precision}")
       for method in METHODS for precision in ("fp64", "fp32")},
    **{f"batch norm {rule}": ("method=pgt", "model=resnet20", "trainer.precision=fp64", f"recipe.bn_statistics={rule}")
       for rule in ("first", "mean")},
    "no local batch": ("method=pgt", "model=resnet20_nobn", "trainer.precision=fp64", "recipe.local_batch=null"),
}  # fmt: skip


def configs():
    return {name: compose(*SMALL, *overrides) for name, overrides in CASES.items()}


@pytest.fixture(scope="module")
def alone():
    """One process that accumulates four groups."""
    return trained(configs(), ALONE)


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory):
    return workers.run_all(in_place, configs(), request.param, tmp_path_factory.mktemp("logs"), lost)


def flat(result):
    return np.concatenate([value.ravel() for value in result["weights"].values()])


@pytest.mark.parametrize("name", [name for name in CASES if "fp32" not in name])
def test_one_process_and_several_train_the_same_weights(alone, together, name):
    one, several = alone[name], together[name]
    assert one["weights"].keys() == several["weights"].keys()
    for key, expected in one["weights"].items():
        np.testing.assert_allclose(several["weights"][key], expected, rtol=1e-10, atol=1e-10, err_msg=key)
    for key, expected in one["tested"].items():
        assert several["tested"][key] == pytest.approx(expected, rel=1e-6), key
    assert several["read"] == pytest.approx(one["read"], rel=1e-6)
    assert one["read"][0] == 20 * 24


@pytest.mark.parametrize("method", METHODS)
def test_in_float32_they_differ_by_rounding(alone, together, method):
    """Which the network amplifies, by a ReLU that falls on the other side of zero, say: a thousandth after 20 steps."""
    one, several = flat(alone[f"{method} fp32"]), flat(together[f"{method} fp32"])
    assert np.linalg.norm(several - one) < 1e-3 * np.linalg.norm(one)


def test_the_two_rules_for_batch_norm_differ(alone):
    first, mean = (alone[f"batch norm {rule}"]["weights"] for rule in ("first", "mean"))
    assert not np.allclose(first["bn1.running_mean"], mean["bn1.running_mean"], rtol=1e-3)
    assert np.array_equal(first["conv1.weight"], mean["conv1.weight"])


def test_devices_that_cannot_share_a_batch_are_refused_with_the_nearest_that_can():
    with pytest.raises(InputError, match=r"^3 devices cannot share recipe.global_batch=24 in groups of "
                                         r"recipe.local_batch=6: take 2 or 4, or change the batch"):  # fmt: skip
        compose(*SMALL, "trainer.devices=3")
    with pytest.raises(InputError, match=r"5 devices .*take 4, or change the batch"):
        compose(*SMALL, "trainer.devices=5")
    with pytest.raises(InputError, match=r"5 devices cannot share recipe.global_batch=24: take 4 or 6"):
        compose(*SMALL, "trainer.devices=5", "recipe.local_batch=null")
    paper = compose("method=pgt").recipe
    assert [layout.largest(paper, n) for n in (0, 1, 2, 3, 4, 8)] == [1, 1, 2, 2, 4, 4]
