"""Properties that hold for every distribution, loss scale and batch split (in float64 unless stated otherwise)."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pgt import (
    PowerGradCrossEntropy,
    power_grad_cross_entropy,
    power_transform,
    smooth_labels,
    stationary_threshold,
    surrogate_cross_entropy,
)

settings.register_profile("pgt", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("pgt")

alphas = st.floats(0, 1)
positive_alphas = st.floats(0.01, 1)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def logits(draw, rows=4):
    """Draw logits [rows, C] of 2 to 12 classes with a deviation from 0.01 to 30."""
    classes, deviation = draw(st.integers(2, 12)), draw(st.sampled_from([0.01, 0.3, 1.0, 3.0, 10.0, 30.0]))
    generator = torch.Generator().manual_seed(draw(seeds))
    return deviation * torch.randn(rows, classes, dtype=torch.float64, generator=generator)


def labels(z, seed=0):
    return torch.randint(z.shape[1], (len(z),), generator=torch.Generator().manual_seed(seed))


def gradient(function, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(function(z), z)[0]


@given(logits(), positive_alphas, st.sampled_from([0.0, 0.1, 0.4]), st.sampled_from(["paper", "uniform"]))
def test_the_gradient_is_that_of_the_tempered_loss(z, alpha, epsilon, smoothing):
    y = labels(z)
    options = {"label_smoothing": epsilon, "smoothing": smoothing}
    got = gradient(lambda z: power_grad_cross_entropy(z, y, alpha, **options), z)
    q = smooth_labels(y, z.shape[1], epsilon, smoothing, torch.float64)
    expected = gradient(lambda z: F.cross_entropy(alpha * z, q) / alpha, z)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    other = gradient(lambda z: surrogate_cross_entropy(z, y, alpha, **options), z)
    torch.testing.assert_close(got, other, rtol=0, atol=1e-12)


@given(logits(), positive_alphas)
def test_both_implementations_return_the_plain_loss(z, alpha):
    y = labels(z)
    expected = F.cross_entropy(z, y)
    torch.testing.assert_close(power_grad_cross_entropy(z, y, alpha), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(surrogate_cross_entropy(z, y, alpha), expected, rtol=1e-12, atol=1e-12)


@given(logits(), alphas)
def test_rows_of_the_gradient_sum_to_zero(z, alpha):
    got = gradient(lambda z: power_grad_cross_entropy(z, labels(z), alpha, reduction="sum"), z)
    torch.testing.assert_close(got.sum(1), torch.zeros(len(z), dtype=torch.float64), atol=1e-13, rtol=0)


@given(logits(), alphas)
def test_the_transform_is_a_distribution_in_the_same_order(z, alpha):
    p = z.softmax(1)
    p2 = power_transform(p, alpha)
    torch.testing.assert_close(p2.sum(1), torch.ones(len(z), dtype=torch.float64), atol=1e-12, rtol=0)
    in_order = p2.gather(1, p.argsort(1))
    assert (in_order.diff(dim=1) >= -1e-15).all()


@given(logits(), st.floats(0, 0.999))
def test_lemma_1_entries_above_the_threshold_fall_and_below_it_rise(z, alpha):
    p = z.softmax(1)
    change = power_transform(p, alpha) - p
    above = p - stationary_threshold(p, alpha)[:, None]
    assert (change * above <= 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_is_continuous_at_alpha_1(dtype):
    p = (2 * torch.randn(20, 10, dtype=dtype)).softmax(1)
    limit = stationary_threshold(p, 1.0)
    for alpha in (1 - 1e-5, 1 - 1e-7, 1 - 1e-12, 1 - 1e-16):
        torch.testing.assert_close(stationary_threshold(p, alpha), limit, rtol=1e-4, atol=0)
    zeros = torch.tensor([0.0, 0.5, 0.5], dtype=dtype)
    for alpha in (0.0, 0.3, 0.7, 1.0):
        torch.testing.assert_close(stationary_threshold(zeros, alpha), torch.tensor(0.5, dtype=dtype))


@given(logits())
def test_proposition_1_at_alpha_0_everything_is_uniform(z):
    p, uniform = z.softmax(1), torch.full_like(z, 1 / z.shape[1])
    torch.testing.assert_close(power_transform(p, 0.0), uniform)
    torch.testing.assert_close(stationary_threshold(p, 0.0), uniform[:, 0])


@given(logits(), alphas, alphas)
def test_theorem_1_the_threshold_does_not_decrease_with_alpha(z, a, b):
    p = z.softmax(1)
    low, high = (stationary_threshold(p, alpha) for alpha in sorted((a, b)))
    assert (low <= high * (1 + 1e-9)).all()


@given(logits(), alphas)
def test_section_4_2_the_gradients_are_bounded_by_the_threshold(z, alpha):
    """The gradient of a wrong class lies between the plain gradient and the threshold."""
    p, y = z.softmax(1), labels(z)
    threshold = stationary_threshold(p, alpha)[:, None].expand_as(p)
    got = gradient(lambda z: power_grad_cross_entropy(z, y, alpha, reduction="sum"), z)
    wrong = ~F.one_hot(y, z.shape[1]).bool()
    low, high = torch.minimum(p, threshold), torch.maximum(p, threshold)
    assert (got[wrong] >= low[wrong] - 1e-12).all()
    assert (got[wrong] <= high[wrong] + 1e-12).all()
    assert (got.abs() <= 1).all()


@given(logits(), alphas, st.integers(-10, 24))
def test_no_loss_scale_changes_the_gradient(z, alpha, exponent):
    y, scale = labels(z), 2.0**exponent
    plain = gradient(lambda z: power_grad_cross_entropy(z, y, alpha), z)
    scaled = gradient(lambda z: scale * power_grad_cross_entropy(z, y, alpha), z) / scale
    assert torch.equal(plain, scaled)  # a power of two loses nothing


@given(logits(rows=6), alphas, st.sampled_from([1, 2, 3]))
def test_no_batch_split_or_reduction_changes_the_gradient(z, alpha, parts):
    y = labels(z)
    whole = gradient(lambda z: power_grad_cross_entropy(z, y, alpha), z)

    def split(z):
        pairs = zip(z.chunk(parts), y.chunk(parts), strict=True)
        return sum(power_grad_cross_entropy(a, b, alpha) for a, b in pairs) / parts

    torch.testing.assert_close(gradient(split, z), whole, rtol=1e-12, atol=1e-15)
    total = gradient(lambda z: power_grad_cross_entropy(z, y, alpha, reduction="sum") / 6, z)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-15)
    each = gradient(lambda z: power_grad_cross_entropy(z, y, alpha, reduction="none").mean(), z)
    torch.testing.assert_close(each, whole, rtol=1e-12, atol=1e-15)


def test_an_ignored_row_counts_nowhere():
    z, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, -100, 2, 3, -100])
    for options in ({}, {"label_smoothing": 0.1}, {"weight": torch.rand(4, dtype=torch.float64)}):
        got = gradient(lambda z, options=options: power_grad_cross_entropy(z, y, 0.3, **options), z)
        kept = gradient(
            lambda z, options=options: power_grad_cross_entropy(z, y[[0, 2, 3]], 0.3, **options), z[[0, 2, 3]]
        )
        torch.testing.assert_close(got[[0, 2, 3]], kept)
        assert (got[[1, 4]] == 0).all()
    assert math.isnan(power_grad_cross_entropy(z, torch.full((5,), -100), 0.3))  # as cross_entropy


def small_network():
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.Tanh(), torch.nn.Linear(24, 6))


@pytest.mark.parametrize("alpha", [0.05, 0.25, 0.92])
def test_fp16_with_a_live_gradient_scaler_follows_float32(alpha):
    """The weights after 30 steps that were not skipped, within fp16's error of the activations (2^-11)."""
    torch.manual_seed(1)
    x, y = torch.randn(32, 12), torch.randint(6, (32,))
    networks = small_network(), small_network()
    start = [p.detach().clone() for p in networks[0].parameters()]
    for network, half in zip(networks, (False, True), strict=True):
        sgd = torch.optim.SGD(network.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", enabled=half, growth_interval=5)
        loss = PowerGradCrossEntropy(alpha)
        taken = skipped = 0
        while taken < 30:
            with torch.autocast("cpu", torch.float16, enabled=half):
                value = loss(network(x), y)
            before = scaler.get_scale()
            scaler.scale(value).backward()
            scaler.step(sgd)
            scaler.update()
            sgd.zero_grad()
            overflowed = scaler.get_scale() < before
            taken, skipped = taken + (not overflowed), skipped + overflowed
        assert (skipped > 0) == half, "the scale grows until a step overflows and is skipped"
    for a, b, s in zip(*(n.parameters() for n in networks), start, strict=True):
        moved = (a - s).norm()
        assert moved > 0.05
        assert (a - b).norm() / moved < 0.01


@pytest.mark.parametrize("device_dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_float32_gradient_of_its_logits(device_dtype):
    x, y = torch.randn(16, 12), torch.randint(6, (16,))
    network = small_network()
    with torch.autocast("cpu", device_dtype):
        z = network(x)
        z.retain_grad()
        value = power_grad_cross_entropy(z, y, 0.25)
    value.backward()
    assert z.dtype == device_dtype
    assert value.dtype == torch.float32
    expected = (0.25 * z.detach().float()).softmax(1) - F.one_hot(y, 6)
    torch.testing.assert_close(z.grad, (expected / 16).to(device_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saves_no_more_than_cross_entropy(dtype):
    """Compares the bytes that the graph keeps between the passes, without the logits themselves."""

    def saved(function):
        z = torch.randn(64, 100).to(dtype).requires_grad_()
        seen = {}

        def pack(tensor):
            if tensor.data_ptr() != z.data_ptr():
                seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = function(z, y)
        assert loss.requires_grad
        return sum(seen.values())

    y = torch.randint(100, (64,))
    assert saved(lambda z, y: power_grad_cross_entropy(z, y, 0.25)) <= saved(F.cross_entropy)


@pytest.mark.parametrize("target", ["indices", "distribution"])
@pytest.mark.parametrize(
    "alpha", [pytest.param(0.0, marks=pytest.mark.slow), 0.25, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_compiles_without_graph_breaks(target, alpha):
    torch.compiler.reset()  # torch stops compiling a function after some variants of it, other tests' included
    z = torch.randn(8, 10, requires_grad=True)
    y = torch.randint(10, (8,)) if target == "indices" else torch.rand(8, 10)
    eager = PowerGradCrossEntropy(alpha, label_smoothing=0.1)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, y), eager(z, y))
    torch.testing.assert_close(gradient(lambda z: compiled(z, y), z), gradient(lambda z: eager(z, y), z))


@pytest.mark.slow
def test_compiles_to_machine_code():
    z, y = torch.randn(8, 10), torch.randint(10, (8,))
    torch.compiler.reset()
    compiled = torch.compile(PowerGradCrossEntropy(0.25), fullgraph=True)
    expected = gradient(lambda z: power_grad_cross_entropy(z, y, 0.25), z)
    torch.testing.assert_close(gradient(lambda z: compiled(z, y), z), expected)
