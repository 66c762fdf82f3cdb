"""The world size changes nothing but rounding: two gloo processes are compared with one."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from pgt.methods import build_alteration, build_loss

TRANSFORMS = {"agc": {"clip_factor": 0.01, "eps": 1e-3}}


def network():
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)).double()


def batch():
    generator = torch.Generator().manual_seed(8)
    return torch.randn(12, 8, generator=generator).double(), torch.randint(5, (12,), generator=generator)


def train(model, x, y, implementation):
    loss, agc = build_loss(implementation, 0.25, 0.1, "paper"), build_alteration("agc", **TRANSFORMS["agc"])
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        loss(model(x), y).backward()
        agc(list(model.named_parameters()), step)
        sgd.step()
        sgd.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def worker(rank, store, implementation, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    x, y = batch()
    weights = train(DistributedDataParallel(network()), x[rank::2], y[rank::2], implementation)
    torch.save(weights, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("implementation", ["exact", pytest.param("surrogate", marks=pytest.mark.slow)])
def test_two_processes_train_to_the_weights_of_one(implementation, tmp_path):
    mp.spawn(worker, (str(tmp_path / "store"), implementation, str(tmp_path)), nprocs=2)
    alone = train(network(), *batch(), implementation)
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)
