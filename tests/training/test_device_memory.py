import pytest
import torch

from pgt.core.errors import InputError
from pgt.data import open_set
from pgt.models import build
from pgt.training.assemble import assemble
from pgt.training.device_memory import checkpoint_activations
from pgt.training.ranks import ALONE
from pgt.training.trainer import Trainer
from tests.conftest import TINY, compose, train


def trained(*overrides):
    """The weights and buffers after two steps of two groups, and the bytes that autograd kept in the last one."""
    torch.manual_seed(0)
    dataset = open_set(name="synthetic", num_samples=16, num_classes=10, image_size=32)
    loader, _, trainer = assemble(compose(*TINY, "recipe.local_batch=4", *overrides), dataset, ALONE)
    batches = list(loader.epoch(0))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    trainer.train_step(batches[:2], 0)
    for alteration in trainer.alterations:
        alteration.end_epoch(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.train_step(batches[2:], 1)
    return trainer.model.state_dict(), sum(kept.values())


@pytest.mark.parametrize("options", [("method=agc_pgt",), ("recipe.bn_statistics=mean", "trainer.precision=bf16"),
                                     ("method=amplification", "recipe.epochs=2")])  # fmt: skip
@pytest.mark.parametrize("model", ["resnet20", "resnet18"])
def test_activations_computed_again_change_no_number(model, options):
    expected, bytes_kept = trained(f"model={model}", *options)
    state, fewer_bytes = trained(f"model={model}", *options, "trainer.checkpoint_activations=true")
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert fewer_bytes < 0.5 * bytes_kept


def test_a_network_without_blocks_is_refused():
    with pytest.raises(InputError, match="checkpoint_activations=false"):
        checkpoint_activations(torch.nn.Sequential(torch.nn.Linear(2, 2)))


class Stem(torch.nn.Module):
    """A stem of single layers, one of which changes its input in place, and a stage of one block."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(inplace=True))
        self.stage = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.SiLU(inplace=True)))

    def forward(self, x):
        return self.stage(self.stem(x)).mean((2, 3))


def test_a_layer_that_changes_its_input_is_not_computed_again():
    """VGG has only such layers: nothing would be saved."""
    network, images = Stem(), torch.randn(2, 3, 8, 8)
    expected = torch.autograd.grad(network(images).sum(), list(network.parameters()))
    checkpoint_activations(network)
    got = torch.autograd.grad(network(images).sum(), list(network.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    with pytest.raises(InputError, match="no stages of blocks"):
        checkpoint_activations(build("vgg19_bn", 10))


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB ..."),
    RuntimeError("Critical error in pipeline:\nError in MIXED operator `nvidia.dali.fn.decoders.image`:\n"
                 "Can't allocate 1048576 bytes on device 0."),
]  # fmt: skip
"""What torch and DALI raise if a device's memory is full."""


@pytest.mark.parametrize("error", FULL)
def test_a_full_device_is_one_line_with_the_mend(monkeypatch, error):
    def full(*args):
        raise error

    monkeypatch.setattr(Trainer, "train_step", full)
    with pytest.raises(InputError, match=r"memory of cpu is full .*checkpoint_activations=true") as caught:
        train(*TINY, "model=resnet20")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"local_batch") as caught:
        train(*TINY, "model=resnet20", "trainer.checkpoint_activations=true", "seed=1")
    assert "checkpoint_activations" not in str(caught.value)
