import copy

import pytest
import timm.utils.agc
import torch
from torch import nn

from pgt import clip_grad_norm, clip_grad_unitwise, clip_grad_value
from pgt.methods import TRANSFORMS, build_transform, unitwise_norm

OPTIONS = {
    "gc": {"max_norm": 0.5},
    "value": {"clip_value": 0.01},
    "agc": {"clip_factor": 0.01, "eps": 1e-3, "exclude": None},
}


def network(scale=1.0):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    (scale * net(torch.randn(4, 3, 8, 8)).square().sum()).backward()
    return net


def grads(net):
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_every_transform_is_idempotent_and_keeps_directions(name):
    net = network()
    transform = build_transform(name, **OPTIONS[name])
    before = grads(net)
    transform(list(net.named_parameters()), 0)
    once = grads(net)
    assert any(not torch.equal(a, b) for a, b in zip(before, once, strict=True)), "the threshold never bit"
    transform(list(net.named_parameters()), 1)
    for a, b, c in zip(once, grads(net), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        assert (a * c >= 0).all()


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_every_transform_takes_zeros_and_missing_gradients(name):
    net = network()
    for p in net.parameters():
        p.grad.zero_()
    net[0].bias.grad = None
    with torch.no_grad():
        net[4].weight.zero_()
    build_transform(name, **OPTIONS[name])(list(net.named_parameters()), 0)
    assert all((p.grad == 0).all() for p in net.parameters() if p.grad is not None)
    build_transform(name, **OPTIONS[name])([], 0)


def test_small_gradients_are_left_alone():
    net = network(scale=1e-9)
    before = grads(net)
    for name in TRANSFORMS:
        build_transform(name, **OPTIONS[name])(list(net.named_parameters()), 0)
    assert all(torch.equal(a, b) for a, b in zip(before, grads(net), strict=True))


def test_norm_clipping_is_pytorchs():
    net = network()
    reference = copy.deepcopy(net)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        q.grad = p.grad.clone()
    clip_grad_norm(list(net.named_parameters()), max_norm=0.5)
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=0)  # PyTorch adds 1e-6 to the norm


def test_value_clipping_is_pytorchs():
    net = network()
    reference = copy.deepcopy(net)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        q.grad = p.grad.clone()
    clip_grad_value(list(net.named_parameters()), clip_value=0.01)
    torch.nn.utils.clip_grad_value_(reference.parameters(), 0.01)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_unitwise_clipping_is_timms():
    net = network()
    with torch.no_grad():
        net[0].weight[0] = 0
    reference = copy.deepcopy(net)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        q.grad = p.grad.clone()
    clip_grad_unitwise(list(net.named_parameters()), clip_factor=0.01)
    timm.utils.agc.adaptive_clip_grad(reference.parameters(), clip_factor=0.01, eps=1e-3)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-12)


def test_unitwise_clipping_bounds_every_unit_but_the_excluded():
    net = network()
    before = net[4].weight.grad.clone()
    clip_grad_unitwise(list(net.named_parameters()), clip_factor=0.01, exclude=r"^4\.")
    assert torch.equal(before, net[4].weight.grad)
    for p in net[:2].parameters():
        bound = 0.01 * unitwise_norm(p.detach()).clamp(min=1e-3)
        assert (unitwise_norm(p.grad) <= bound * (1 + 1e-6)).all()


def test_order_matters():
    first, second = network(), network()
    gc, agc = (build_transform(name, **OPTIONS[name]) for name in ("gc", "agc"))
    for transform in (gc, agc):
        transform(list(first.named_parameters()), 0)
    for transform in (agc, gc):
        transform(list(second.named_parameters()), 0)
    assert not all(torch.allclose(a, b) for a, b in zip(grads(first), grads(second), strict=True))
