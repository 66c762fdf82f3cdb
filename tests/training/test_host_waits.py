"""A step must not make the host wait for the device: the meta device, whose tensors have no data, shows it."""

from contextlib import nullcontext
from itertools import islice

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pgt.data import open_set
from pgt.training import optimizer
from pgt.training.assemble import assemble
from pgt.training.evaluation import evaluate
from pgt.training.precision import Precision
from pgt.training.ranks import Ranks
from tests.conftest import TINY, compose

ATEN = torch.ops.aten
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
COPIES = {ATEN.copy_, ATEN._to_copy, *INDEXING}
LOOKS = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN._unique2}
"""Operations whose result, or its shape, the host reads from the device."""

FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}


class Wait(AssertionError):
    pass


class _Operations(TorchDispatchMode):
    """Raises at copies between devices, and at operations that look at a tensor on one of `devices`."""

    def __init__(self, devices):
        super().__init__()
        self._devices = devices

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        tensors = [x for x in tree_flatten((args, kwargs, result))[0] if isinstance(x, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        mask = operation in INDEXING and any(tensor.dtype == torch.bool for tensor in tensors)
        look = operation in LOOKS and devices & self._devices
        if look or mask or (operation in COPIES and len(devices) > 1):
            raise Wait(func)
        return result


class _Creations(TorchFunctionMode):
    """Raises if a tensor on the meta device is made of the host's values, which no operation shows there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in FROM_HOST and result.is_meta and not (isinstance(args[0], torch.Tensor) and args[0].is_meta):
            raise Wait(func)
        return result


class NoWaits:
    """Args: the devices whose tensors nobody may look at."""

    def __init__(self, *devices):
        self._modes = (_Operations({*devices} or {"cpu", "meta"}), _Creations())

    def __enter__(self):
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error):
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class OnMeta(Ranks):
    """Alone, on a device that computes shapes only."""

    @property
    def device(self):
        return torch.device("meta")


@pytest.fixture
def made(monkeypatch):
    """Loaders, trainer and the first step's groups of a config."""

    def made(ranks, *overrides):
        if isinstance(ranks, OnMeta):
            monkeypatch.setattr(Precision, "autocast", lambda self: nullcontext())  # there is none on this device
        dataset = open_set(name="synthetic", num_samples=16, num_classes=10, image_size=32)
        loader, test, trainer = assemble(compose(*TINY, *overrides), dataset, ranks)
        return test, trainer, list(islice(loader.epoch(0), loader.groups_per_step))

    return made


@pytest.mark.parametrize(
    "method", ["baseline", "pgt", "gc_pgt", "agc_pgt", "gc_value", "authors_hook", "amplification_per_weight"]
)
@pytest.mark.parametrize("bn_statistics", ["first", "mean"])
def test_a_step_looks_at_no_tensor(made, method, bn_statistics):
    options = ("model=resnet20", f"method={method}", f"recipe.bn_statistics={bn_statistics}", "recipe.local_batch=4",
               "recipe.epochs=2")  # fmt: skip
    _, trainer, groups = made(OnMeta(), *options)
    assert len(groups) == 2
    with NoWaits():
        for step in range(2):
            trainer.train_step(groups, step)


@pytest.mark.parametrize("where", ["activations", "weights"])
def test_neither_does_a_step_that_is_amplified(made, where):
    options = ("model=resnet20", "method=amplification", f"method.transforms.0.where={where}", "recipe.epochs=2")
    _, trainer, groups = made(OnMeta(), *options)
    [amplification] = trainer.alterations
    amplification.choice = [True] * len(amplification.layers)
    with NoWaits():
        trainer.train_step(groups, 0)


@pytest.mark.parametrize(
    ("mode", "solver", "target"), [("gradient", "euler", "weights"), ("additive", "rk4", "gradients")]
)
def test_gradient_correction_looks_at_no_tensor(made, mode, solver, target):
    """Neither in ordinary steps nor in step 2, which fits. Adam counts its steps on the host."""
    state = (f"method.transforms.0.mode={mode}", f"method.transforms.0.solver={solver}")
    weights = ("method.transforms.1.every=2", f"method.transforms.1.target={target}")
    _, trainer, groups = made(OnMeta(), "model=resnet20", "method=gcgd", *state, *weights)
    with NoWaits("meta"):
        for step in range(3):
            trainer.train_step(groups, step)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_autocast_scaler_and_fused_optimizer_look_at_no_tensor(made, precision):
    _, trainer, groups = made(Ranks(), "model=resnet20", "method=agc_pgt", f"trainer.precision={precision}")
    trainer.optimizer = optimizer.build(trainer.model, 0.9, 5e-4, fused=True)  # as on a GPU
    assert trainer.scaler.is_enabled() == (precision == "fp16")
    with NoWaits():
        trainer.train_step(groups, 0)


def test_an_evaluation_looks_at_its_sums_only(made, monkeypatch):
    test, trainer, _ = made(Ranks(), "model=resnet20", "recipe.local_batch=8")
    batches = 2 * list(test.epoch(0))

    def every_batch(index):
        with NoWaits():
            yield from batches

    monkeypatch.setattr(test, "epoch", every_batch)
    with torch.no_grad():
        assert 0 <= evaluate(trainer.model, test, 0.25, trainer.precision)["test_top1"] <= 100


LOOKING = [
    lambda grad: grad.norm().item(),
    lambda grad: bool((grad > 0).any()),
    lambda grad: grad[grad > 0],
]
COPYING = [
    lambda grad: grad.mul_(torch.rand(1).to(grad.device)),
    lambda grad: grad.mul_(torch.tensor(0.5, device=grad.device)),
    lambda grad: grad.mul_(torch.as_tensor([0.5], device=grad.device)),
    lambda grad: grad[torch.tensor([0, 1])],
]


@pytest.mark.parametrize(
    ("ranks", "wait"), [*((OnMeta(), wait) for wait in LOOKING + COPYING), *((Ranks(), wait) for wait in LOOKING)]
)
def test_a_wait_is_seen(made, ranks, wait):
    _, trainer, groups = made(ranks, "model=resnet20", "method=pgt")
    trainer.alterations = [lambda parameters, step: wait(parameters[0][1].grad)]
    with NoWaits(), pytest.raises((Wait, RuntimeError)):
        trainer.train_step(groups, 0)
