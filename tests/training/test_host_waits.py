"""A training step on the meta device: a tensor without data shows who looks at it, as a step on a GPU must not."""

from contextlib import nullcontext
from itertools import islice

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pgt.data import open_set
from pgt.training.assemble import assemble
from pgt.training.precision import Precision
from pgt.training.ranks import Ranks
from tests.conftest import TINY, compose


class OnMeta(Ranks):
    """Alone, on a device that computes shapes only."""

    @property
    def device(self):
        return torch.device("meta")


class Copies(TorchDispatchMode):
    """Refuses copies between devices: each would hold up the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, result) if isinstance(x, torch.Tensor)]
        if func._overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy):
            assert len({tensor.device.type for tensor in tensors}) == 1, func
        return result


@pytest.fixture
def trainer_and_groups(monkeypatch):
    monkeypatch.setattr(Precision, "autocast", lambda self: nullcontext())  # there is none on this device

    def made(*overrides):
        dataset = open_set(name="synthetic", num_samples=16, num_classes=10, image_size=32)
        loader, _, trainer = assemble(compose(*TINY, *overrides), dataset, OnMeta())
        return trainer, list(islice(loader.epoch(0), loader.groups_per_step))

    return made


@pytest.mark.parametrize("method", ["baseline", "pgt", "gc_pgt", "agc_pgt", "gc_value", "authors_hook"])
@pytest.mark.parametrize("bn_statistics", ["first", "mean"])
def test_a_step_looks_at_no_tensor(trainer_and_groups, method, bn_statistics):
    options = ("model=resnet20", f"method={method}", f"recipe.bn_statistics={bn_statistics}", "recipe.local_batch=4")
    trainer, groups = trainer_and_groups(*options)
    assert len(groups) == 2
    with Copies():
        for step in range(2):
            trainer.train_step(groups, step)


@pytest.mark.parametrize(
    ("mode", "solver", "target"), [("gradient", "euler", "weights"), ("additive", "rk4", "gradients")]
)
def test_gradient_correction_looks_at_no_tensor(trainer_and_groups, mode, solver, target):
    """Neither in ordinary steps nor in step 2, which fits."""
    state = (f"method.transforms.0.mode={mode}", f"method.transforms.0.solver={solver}")
    weights = ("method.transforms.1.every=2", f"method.transforms.1.target={target}")
    trainer, groups = trainer_and_groups("model=resnet20", "method=gcgd", *state, *weights)
    with Copies():
        for step in range(3):
            trainer.train_step(groups, step)


def test_a_look_is_seen(trainer_and_groups):
    trainer, groups = trainer_and_groups("model=resnet20", "method=pgt")
    trainer.alterations = [lambda parameters, step: parameters[0][1].grad.norm().item()]
    with pytest.raises(RuntimeError, match="meta"):
        trainer.train_step(groups, 0)
    trainer.alterations = [lambda parameters, step: parameters[0][1].grad.mul_(torch.rand(1).to("meta"))]
    with Copies(), pytest.raises(AssertionError, match="copy"):
        trainer.train_step(groups, 0)
