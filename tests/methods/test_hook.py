"""The published listing is what recipe and docs say it is."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F

from pgt import power_grad_cross_entropy, smooth_labels
from pgt.methods import AuthorsHookCrossEntropy, EmulatedHookCrossEntropy
from scripts.bench.hook import CLASSES, measure, report
from tests.conftest import ROOT

SCALE_TABLE = [  # N, S, relative error, gain; None: NaN in every row
    (256, 65536, 0, 1), (256, 32768, 0.98, 1.98), (256, 16384, 2.9, 3.9), (256, 131072, None, None),
    (128, 65536, None, None), (128, 16384, 0, 1), (64, 65536, None, None), (64, 4096, 0, 1),
    (192, 32768, 0.12, 1.12), (256, 1, 5e4, None),
]  # fmt: skip

TRUNCATION_TABLE = [  # deviation, percent flushed, error at α = 0.3, 0.25, 0.05
    (3, 2, 0.0008, 0.001, 0.0035), (5, 46, 0.009, 0.011, 0.025), (10, 93, 0.039, 0.071, 0.15),
    (20, 99, 0.014, 0.033, 0.42),
]  # fmt: skip


@pytest.mark.parametrize(("samples", "scale", "error", "gain"), SCALE_TABLE)
def test_it_is_right_where_the_scale_is_the_squared_batch_only(samples, scale, error, gain):
    got = measure(samples, scale, 0.25, 3.0, torch.float32)
    if error is None:
        assert got.nan_rows == samples
    elif error == 0:
        assert got.relative < 1e-4
        assert got.nan_rows == 0
    else:
        assert got.relative == pytest.approx(error, rel=0.1)
        assert gain is None or got.gain == pytest.approx(gain, rel=0.02)


@pytest.mark.parametrize("row", TRUNCATION_TABLE)
def test_in_fp16_it_is_truncated_even_there(row):
    """Within what another draw of logits and labels moves: up to a half where labels decide (deviation 5)."""
    deviation, flushed, *errors = row
    for alpha, error in zip((0.3, 0.25, 0.05), errors, strict=True):
        got = measure(256, 65536, alpha, deviation, torch.float16)
        assert 100 * got.flushed == pytest.approx(flushed, abs=1.5)
        assert got.relative == pytest.approx(error, rel=0.5 if deviation == 5 else 0.15)


def test_the_study_prints_what_the_documentation_shows():
    printed = report()
    documented = (ROOT / "docs" / "method.md").read_text()
    rows = [line for line in printed.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 14
    normal = {" ".join(line.split()) for line in documented.splitlines()}
    missing = [row for row in rows if " ".join(row.split()) not in normal]
    assert not missing


def test_as_a_loss_it_measures_itself():
    torch.manual_seed(0)
    z = (3 * torch.randn(16, CLASSES)).requires_grad_()
    y = torch.randint(CLASSES, (16,))
    loss = AuthorsHookCrossEntropy(0.25)
    assert loss.diagnostics() == {}
    value = loss(z, y)
    torch.testing.assert_close(value, F.cross_entropy(z, y))
    (256 * value).backward()
    got = loss.diagnostics()
    assert got["hook_scale_ratio"] == pytest.approx(1, rel=1e-4)
    assert got["hook_flushed"] < 0.01
    assert "warning" not in got
    fresh = z.detach().requires_grad_()  # without the hook
    expected = torch.autograd.grad(power_grad_cross_entropy(fresh, y, 0.25), fresh)[0]
    torch.testing.assert_close(z.grad / 256, expected, rtol=1e-3, atol=1e-6)


def test_it_warns_where_the_ratio_is_not_1():
    z, y = torch.randn(16, 10, requires_grad=True), torch.randint(10, (16,))
    loss = AuthorsHookCrossEntropy(0.25)
    loss(z, y).backward()
    got = loss.diagnostics()
    assert got["hook_scale_ratio"] == pytest.approx(1 / 256, rel=1e-3)
    assert got["warning"] == "S/N² is 0.00391: the authors' hook computes Eq. 9 only if it is 1"


def test_smoothed_targets_and_no_hook_at_alpha_1():
    z, y = torch.randn(16, 10, requires_grad=True), torch.randint(10, (16,))
    loss = AuthorsHookCrossEntropy(0.25, label_smoothing=0.1, smoothing="paper")
    (256 * loss(z, y)).backward()
    q = smooth_labels(y, 10, 0.1, "paper")
    torch.testing.assert_close(z.grad / 256, ((0.25 * z.detach()).softmax(1) - q) / 16, rtol=1e-4, atol=1e-6)
    z = z.detach().requires_grad_()
    plain = AuthorsHookCrossEntropy(1.0)
    plain(z, y).backward()
    assert torch.equal(z.grad, torch.autograd.grad(F.cross_entropy(z, y), z)[0])
    assert plain.diagnostics() == {}


@pytest.mark.parametrize("deviation", [3.0, 20.0])
def test_the_emulation_is_the_hook_on_fp16_logits_at_the_squared_batch(deviation):
    torch.manual_seed(0)
    z, y = deviation * torch.randn(16, CLASSES), torch.randint(CLASSES, (16,))
    ours, real = z.clone().requires_grad_(), z.half().requires_grad_()
    loss, reference = EmulatedHookCrossEntropy(0.05), AuthorsHookCrossEntropy(0.05)
    value = loss(ours, y)
    (256 * reference(real, y)).backward()
    (3 * value).backward()  # the gradient that arrives only scales the result
    assert torch.equal(value, reference(z.half(), y))
    torch.testing.assert_close(ours.grad, 3 * real.grad.float() / 256, rtol=2e-3, atol=1e-7)
    assert loss.diagnostics()["hook_flushed"] == reference.diagnostics()["hook_flushed"]
    with torch.no_grad():
        loss(z, y)


def test_the_emulation_leaves_other_losses_of_the_logits_alone():
    z, y = torch.randn(16, 10, requires_grad=True), torch.randint(10, (16,))
    logits = 1 * z
    alone = torch.autograd.grad(logits.square().sum(), z, retain_graph=True)[0]
    only = torch.autograd.grad(EmulatedHookCrossEntropy(0.25)(logits, y), z, retain_graph=True)[0]
    both = torch.autograd.grad(EmulatedHookCrossEntropy(0.25)(logits, y) + logits.square().sum(), z)[0]
    torch.testing.assert_close(both, alone + only)


def test_the_emulation_at_alpha_1_is_the_baseline():
    z, y = torch.randn(16, 10, requires_grad=True), torch.randint(10, (16,))
    got, expected = (torch.autograd.grad(loss(z, y), z)[0] for loss in (EmulatedHookCrossEntropy(1.0), F.cross_entropy))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", [AuthorsHookCrossEntropy, EmulatedHookCrossEntropy])
def test_a_copy_is_a_loss_of_its_own_and_it_can_be_pickled(kind):
    z, y = torch.randn(16, 10, requires_grad=True), torch.randint(10, (16,))
    criterion = kind(0.25)
    copied = copy.deepcopy(criterion)
    copied.alpha = 1.0
    got, expected = (torch.autograd.grad(loss(z, y), z)[0] for loss in (copied, F.cross_entropy))
    assert torch.equal(got, expected)
    assert pickle.loads(pickle.dumps(criterion)).alpha == 0.25


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own
@pytest.mark.parametrize("kind", [AuthorsHookCrossEntropy, EmulatedHookCrossEntropy])
def test_torch_compile_changes_no_rounding(kind):
    torch.manual_seed(0)
    network, y = torch.nn.Linear(4, CLASSES).half(), torch.randint(CLASSES, (16,))
    plain, compiled = kind(0.05), kind(0.05)
    run = torch.compile(compiled)
    for _ in range(2):  # the second step takes what the first has compiled
        x = 20 * torch.randn(16, 4).half()
        scale = 256 if kind is AuthorsHookCrossEntropy else 1
        expected, got = (torch.autograd.grad(scale * loss(network(x), y), network.weight)[0] for loss in (plain, run))
        assert torch.equal(got, expected)
        assert compiled.diagnostics() == plain.diagnostics()
