import pytest
import torch
import torch.nn.functional as F

from pgt import (
    PowerGradCrossEntropy,
    power_grad_cross_entropy,
    power_transform,
    stationary_threshold,
    surrogate_cross_entropy,
)

ALPHAS = [0.05, 0.25, 0.5, 0.92, 1.0]
EPSILON = 0.1


def smoothing_options(smoothing, classes):
    """ε as PyTorch's cross_entropy needs it for the same target distribution."""
    return EPSILON * classes / (classes - 1) if smoothing == "paper" else EPSILON


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def assert_tempered(ours, z, y, alpha, **options):
    """Its value is that of cross-entropy, its gradient that of CE(αz)/α, whatever comes back for each entry."""
    theirs, tempered = F.cross_entropy(z, y, **options), F.cross_entropy(alpha * z, y, **options) / alpha
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)
    back = torch.rand_like(theirs) + 0.5
    got, expected = (torch.autograd.grad(loss, z, back)[0] for loss in (ours, tempered))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [None, "paper", "uniform"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 10), (4, 7, 3), (2, 5, 3, 2)])
def test_value_is_cross_entropy_and_gradient_that_of_the_tempered_one(alpha, reduction, smoothing, weighted, shape):
    z = (3 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    y = torch.randint(shape[1], (shape[0], *shape[2:]))
    y.view(-1)[0] = -100
    weight = torch.rand(shape[1], dtype=torch.float64) + 0.1 if weighted else None
    options = {"weight": weight, "reduction": reduction}
    ours = power_grad_cross_entropy(
        z, y, alpha, label_smoothing=EPSILON if smoothing else 0.0, smoothing=smoothing or "paper", **options
    )
    epsilon = smoothing_options(smoothing, shape[1]) if smoothing else 0.0
    assert_tempered(ours, z, y, alpha, label_smoothing=epsilon, **options)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("epsilon", [0.0, EPSILON, 1.0])
@pytest.mark.parametrize("weight", [None, "some zero", "zero"])
@pytest.mark.parametrize("case", ["another ignored class", "all ignored", "one class", "no samples"])
def test_where_cross_entropy_has_its_limits(reduction, epsilon, weight, case):
    """Where torch's mean is 0/0, so is ours."""
    samples, classes = {"one class": (6, 1), "no samples": (0, 5)}.get(case, (6, 5))
    z = torch.randn(samples, classes, dtype=torch.float64, requires_grad=True)
    y = torch.arange(samples) % classes
    ignored = {"another ignored class": 3, "all ignored": 4}.get(case, -100)
    if case == "all ignored":
        y.fill_(ignored)
    if weight is not None:
        weight = torch.rand(classes, dtype=torch.float64) * (torch.arange(classes) % 2 if weight == "some zero" else 0)
    options = {"weight": weight, "ignore_index": ignored, "reduction": reduction, "label_smoothing": epsilon}
    ours = power_grad_cross_entropy(z, y, 0.3, smoothing="uniform", **options)
    assert_tempered(ours, z, y, 0.3, **options)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, EPSILON, 1.0])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_soft_targets(alpha, weighted, epsilon, reduction):
    z = (3 * torch.randn(6, 10, 2, dtype=torch.float64)).requires_grad_()
    q = torch.rand(6, 10, 2, dtype=torch.float64)  # of any mass, as cross_entropy allows
    weight = torch.rand(10, dtype=torch.float64) if weighted else None
    options = {"weight": weight, "label_smoothing": epsilon, "reduction": reduction}
    assert_tempered(power_grad_cross_entropy(z, q, alpha, smoothing="uniform", **options), z, q, alpha, **options)


def test_alpha_zero_pulls_towards_the_uniform_distribution():
    z = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    y = torch.randint(10, (4,))
    got = gradient(power_grad_cross_entropy(z, y, 0.0, reduction="sum"), z)
    torch.testing.assert_close(got, 0.1 - F.one_hot(y, 10).double())


@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(alpha, bad):
    """A gradient scaler looks for it in the gradient."""
    z = torch.tensor([[bad, 1.0, 2.0], [0.0, 1.0, 2.0]], requires_grad=True)
    got = gradient(power_grad_cross_entropy(z, torch.tensor([1, 1]), alpha, reduction="sum"), z)
    assert got[0].isnan().all()
    assert got[1].isfinite().all()


@pytest.mark.parametrize(
    ("target", "weight"),
    [
        (torch.tensor([0, 1]), torch.ones(3, requires_grad=True)),
        (torch.ones(2, 3, dtype=torch.bool), None),
    ],
)
def test_targets_and_weights_that_cannot_be_meant_are_refused(target, weight):
    with pytest.raises(ValueError, match="must"):
        power_grad_cross_entropy(torch.randn(2, 3), target, 0.5, weight=weight)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan"), float("inf")])
def test_alpha_outside_its_range_is_refused(alpha):
    z, y = torch.randn(2, 3), torch.tensor([0, 1])
    calls = [
        lambda: power_grad_cross_entropy(z, y, alpha),
        lambda: PowerGradCrossEntropy(alpha),
        lambda: power_transform(z.softmax(1), alpha),
        lambda: stationary_threshold(z.softmax(1), alpha),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="alpha must lie in"):
            call()


@pytest.mark.parametrize("arguments", [{"reduction": "avg"}, {"smoothing": "eq7", "label_smoothing": 0.1}])
def test_unknown_options_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        power_grad_cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]), 0.5, **arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_logits_are_computed_in_float32(dtype):
    z = (5 * torch.randn(8, 100)).to(dtype).requires_grad_()
    y = torch.randint(100, (8,))
    loss = power_grad_cross_entropy(z, y, 0.05)
    exact = z.detach().double().requires_grad_()
    expected = gradient(F.cross_entropy(0.05 * exact, y) / 0.05, exact)
    assert loss.dtype == torch.float32
    got = gradient(loss, z)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.92])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_extreme_logits_give_finite_gradients(alpha, epsilon):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    got = gradient(power_grad_cross_entropy(z, torch.tensor([1, 1]), alpha, label_smoothing=epsilon), z)
    assert got.isfinite().all()
    torch.testing.assert_close(got.sum(1), torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.92])
def test_masked_classes_get_no_gradient(alpha):
    z = torch.tensor([[1.0, -torch.inf, 2.0], [0.0, 0.5, -torch.inf]], requires_grad=True)
    got = gradient(power_grad_cross_entropy(z, torch.tensor([0, 1]), alpha, reduction="sum"), z)
    assert got[0, 1] == 0
    assert got[1, 2] == 0
    kept = z.detach()[0, [0, 2]].requires_grad_()
    alone = gradient(power_grad_cross_entropy(kept[None], torch.tensor([0]), alpha, reduction="sum"), kept)
    torch.testing.assert_close(got[0, [0, 2]], alone)


@pytest.mark.parametrize("soft", [False, True])
def test_a_second_derivative_is_refused(soft):
    """A gradient penalty through a layer would silently lose the part that goes through p'."""
    x, layer = torch.randn(3, 4, requires_grad=True), torch.nn.Linear(4, 5)
    target = torch.rand(3, 5) if soft else torch.tensor([0, 1, 2])
    loss = power_grad_cross_entropy(layer(x), target, 0.5)
    [first] = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.square().sum().backward()


def test_targets_and_dtypes_as_cross_entropy_takes_them():
    z, y = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 2, 4])
    expected = gradient(power_grad_cross_entropy(z, y, 0.3), z)
    assert torch.equal(gradient(power_grad_cross_entropy(z, y.to(torch.uint8), 0.3), z), expected)
    assert power_grad_cross_entropy(z.half(), y, 1.0).dtype == torch.float32
    weight = torch.rand(5).half()
    for function in (power_grad_cross_entropy, surrogate_cross_entropy):
        for alpha in (0.3, 1.0):
            assert function(z, y, alpha, weight=weight).isfinite()
            assert function(z, torch.rand(4, 5).double(), alpha, weight=weight).isfinite()
    assert power_grad_cross_entropy(torch.randn(0, 5), torch.empty(0, dtype=torch.int64), 0.3).isnan()
    masked = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    assert gradient(power_grad_cross_entropy(masked, torch.tensor([0]), 1e-46), masked).isfinite().all()


def test_per_sample_gradients_by_torch_func():
    z, y = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 4])
    expected = gradient(power_grad_cross_entropy(z, y, 0.3, reduction="sum"), z)
    by_sample = torch.func.vmap(torch.func.grad(lambda z, y: surrogate_cross_entropy(z[None], y[None], 0.3)))
    torch.testing.assert_close(by_sample(z.detach(), y), expected)


def test_the_module_checks_its_arguments_when_it_is_made():
    for arguments in ({"reduction": "avg"}, {"smoothing": "eq7"}, {"label_smoothing": 2.0}):
        with pytest.raises(ValueError, match="must"):
            PowerGradCrossEntropy(0.5, **arguments)


def test_the_module_is_the_function():
    z, y = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 2, 4])
    weight = torch.rand(5)
    module = PowerGradCrossEntropy(0.3, label_smoothing=0.1, smoothing="uniform", weight=weight, reduction="sum")
    function = power_grad_cross_entropy(
        z, y, 0.3, label_smoothing=0.1, smoothing="uniform", weight=weight, reduction="sum"
    )
    assert torch.equal(gradient(module(z, y), z), gradient(function, z))
    assert "alpha=0.3" in repr(module)


def test_the_transform_is_the_tempered_softmax():
    z = 3 * torch.randn(6, 10, dtype=torch.float64)
    for alpha in [0.0, *ALPHAS]:
        torch.testing.assert_close(power_transform(z.softmax(1), alpha), (alpha * z).softmax(1))
    assert power_transform(torch.tensor([0.0, 0.5, 0.5]), 0.0).tolist() == [0.0, 0.5, 0.5]


def test_the_stationary_threshold_divides_what_falls_from_what_rises():
    p = (2 * torch.randn(50, 10, dtype=torch.float64)).softmax(1)
    for alpha in [0.0, 0.05, 0.5, 0.92]:
        change = power_transform(p, alpha) - p
        above = p - stationary_threshold(p, alpha)[:, None]
        assert (change * above <= 1e-15).all()
    torch.testing.assert_close(stationary_threshold(p, 0.0), torch.full((50,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(stationary_threshold(p, 1.0), stationary_threshold(p, 1 - 1e-6), rtol=1e-4, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_an_ignored_sample_has_no_gradient_whatever_comes_back_for_it(reduction):
    z, y = torch.randn(3, 5, requires_grad=True), torch.tensor([1, -100, 2])
    loss = power_grad_cross_entropy(z, y, 0.3, reduction=reduction)
    for graph in (False, True):
        [got] = torch.autograd.grad(loss, z, torch.full_like(loss, torch.inf), retain_graph=True, create_graph=graph)
        assert torch.equal(got[1], torch.zeros(5))
