"""The loss and the clipping in other people's code: what works with torch's own works with these, or says why not."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from functorch.compile import aot_function, nop
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from pgt import (
    PowerGradCrossEntropy,
    SurrogateCrossEntropy,
    clip_grad_norm,
    clip_grad_unitwise,
    clip_grad_value,
    power_grad_cross_entropy,
    surrogate_cross_entropy,
)
from tests.conftest import ROOT

ALPHA = 0.3


def tempered(z, y, **options):
    """The theorem: its gradient with respect to the logits is PGT's."""
    return F.cross_entropy(ALPHA * z, y, **options) / ALPHA


def samples(dtype=torch.float64):
    return (2 * torch.randn(6, 5, dtype=dtype)).requires_grad_(), torch.randint(5, (6,))


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_loss_may_be_changed_in_place(reduction, dtype, backend):
    z, y = samples(dtype)
    criterion = PowerGradCrossEntropy(ALPHA, reduction=reduction)
    criterion = criterion if backend is None else torch.compile(criterion, backend=backend)
    loss = criterion(z, y)
    loss /= 4
    loss += 1
    loss.mul_(2)
    loss.sum().backward()
    expected = torch.autograd.grad(power_grad_cross_entropy(z, y, ALPHA, reduction=reduction).sum() / 2, z)[0]
    torch.testing.assert_close(z.grad, expected)


def test_it_takes_torchs_argument_names_and_a_sample_without_a_batch():
    z, y = samples()
    criterion = PowerGradCrossEntropy(ALPHA)
    assert torch.equal(criterion(input=z, target=y), criterion(z, y))
    for target in (y[0], z.detach()[0].softmax(0)):
        for reduction in ("none", "mean", "sum"):
            one = z.detach()[0].requires_grad_()
            loss = power_grad_cross_entropy(one, target, ALPHA, reduction=reduction)
            torch.testing.assert_close(loss, F.cross_entropy(one, target, reduction=reduction))
            [got] = torch.autograd.grad(loss, one)
            [expected] = torch.autograd.grad(tempered(one, target, reduction=reduction), one)
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda z, y: PowerGradCrossEntropy(torch.ones(5)), r"\[5\].*weight="),
        (lambda z, y: PowerGradCrossEntropy(torch.ones(1)), r"\[1\].*weight="),
        (lambda z, y: SurrogateCrossEntropy(np.ones(1)), r"\[1\].*weight="),
        (lambda z, y: PowerGradCrossEntropy(ALPHA, smoothing=0.1), "label_smoothing="),
        (lambda z, y: PowerGradCrossEntropy(torch.tensor(0.3, requires_grad=True)), "gradient"),
        (lambda z, y: power_grad_cross_entropy(z, F.one_hot(y, 5), ALPHA), r"\[6, 5\].*float"),
        (lambda z, y: power_grad_cross_entropy(z, torch.rand(6, 4), ALPHA), r"\[6, 5\].*\[6, 4\]"),
        (lambda z, y: power_grad_cross_entropy(z, y[:4], ALPHA), r"\[6, 5\].*\[4\]"),
        (lambda z, y: power_grad_cross_entropy(z, y, ALPHA, weight=torch.ones(5, requires_grad=True)), "weight"),
        (lambda z, y: power_grad_cross_entropy(z[0, 0], y[0], ALPHA), r"\[N, C\]"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_mend(call, said):
    with pytest.raises(ValueError, match=said):
        call(*samples())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_target_probabilities_get_cross_entropys_own_gradient(reduction, weighted, epsilon, dtype):
    z, _ = samples(dtype)
    q = torch.rand(6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": epsilon}
    back = torch.rand(6 if reduction == "none" else (), dtype=torch.float64)
    ours = power_grad_cross_entropy(z, q, ALPHA, **options)
    theirs = F.cross_entropy(z.double(), q, **options)
    [got] = torch.autograd.grad(ours, q, back.to(ours.dtype))
    torch.testing.assert_close(got, torch.autograd.grad(theirs, q, back)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_it_agrees_on_the_samples_that_pytorch_tests_cross_entropy_with():
    """In a process of its own, since importing these samples freezes cuDNN's flags."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.methods.torch_samples"], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3 * 3 * 15


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_exact_through_the_incoming_gradient(dtype):
    """Per-sample weights that are learned: a virtual step's dependence on them."""
    z, y = samples()
    weights = torch.rand(6, dtype=torch.float64, requires_grad=True)

    def derivative(loss):
        [step] = torch.autograd.grad((weights * loss).sum(), z, create_graph=True)
        return torch.autograd.grad(step.square().sum(), weights)[0]

    got = derivative(power_grad_cross_entropy(z.to(dtype), y, ALPHA, reduction="none"))
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.01}
    torch.testing.assert_close(got, derivative(tempered(z, y, reduction="none")), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("of", ["logits", "target"])
def test_a_second_derivative_by_the_logits_is_refused(dtype, of):
    z, _ = samples(dtype)
    q = torch.rand(6, 5, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(
        power_grad_cross_entropy(z, q, ALPHA), {"logits": z, "target": q}[of], create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first[0].square().sum(), z)
    if of == "logits":  # p′ − q depends on both
        [again] = torch.autograd.grad(power_grad_cross_entropy(z, q, ALPHA), z, create_graph=True)
        with pytest.raises(RuntimeError, match="use surrogate_cross_entropy"):
            torch.autograd.grad(again.square().sum() + q.square().sum(), q)
    leaves = [x.detach().requires_grad_() for x in (z, q)]
    both = torch.autograd.grad(power_grad_cross_entropy(*leaves, ALPHA), leaves, create_graph=True)
    total = sum(gradient.square().sum() for gradient in both)
    with pytest.raises(RuntimeError, match="no second derivative"):
        total.backward()


def test_a_batch_of_incoming_gradients_gives_the_jacobian():
    z, y = samples()
    for target in (y, torch.rand(6, 5, dtype=torch.float64)):
        loss = power_grad_cross_entropy(z, target, ALPHA, reduction="none")
        rows = [torch.autograd.grad(loss[i], z, retain_graph=True)[0] for i in range(6)]
        [got] = torch.autograd.grad(loss, z, torch.eye(6, dtype=torch.float64), is_grads_batched=True)
        torch.testing.assert_close(got, torch.stack(rows))


def test_a_later_function_may_return_no_gradient():
    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    z, y = samples()
    Cut.apply(power_grad_cross_entropy(z, y, ALPHA)).backward()
    assert z.grad is None


@pytest.mark.parametrize("kept", [False, True])
def test_fp16_keeps_small_gradients_under_a_loss_scale_with_and_without_a_graph(kept):
    z, y = torch.randn(2, 50, 128, 128).half().requires_grad_(), torch.randint(50, (2, 128, 128))
    [step] = torch.autograd.grad(65536 * power_grad_cross_entropy(z, y, ALPHA), z, create_graph=kept)
    assert step.dtype == torch.float16
    wide = z.detach().double().requires_grad_()
    [exact] = torch.autograd.grad(65536 * power_grad_cross_entropy(wide, y, ALPHA), wide)
    torch.testing.assert_close(step.detach().double(), exact, rtol=1e-3, atol=1e-7)


def mixed(loss, z, q):
    """The derivative by q of the squared norm of the gradient by z."""
    return torch.func.grad(lambda q: torch.func.grad(lambda z: loss(z, q))(z).square().sum())(q)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_surrogate_has_the_derivative_of_its_gradient_by_the_target(reduction):
    z, q = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64)
    got = mixed(lambda z, q: surrogate_cross_entropy(z, q, ALPHA, reduction=reduction), z, q)
    torch.testing.assert_close(got, mixed(lambda z, q: tempered(z, q, reduction=reduction), z, q))


@pytest.mark.parametrize("alpha", [0.3, 1e-3, 1e-8])
def test_the_surrogates_value_is_cross_entropys_bit_for_bit(alpha):
    z, y = torch.randn(6, 1000), torch.randint(1000, (6,))
    assert torch.equal(surrogate_cross_entropy(z, y, alpha), F.cross_entropy(z, y))


def test_other_derivatives_are_refused_and_the_surrogate_named():
    z, y = samples()

    def loss(z):
        return power_grad_cross_entropy(z, y, ALPHA)

    def forward_mode():
        with forward_ad.dual_level():
            loss(forward_ad.make_dual(z, torch.ones_like(z)))

    class Trained(nn.Module):
        def forward(self, z):
            return loss(z)

    calls = [
        forward_mode,
        lambda: torch.func.grad(loss)(z),
        lambda: torch.func.jvp(loss, (z,), (torch.ones_like(z),)),
        lambda: torch.func.vmap(lambda z, y: power_grad_cross_entropy(z, y, ALPHA))(z, y),
        lambda: torch.export.export(Trained(), (z,)),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="surrogate_cross_entropy"):
            call()
    torch.testing.assert_close(
        torch.func.grad(lambda z: surrogate_cross_entropy(z, y, ALPHA))(z), torch.autograd.grad(tempered(z, y), z)[0]
    )


@pytest.mark.parametrize(
    "transform",
    [
        lambda loss, z: torch.func.jvp(loss, (z,), (z,))[1],
        lambda loss, z: torch.func.jvp(torch.func.grad(loss), (z,), (z,))[1],
        lambda loss, z: torch.func.grad(lambda z: torch.func.grad(loss)(z).square().sum())(z),
    ],
    ids=["jvp", "jvp of grad", "grad of grad"],
)
def test_transforms_within_a_compiled_function_are_refused_and_right_for_the_surrogate(transform):
    z, y = (tensor.detach() for tensor in samples())

    def compiled(loss):
        torch.compiler.reset()
        return torch.compile(lambda z: transform(lambda z: loss(z, y, ALPHA), z), backend="eager")(z)

    with pytest.raises(RuntimeError, match="surrogate_cross_entropy"):
        compiled(power_grad_cross_entropy)
    expected = transform(lambda z: tempered(z, y), z)
    torch.testing.assert_close(compiled(surrogate_cross_entropy), expected)


@pytest.mark.parametrize("loss", [power_grad_cross_entropy, surrogate_cross_entropy])
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_trace_trains_by_the_right_gradient_or_is_refused(loss):
    z, y = samples()
    expected = torch.autograd.grad(tempered(z, y), z)[0]

    def traced(z, y):
        return loss(z, y, ALPHA)

    for example in (z, z.detach()):
        with pytest.raises(RuntimeError, match="make_fx"):
            make_fx(traced)(example, y)
    whole = (torch.jit.trace(traced, (z.detach(), y)), aot_function(traced, fw_compiler=nop))
    for function in whole:
        for _ in range(3):  # TorchScript optimises a function after its first calls
            torch.testing.assert_close(torch.autograd.grad(function(z, y), z)[0], expected)
    plain = make_fx(lambda z, y: loss(z, y, 1.0))(z, y)
    torch.testing.assert_close(torch.autograd.grad(plain(z, y), z)[0], torch.autograd.grad(F.cross_entropy(z, y), z)[0])


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_alpha_may_be_set_during_training(backend):
    criterion = PowerGradCrossEntropy(1.0)
    called = criterion if backend is None else torch.compile(criterion, backend=backend)
    z, y = samples()
    for alpha in (1.0, 0.8, 0.5, 0.25):
        criterion.alpha = alpha
        [got] = torch.autograd.grad(called(z, y), z)
        torch.testing.assert_close(got, torch.autograd.grad(F.cross_entropy(alpha * z, y) / alpha, z)[0])
    criterion.alpha = 2.0
    with pytest.raises(ValueError, match="alpha must lie in"):
        criterion(z, y)


def test_the_documented_schedule_of_alpha_trains():
    documented = (ROOT / "docs" / "use.md").read_text()
    [block] = re.findall(r"## Schedules of α.*?```python\n(.*?)```", documented, re.DOTALL)
    torch.manual_seed(0)
    model, seen = nn.Linear(4, 3), []
    loader = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    model.register_forward_hook(lambda *_: seen.append(names["criterion"].alpha))
    names = {"PowerGradCrossEntropy": PowerGradCrossEntropy, "model": model, "loader": loader, "epochs": 7}
    names["optimizer"] = torch.optim.SGD(model.parameters(), 0.1)
    before = model.weight.detach().clone()
    exec(block, names)
    assert seen == pytest.approx([1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.25])
    assert not torch.equal(before, model.weight)


CLIPPING = {
    clip_grad_norm: {"max_norm": 0.5},
    clip_grad_value: {"clip_value": 0.01},
    clip_grad_unitwise: {"clip_factor": 0.01},
}


@pytest.mark.parametrize("clip", CLIPPING)
@pytest.mark.parametrize("first", [2, 3])
def test_clipping_takes_parameters_pairs_or_one_tensor(clip, first):
    def clipped(choose):
        torch.manual_seed(0)
        network = nn.Linear(4, first)
        network(torch.randn(5, 4)).square().sum().backward()
        before = [p.grad.clone() for p in network.parameters()]
        clip(choose(network), **CLIPPING[clip])
        return before, [p.grad for p in network.parameters()]

    before, pairs = clipped(lambda network: list(network.named_parameters()))
    assert not torch.equal(before[0], pairs[0])
    for choose in (lambda network: network.parameters(), lambda network: network.named_parameters()):
        torch.testing.assert_close(clipped(choose)[1], pairs)
    before, one = clipped(lambda network: network.weight)
    assert not torch.equal(before[0], one[0])
    assert torch.equal(before[1], one[1])


@pytest.mark.parametrize("clip", CLIPPING)
def test_clipping_says_what_to_pass(clip):
    network = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for wrong in (network, network[0], dict(network.named_parameters()), optimizer.param_groups, None, [None]):
        with pytest.raises(ValueError, match=r"model\.named_parameters\(\) or model\.parameters\(\)"):
            clip(wrong, **CLIPPING[clip])


@pytest.mark.parametrize("least", [1e38, float("inf")])
@pytest.mark.parametrize("clip", CLIPPING)
def test_a_threshold_beyond_any_gradient_clips_nothing(clip, least):
    network = nn.Linear(4, 3)
    with torch.no_grad():
        network.weight.mul_(1e3)
    network(torch.randn(5, 4)).square().sum().backward()
    before = [p.grad.clone() for p in network.parameters()]
    clip(network.named_parameters(), **dict.fromkeys(CLIPPING[clip], least))
    clip_grad_unitwise(network.named_parameters(), clip_factor=1.0, eps=least)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("clip", CLIPPING)
def test_thresholds_that_are_not_above_0_are_refused(clip, value):
    with pytest.raises(ValueError, match="must be above 0"):
        clip([], **dict.fromkeys(CLIPPING[clip], value))
    with pytest.raises(ValueError, match="eps must be above 0"):
        clip_grad_unitwise([], clip_factor=0.1, eps=value)


def test_exclude_needs_names():
    with pytest.raises(ValueError, match="named_parameters"):
        clip_grad_unitwise(nn.Linear(2, 2).parameters(), clip_factor=0.1, exclude="fc")


@pytest.mark.parametrize("pattern", ["*.bias", ["fc"]])
def test_exclude_must_be_a_regular_expression(pattern):
    with pytest.raises(ValueError, match="exclude must be a regular expression"):
        clip_grad_unitwise(nn.Linear(2, 2).named_parameters(), clip_factor=0.1, exclude=pattern)


@pytest.mark.parametrize("alpha", [0.3, 0.05])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_surrogate_gives_soft_targets_the_gradient_of_cross_entropy(alpha, reduction):
    z = torch.randn(5, 4, dtype=torch.float64)
    q = torch.rand(5, 4, dtype=torch.float64).requires_grad_()
    [got] = torch.autograd.grad(surrogate_cross_entropy(z, q, alpha, reduction=reduction).sum(), q)
    [expected] = torch.autograd.grad(F.cross_entropy(z, q, reduction=reduction).sum(), q)
    torch.testing.assert_close(got, expected)


def test_the_surrogate_is_right_in_forward_mode_and_sample_by_sample():
    z, y = samples()
    along = torch.randn_like(z)
    _, slope = torch.func.jvp(lambda z: surrogate_cross_entropy(z, y, ALPHA), (z.detach(),), (along,))
    [gradient] = torch.autograd.grad(tempered(z, y), z)
    torch.testing.assert_close(slope, (gradient * along).sum())
    single = torch.func.vmap(lambda z, y: surrogate_cross_entropy(z, y, ALPHA))(z.detach(), y)
    torch.testing.assert_close(single, F.cross_entropy(z.detach(), y, reduction="none"))
    with pytest.raises(ValueError, match="shape"):
        surrogate_cross_entropy(z, torch.rand(len(z), z.shape[1] + 1), ALPHA)
