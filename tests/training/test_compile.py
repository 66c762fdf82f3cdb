"""trainer.compile changes speed only: the weights are those of a network that is not compiled."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from pgt.core.types import Batch
from pgt.launch.ranks import start_ranks
from pgt.methods import PowerGradCrossEntropy
from pgt.training import optimizer
from pgt.training.precision import Precision
from pgt.training.ranks import ALONE, process_group
from pgt.training.trainer import Trainer

STEPS = 4
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, which it hides


def trained(ranks, compiled, groups, rule="first"):
    """Return weights and buffers after `STEPS` steps of 24 images each, in that many groups over all ranks."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    precision, sgd = Precision("fp32", "cpu"), optimizer.build(network, 0.9, 5e-4, fused=False)
    own = groups // ranks.world_size
    trainer = Trainer(network, PowerGradCrossEntropy(0.5), sgd, lambda step: 0.1, [], precision,
                      precision.scaler(65536, 2000), ranks, rule, own > 1, compiled)  # fmt: skip
    network.train()
    for step in range(STEPS):
        images, labels = torch.randn(24, 3, 8, 8).chunk(groups), torch.randint(5, (24,)).chunk(groups)
        part = slice(ranks.rank * own, (ranks.rank + 1) * own)
        trainer.train_step([Batch(x, y) for x, y in zip(images[part], labels[part], strict=True)], step)
    trainer.share_buffers()
    return {key: value.numpy() for key, value in trainer.model.state_dict().items()}


LIGHT = partial(torch.compile, backend="aot_eager")
"""torch.compile without the C++ compiler, which takes most of the time."""


def trained_as_rank(all_groups):
    torch.compile = LIGHT
    with process_group(2) as ranks:
        return [trained(ranks, True, groups) for groups in all_groups]


def assert_alike(got, expected):
    assert list(got) == list(expected) == list(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                                                             nn.Flatten(), nn.Linear(144, 5)).state_dict())  # fmt: skip
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, abs=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_compiled_and_not_train_the_same_weights(groups):
    assert_alike(trained(ALONE, True, groups), trained(ALONE, False, groups))


def test_a_network_is_compiled_twice_whatever_the_number_of_groups(monkeypatch):
    """Once for a step's first group and once for the others; the loss is the third graph."""
    monkeypatch.setattr(torch, "compile", LIGHT)
    torch._dynamo.reset()
    counters.clear()
    compiled = trained(ALONE, True, 6, "mean")
    assert counters["stats"]["unique_graphs"] == 3
    assert_alike(compiled, trained(ALONE, False, 6, "mean"))


def test_every_network_of_a_sweep_is_compiled(monkeypatch):
    """torch compiles a function for so many networks, and then no more; the runs of a sweep share a process."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    seen = []
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (4, 5, 6):
            network = nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, 5))
            precision, sgd = Precision("fp32", "cpu"), optimizer.build(network, 0.9, 5e-4, fused=False)
            trainer = Trainer(network, PowerGradCrossEntropy(0.5), sgd, lambda step: 0.1, [], precision,
                              precision.scaler(65536, 2000), compiled=True)  # fmt: skip
            trainer.train_step([Batch(torch.randn(6, 3, 2, 2), torch.randint(5, (6,)))], 0)
            seen.append(counter.frame_count)
    assert seen == [2, 4, 6]  # of the network and of its loss


@pytest.mark.slow
def test_processes_train_compiled_what_one_trains_without():
    """With one group each, and with two, of which the second averages over both processes."""
    for groups, got in zip((2, 4), start_ranks(trained_as_rank, (2, 4), 2), strict=True):
        assert_alike(got, trained(ALONE, False, groups))
