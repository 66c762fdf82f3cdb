"""The same mathematics on any number of processes."""

import math
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from pgt.cli.main import main
from pgt.config import sharing
from pgt.core.errors import InputError, LostRankError, TrainingError
from pgt.data import open_set
from pgt.launch.ranks import start_ranks
from pgt.training.assemble import assemble
from pgt.training.ranks import (
    ALONE,
    Equipment,
    Ranks,
    check_gpus,
    check_kernels,
    cpu_share,
    process_group,
    visible_gpus,
)
from pgt.training.tally import Tally
from tests.conftest import SECONDS, compose
from tests.training.layouts import DROPOUT, STEPS, trained, trained_as_rank

SMALL = ("data=synthetic", "data.num_samples=75", "data.image_size=8", "recipe=demo", "recipe.global_batch=24",
         "recipe.local_batch=6", "recipe.lr_peak=0.005", "recipe.warmup_epochs=0", "recipe.epochs=7")  # fmt: skip
METHODS = ["baseline", "pgt", "gc", "agc_pgt"]
CASES = {
    **{f"{method} {precision}": (f"method={method}", "model=resnet20_nobn", f"trainer.precision={precision}")
       for method in METHODS for precision in ("fp64", "fp32")},
    **{f"batch norm {rule}": ("method=pgt", "model=resnet20", "trainer.precision=fp64", f"recipe.bn_statistics={rule}")
       for rule in ("first", "mean")},
    "amplification": ("method=amplification_per_weight", "model=resnet20", "trainer.precision=fp64"),
    "gradient correction": ("method=gcgd", "method.transforms.1.every=3", "model=resnet20_nobn",
                            "trainer.precision=fp64"),
    DROPOUT: ("method=pgt", "model=resnet20_nobn", "trainer.precision=fp64"),
    "no local batch": ("method=pgt", "model=resnet20_nobn", "trainer.precision=fp64", "recipe.local_batch=null"),
}  # fmt: skip


ON_RANKS = {2: list(CASES), 4: ["pgt fp64", "batch norm first", "batch norm mean", "amplification"]}
"""The cases that so many ranks train."""


def configs(names=CASES):
    return {name: compose(*SMALL, *CASES[name]) for name in names}


def on_ranks(*names):
    """Parameters of a test: the number of ranks, and the case."""
    pairs = [(count, name) for count, cases in ON_RANKS.items() for name in cases if name in names]
    return pytest.mark.parametrize(("count", "name"), pairs)


@pytest.fixture(scope="module")
def alone():
    """One process that accumulates four groups."""
    return trained(configs(), ALONE)


@cache
def together(count):
    """What `count` processes, which share the groups of each step, have trained."""
    return start_ranks(trained_as_rank, configs(ON_RANKS[count]), count)


def flat(result):
    return np.concatenate([value.ravel() for value in result["weights"].values()])


@pytest.mark.slow
@on_ranks(*(name for name in CASES if "fp32" not in name))
def test_one_process_and_several_train_the_same_weights(alone, count, name):
    one, several = alone[name], together(count)[name]
    assert one["weights"].keys() == several["weights"].keys()
    for key, expected in one["weights"].items():
        np.testing.assert_allclose(several["weights"][key], expected, rtol=1e-10, atol=1e-10, err_msg=key)
    for key, expected in one["tested"].items():
        assert several["tested"][key] == pytest.approx(expected, rel=1e-6), key
    assert several["read"] == pytest.approx(one["read"], rel=1e-6)
    assert one["read"][0] == STEPS * 24


@pytest.mark.slow
@on_ranks("amplification")
def test_every_rank_amplifies_the_layers_that_one_process_does(alone, count, name):
    [expected], of_ranks = alone[name]["of_ranks"], together(count)[name]["of_ranks"]
    assert of_ranks == [of_ranks[0]] * len(of_ranks)
    factors = [[value for key, value in record.items() if key.startswith("amplification/")] for record in expected]
    assert factors[0] == [1.0] * 19
    assert all(0 < sum(value == 2 for value in epoch) < 19 for epoch in factors[1:])
    for one, several in zip(expected, of_ranks[0], strict=True):
        assert several == pytest.approx(one, rel=1e-6)


@pytest.fixture
def one_of_two():
    """Rank 0 of two, in a process group of its own: all of DDP except the other process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(world_size=2)
    dist.destroy_process_group()


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_sent_once_a_step_whatever_its_groups(one_of_two, groups):
    config = compose(*SMALL, "model=resnet20_nobn", f"recipe.local_batch={12 // groups}")
    dataset = open_set(name="synthetic", num_samples=75, num_classes=10, image_size=8)
    train, _, trainer = assemble(config, dataset, one_of_two)
    sent = []

    def count(_, bucket):
        sent.append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    trainer._shared.register_comm_hook(None, count)
    batches = train.epoch(0)
    for step in range(2):
        trainer.train_step([next(batches) for _ in range(groups)], step)
    assert sum(sent) == 2 * sum(p.numel() for p in trainer.model.parameters())
    assert trainer._shared.gradient_as_bucket_view  # no second copy of them
    assert trainer._shared.static_graph == (groups == 1)


class Unused(nn.Module):
    """A network with a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.fc, self.other = nn.Linear(192, 10), nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_parameter_that_no_logit_depends_on_may_be_there(one_of_two, monkeypatch, groups):
    config = compose(*SMALL, "model.name=timm/resnet18", f"recipe.local_batch={12 // groups}")
    monkeypatch.setattr("pgt.training.assemble._model", lambda config, classes: Unused())
    dataset = open_set(name="synthetic", num_samples=75, num_classes=10, image_size=8)
    train, _, trainer = assemble(config, dataset, one_of_two)
    batches = train.epoch(0)
    for step in range(3):
        trainer.train_step([next(batches) for _ in range(groups)], step)
    assert trainer._shared.find_unused_parameters == (groups == 2)


@pytest.mark.slow
@on_ranks(*(name for name in CASES if "fp32" in name))
def test_in_float32_they_differ_by_rounding(alone, count, name):
    """The network amplifies it, for example at a ReLU whose input changes sign."""
    one, several = flat(alone[name]), flat(together(count)[name])
    assert np.linalg.norm(several - one) < 1e-3 * np.linalg.norm(one)


def test_the_two_rules_for_batch_norm_differ():
    rules = configs(["batch norm first", "batch norm mean"])
    first, mean = (one["weights"] for one in trained(rules, ALONE).values())
    assert not np.allclose(first["bn1.running_mean"], mean["bn1.running_mean"], rtol=1e-3)
    assert np.array_equal(first["conv1.weight"], mean["conv1.weight"])


def test_devices_that_cannot_share_a_batch_are_refused_with_the_nearest_that_can():
    groups = r"^3 devices .* recipe.global_batch=24 in groups of recipe.local_batch=6: set trainer.devices to 2 or 4 .*"
    with pytest.raises(InputError, match=groups + r"or recipe.local_batch=8 \(another recipe"):
        compose(*SMALL, "trainer.devices=3")
    with pytest.raises(InputError, match=r"5 devices .*trainer.devices to 4 .*or change the batch"):
        compose(*SMALL, "trainer.devices=5")
    with pytest.raises(InputError, match=r"5 devices .* recipe.global_batch=24: set trainer.devices to 4 or 6"):
        compose(*SMALL, "model=resnet20_nobn", "trainer.devices=5", "recipe.local_batch=null")
    paper = compose("method=pgt").recipe
    assert [sharing.largest(paper, n) for n in (0, 1, 2, 3, 4, 8)] == [1, 1, 2, 2, 4, 4]
    assert [sharing.sensible(paper, n) for n in (0, 1, 3, 8)] == [1, 1, 2, 4]
    free = paper.model_copy(update={"local_batch": None, "global_batch": 256})
    assert [sharing.sensible(free, n) for n in (0, 1, 3, 8)] == [1, 1, 2, 4]
    assert sharing.sensible(free.model_copy(update={"global_batch": 32}), 8) == 1


class Threads:
    """Ranks that are threads of this process."""

    def __init__(self, count):
        self._barrier, self._brought = threading.Barrier(count, timeout=SECONDS), {}

    def _exchange(self, tensor):
        self._brought[threading.get_ident()] = tensor
        self._barrier.wait()
        all_of_them = torch.stack(list(self._brought.values()))
        self._barrier.wait()
        return all_of_them

    def all_reduce_max(self, tensor):
        return self._exchange(tensor).amax(0)

    def all_reduce_sum(self, tensor):
        return self._exchange(tensor).sum(0)


def streaks(tally, losses, every):
    """(length, first step) of the streak, read every so many steps; one group a step."""
    found = []
    for step, loss in enumerate(losses):
        tally.add(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.tensor(loss))
        tally.end_step(step)
        if (step + 1) % every == 0:
            found.append(tuple(tally.read()[-2:]))
    return found


def streaks_of_ranks(losses, every):
    """What each of the ranks reads."""
    ranks = Threads(len(losses))
    with ThreadPoolExecutor(len(losses)) as pool:
        tallies = [Tally(torch.device("cpu"), ranks) for _ in losses]
        return list(pool.map(streaks, tallies, losses, [every] * len(losses)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_counts_are_exact_whatever_the_precision_of_the_loss(dtype):
    tally, labels = Tally(torch.device("cpu"), ALONE), torch.zeros(1023, dtype=torch.int64)
    logits = torch.zeros(1023, 2)
    logits[:100, 1] = 1
    for _ in range(11):
        tally.add(logits, labels, torch.tensor(1000.0, dtype=dtype))
    assert tally.read()[:3] == [11 * 1023, 11 * 923, 11 * 1023 * 1000]


def test_bad_steps_that_alternate_between_ranks_are_one_streak():
    first = [1.0, math.nan, 1.0, math.inf, 1.0, math.nan, 1.0, math.nan, 1.0]
    other = [1.0, 1.0, 1.0, 1.0, math.nan, 1.0, math.inf, 1.0, 1.0]
    expected = [(0, math.inf), (3, 3), (0, math.inf)]
    assert streaks_of_ranks([first, other], 3) == [expected, expected]
    assert streaks_of_ranks([first[:8], other[:8]], 4) == [[(1, 3), (5, 3)]] * 2


@pytest.mark.parametrize("every", [1, 3, 5])
def test_ranks_count_a_streak_as_one_device_does(every):
    rng = random.Random(every)
    losses = [[math.nan if rng.random() < 0.4 else 1.0 for _ in range(60)] for _ in range(2)]
    both = [a + b for a, b in zip(*losses, strict=True)]
    alone = streaks(Tally(torch.device("cpu"), ALONE), both, every)
    assert max(length for length, _ in alone) > 2
    assert streaks_of_ranks(losses, every) == [alone, alone]


NCCL = (
    "NCCL error in: ProcessGroupNCCL.cpp:3690, {} (run with NCCL_DEBUG=INFO), NCCL version 2.30.7\n{}\nLast error:\n{}"
)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (
            dist.DistBackendError(
                NCCL.format("unhandled system error", "ncclSystemError: System call failed", "/dev/shm: No space left")
            ),
            TrainingError,
            r"^the ranks cannot communicate: NCCL error .* No space left$",
        ),
        (
            dist.DistBackendError(
                NCCL.format("remote process exited", "ncclRemoteError: A remote process exited", "peer closed")
            ),
            LostRankError,
            r"^lost the other ranks: NCCL error .* peer closed$",
        ),
        (
            RuntimeError("Application timeout caused pair closure"),
            LostRankError,
            r"^lost the other ranks: Application timeout caused pair closure$",
        ),
    ],
)
def test_an_error_of_a_backend_is_said_whole_and_is_another_ranks_only_if_it_says_so(monkeypatch, error, raised, said):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    try:
        with pytest.raises(TrainingError, match=said) as caught, process_group():
            raise error
        assert type(caught.value) is raised
    finally:
        dist.destroy_process_group()


def equipped(*parts):
    return [Equipment(machine, frozenset(cpus), gpu) for machine, cpus, gpu in parts]


def test_cpus_that_processes_share_are_divided_and_no_others():
    free = equipped(*[("a", range(16), None)] * 4)
    bound = equipped(*[("a", range(4 * rank, 4 * rank + 4), None) for rank in range(4)])
    assert [cpu_share(free, rank) for rank in range(4)] == [4, 4, 4, 4]
    assert [cpu_share(bound, rank) for rank in range(4)] == [4, 4, 4, 4]
    sockets = equipped(*[("a", range(8 * (rank // 2), 8 * (rank // 2) + 8), None) for rank in range(4)])
    assert [cpu_share(sockets, rank) for rank in range(4)] == [4, 4, 4, 4]
    machines = equipped(("a", range(8), None), ("b", range(8), None), ("b", range(8), None))
    assert [cpu_share(machines, rank) for rank in range(3)] == [8, 4, 4]
    assert cpu_share(equipped(*[("a", range(2), None)] * 3), 0) == 1
    limited = [replace(process, quota=8) for process in free]
    assert [cpu_share(limited, rank) for rank in range(4)] == [2, 2, 2, 2]


def test_more_processes_than_gpus_on_a_machine_are_refused():
    cpu = ("login", range(4), None)
    check_gpus(equipped(cpu, cpu))
    check_gpus(equipped(("a", range(4), "gpu-1"), ("a", range(4), "gpu-2"), ("b", range(4), "gpu-3")))
    for second in (None, "gpu-1"):  # beyond the last one; or the only one that both see
        with pytest.raises(InputError, match=r"^2 processes on a, which shows them 1 GPUs: start one a GPU"):
            check_gpus(equipped(("a", range(4), "gpu-1"), ("a", range(4), second), ("b", range(4), "gpu-2")))


def test_gpus_that_torch_cannot_use_are_no_reason_to_train_on_the_cpu(monkeypatch, capsys):
    """The driver reports their number even if it is too old for this torch."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^4 GPUs are there, and torch .* cannot use them: their driver"):
        visible_gpus()
    assert main(["train", *SMALL, "model=resnet20"]) == 2
    assert capsys.readouterr().err.startswith("pgt: 4 GPUs are there")


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90", "compute_120"], False),
        ((7, 0), ["sm_50", "sm_70", "sm_80"], True),
        ((8, 9), ["sm_75", "sm_86"], True),
        ((8, 0), ["sm_75", "sm_86"], False),
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((12, 1), ["sm_90", "compute_120"], True),
    ],
)
def test_a_gpu_that_torch_has_no_kernels_for_is_named(monkeypatch, capability, built, runs):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    check_kernels(torch.device("cpu"))
    if runs:
        check_kernels(torch.device("cuda", 0))
        return
    with pytest.raises(InputError, match=r"has no kernels for Tesla V100 \(compute capability \d\.\d\): install"):
        check_kernels(torch.device("cuda", 0))


def test_ranks_on_networks_that_do_not_meet_are_told_the_variable(monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("Gloo connectFullMesh failed with [transport/tcp/pair.cc:1] no error")

    monkeypatch.setattr(dist, "init_process_group", fails)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostRankError, match="GLOO_SOCKET_IFNAME"), process_group():
        pass
