import math

import numpy as np
import pytest
import torch
from torch import nn

from pgt.core.types import IGNORE_INDEX, Batch
from pgt.launch.ranks import start_ranks
from pgt.methods import PowerGradCrossEntropy, clip_grad_norm
from pgt.models import build
from pgt.training import optimizer
from pgt.training.precision import Precision
from pgt.training.ranks import ALONE
from pgt.training.recorder import Recorder, record_format
from pgt.training.trainer import Trainer
from tests.conftest import compose
from tests.training.layouts import Kept, recorded, recorded_as_rank


class Small(nn.Module):
    """Two convolutions, one of them nested, and the classifier."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.block = nn.Sequential(nn.Conv2d(6, 5, 3, bias=False), nn.ReLU())
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        return self.fc(self.block(self.conv1(x)).mean((2, 3)))


def network(precision="fp32"):
    torch.manual_seed(3)
    return Precision(precision, "cpu").apply(Small()).to(memory_format=torch.channels_last)


def trainer(model, precision="fp32", **options):
    chosen = Precision(precision, "cpu")
    sgd = optimizer.build(model, 0.9, 5e-4, fused=False)
    clip = [lambda parameters, step: clip_grad_norm(parameters, max_norm=1e-3)]
    loss = PowerGradCrossEntropy(0.5)
    return Trainer(model, loss, sgd, lambda step: 0.1, clip, chosen, chosen.scaler(1024, 2000), **options)


def batches(count, dtype=torch.float32):
    torch.manual_seed(4)
    labels = [torch.tensor([0, 3, 1, IGNORE_INDEX, 2, 2]) for _ in range(count)]
    return [Batch(torch.randn(6, 3, 8, 8, dtype=dtype), label) for label in labels]


def train(model, groups, steps=3, every=1, precision="fp32", **options):
    kept, subject = Kept(), trainer(model, precision, **options)
    subject.recorder = Recorder(model, every, steps - 1, kept)
    for step in range(steps):
        subject.train_step(groups, step)
    subject.recorder.sync()
    return kept


def computed(model, groups, precision):
    """The record of a step, by autograd and the definitions."""
    model.zero_grad()
    pooled = []
    hook = model.fc.register_forward_hook(lambda module, inputs, output: pooled.append(inputs[0]))
    loss, autocast = PowerGradCrossEntropy(0.5), Precision(precision, "cpu").autocast
    for batch in groups:
        with autocast():
            z = model(batch.images)
            value = loss(z, batch.labels) / len(groups)
        value.backward()
    hook.remove()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
    kept = groups[-1].labels != IGNORE_INDEX
    z, features = z[kept].detach().double().numpy(), pooled[-1][kept].detach().double().numpy()
    scalars = [norm, min(norm, 1e-3), np.linalg.norm(z, axis=1).mean(), z.mean(), z.max(1).mean(), z.var(1).mean()]
    filters = [w.detach().double().flatten(1).norm(dim=1).numpy() for w in (model.conv1.weight, model.block[0].weight)]
    return np.concatenate([scalars, np.sqrt((features**2).mean(0)), *filters])


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "fp16"])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_record_holds_what_its_step_began_with(groups, precision):
    data = batches(groups, Precision(precision, "cpu").dtype)
    model = network(precision)
    [*_, (step, values)] = train(model, data, 1, precision=precision).items()
    assert (step, values.dtype, len(values)) == (0, np.float32, 6 + 5 + 6 + 5)
    exact = precision in ("fp32", "fp64")
    expected = computed(network(precision), data, precision)
    np.testing.assert_allclose(values, expected, rtol=1e-5 if exact else 2e-2, atol=1e-6 if exact else 1e-4)
    np.testing.assert_allclose(values[-11:], expected[-11:], rtol=1e-6)  # the weights are in float32 under autocast


def test_steps_divisible_and_the_last_one():
    assert list(train(network(), batches(1), steps=9, every=3)) == [0, 3, 6, 8]
    assert list(train(network(), batches(1), steps=7, every=3)) == [0, 3, 6]
    assert list(train(network(), batches(1), steps=3, every=50)) == [0, 2]


def test_recording_leaves_the_weights_as_they_are():
    plain, watched = network(), network()
    subject = trainer(plain)
    for step in range(4):
        subject.train_step(batches(2), step)
    train(watched, batches(2), steps=4)
    for p, q in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.slow
def test_a_compiled_network_is_recorded_like_another():
    """And its weights are those of a compiled network that is not recorded."""
    torch.compiler.reset()
    plain, watched = network(), network()
    subject = trainer(plain, compiled=True)
    for step in range(3):
        subject.train_step(batches(1), step)
    kept = train(watched, batches(1), compiled=True)  # which may take over no code: it has a hook
    torch.compiler.reset()
    for p, q in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(p, q)
    for step, values in train(network(), batches(1)).items():
        np.testing.assert_allclose(kept[step], values, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_several_processes_record_what_one_does():
    """Weights and gradients are the whole batch's; features and logits the first rank's last group's, another here."""
    config = compose("data=synthetic", "data.num_samples=72", "data.image_size=8", "recipe=demo", "method=gc_pgt",
                     "recipe.global_batch=24", "recipe.local_batch=6", "recipe.warmup_epochs=0", "recipe.lr_peak=0.005",
                     "model=resnet20_nobn", "trainer.precision=fp64")  # fmt: skip
    alone, first = recorded(config, ALONE), start_ranks(recorded_as_rank, config, 2)
    assert list(alone) == list(first) == [0, 2]
    own = slice(2, 6 + 64)
    for step, values in first.items():
        np.testing.assert_allclose(np.delete(values, own), np.delete(alone[step], own), rtol=1e-6)
        assert not np.allclose(values[own], alone[step][own], rtol=1e-3)


def test_zeroed_filters_are_counted_exactly():
    model = network()
    recorder = Recorder(model, 1, 0, Kept())
    assert recorder.zeroed_out() == {1: 0, 2: 0}
    with torch.no_grad():
        model.conv1.weight[[1, 4]] = 0
        model.block[0].weight *= 1e-5  # a whole layer, as weight decay leaves it
    assert recorder.zeroed_out() == {1: 2, 2: 5}


def test_layers_are_numbered_as_in_the_paper():
    """Fig. 5: layer 11 has 256 filters, layer 20 is the last convolution."""
    found = record_format(build("resnet18_nobn", 10))
    assert len(found.layers) == 20
    assert (found.layers[10].name, found.layers[10].filters) == ("layer3.0.conv1", 256)
    assert sum("downsample" in layer.name for layer in found.layers) == 3
    assert found.features == 512
