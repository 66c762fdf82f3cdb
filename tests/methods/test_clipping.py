import pytest
import timm.utils.agc
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from pgt import clip_grad_norm, clip_grad_unitwise, clip_grad_value
from pgt.methods import TRANSFORMS, build_alteration, unitwise_norm

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
    transform = build_alteration(name, **OPTIONS[name])
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
    build_alteration(name, **OPTIONS[name])(list(net.named_parameters()), 0)
    assert all((p.grad == 0).all() for p in net.parameters() if p.grad is not None)
    build_alteration(name, **OPTIONS[name])([], 0)


def test_small_gradients_are_left_alone():
    net = network(scale=1e-9)
    before = grads(net)
    for name in TRANSFORMS:
        build_alteration(name, **OPTIONS[name])(list(net.named_parameters()), 0)
    assert all(torch.equal(a, b) for a, b in zip(before, grads(net), strict=True))


def test_norm_clipping_is_pytorchs():
    net = network()
    twins = copies(list(net.named_parameters()))
    clip_grad_norm(list(net.named_parameters()), max_norm=0.5)
    torch.nn.utils.clip_grad_norm_(twins, 0.5)
    for p, q in zip(net.parameters(), twins, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=0)  # PyTorch adds 1e-6 to the norm


def test_value_clipping_is_pytorchs():
    net = network()
    twins = copies(list(net.named_parameters()))
    clip_grad_value(list(net.named_parameters()), clip_value=0.01)
    torch.nn.utils.clip_grad_value_(twins, 0.01)
    for p, q in zip(net.parameters(), twins, strict=True):
        assert torch.equal(p.grad, q.grad)


def test_unitwise_clipping_is_timms():
    net = network()
    with torch.no_grad():
        net[0].weight[0] = 0
    twins = copies(list(net.named_parameters()))
    clip_grad_unitwise(list(net.named_parameters()), clip_factor=0.01)
    timm.utils.agc.adaptive_clip_grad(twins, clip_factor=0.01, eps=1e-3)
    for p, q in zip(net.parameters(), twins, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-12)


@st.composite
def parameters(draw):
    """Named parameters of one to five layers, with gradients from tiny to huge; some weights and gradients are 0."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shapes = st.sampled_from([(7,), (5, 3), (4, 3, 3, 3), (6, 2, 1, 1), (3, 4, 5), (1, 9)])
    found = []
    for index, shape in enumerate(draw(st.lists(shapes, min_size=1, max_size=5))):
        weight = draw(st.sampled_from([0.0, 1e-5, 0.1, 10.0])) * torch.randn(shape, generator=generator)
        p = nn.Parameter(weight.double())
        p.grad = draw(st.sampled_from([0.0, 1e-6, 1.0, 1e4])) * torch.randn(shape, generator=generator).double()
        found.append((f"{index}.weight", p))
    return found


def copies(named):
    twins = [nn.Parameter(p.detach().clone()) for _, p in named]
    for twin, (_, p) in zip(twins, named, strict=True):
        twin.grad = p.grad.clone()
    return twins


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parameters(), st.sampled_from([0.01, 0.1, 1.0]))
def test_on_random_networks_clipping_is_that_of_timm_and_pytorch(named, threshold):
    references = {
        "agc": lambda twins: timm.utils.agc.adaptive_clip_grad(twins, clip_factor=threshold, eps=1e-3),
        "gc": lambda twins: torch.nn.utils.clip_grad_norm_(twins, threshold),
        "value": lambda twins: torch.nn.utils.clip_grad_value_(twins, threshold),
    }
    options = {"agc": {"clip_factor": threshold}, "gc": {"max_norm": threshold}, "value": {"clip_value": threshold}}
    assert set(references) == set(TRANSFORMS)
    for name, reference in references.items():
        twins, again = copies(named), copies(named)
        reference(twins)
        ours = [(n, p) for (n, _), p in zip(named, again, strict=True)]
        build_alteration(name, **options[name])(ours, 0)
        for (_, p), q in zip(ours, twins, strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=2e-5, atol=1e-12)  # PyTorch adds 1e-6 to the norm
        once = [p.grad.clone() for _, p in ours]
        build_alteration(name, **options[name])(ours, 1)
        for before, (_, p) in zip(once, ours, strict=True):
            torch.testing.assert_close(p.grad, before, rtol=1e-6, atol=0)


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
    gc, agc = (build_alteration(name, **OPTIONS[name]) for name in ("gc", "agc"))
    for transform in (gc, agc):
        transform(list(first.named_parameters()), 0)
    for transform in (agc, gc):
        transform(list(second.named_parameters()), 0)
    assert not all(torch.allclose(a, b) for a, b in zip(grads(first), grads(second), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_thresholds_hold_in_16_bits_even_where_a_norm_overflows_them(dtype):
    def layer():
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(2, 40_000).to(dtype))
        weight.grad = (500 * torch.randn(2, 40_000)).to(dtype)
        return weight

    weight = layer()
    clip_grad_norm([weight], max_norm=1.0)
    assert weight.grad.double().norm().item() == pytest.approx(1, rel=1e-3)
    weight = layer()
    clip_grad_unitwise([weight], clip_factor=0.01)
    bounds = 0.01 * weight.detach().double().norm(dim=1)
    torch.testing.assert_close(weight.grad.double().norm(dim=1), bounds, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_sharded_parameters_are_clipped_like_whole_ones(name):
    """As FSDP (`fully_shard`) makes them; one rank is enough for the layout that norms of shards have."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        whole, sharded, mesh = network(), network(), DeviceMesh("cpu", [0])
        parameters = []
        for key, p in sharded.named_parameters():
            parameters.append((key, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)]))))
            parameters[-1][1].grad = distribute_tensor(p.grad, mesh, [Shard(0)])
        for given in (parameters, list(whole.named_parameters())):
            build_alteration(name, **OPTIONS[name])(given, 0)
        for (_, p), q in zip(parameters, whole.parameters(), strict=True):
            assert isinstance(p.grad, DTensor)
            torch.testing.assert_close(p.grad.full_tensor(), q.grad)
    finally:
        dist.destroy_process_group()
