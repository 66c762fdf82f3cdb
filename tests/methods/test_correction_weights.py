"""GC-W: bounds, the fit, and what it does to gradients of which the best direction is known."""

import math
import statistics

import pytest
import torch
from torch import nn

from pgt.methods.correction_weights import AFTER, BEFORE, LOSS, RATIO, Predictor, WeightCorrection, correct

OPTIONS = {"rho": 0.5, "every": 10, "history": 8, "width": 16, "target": "weights", "fit": "direction", "fit_steps": 1,
           "fit_lr": 3e-3, "layers": ["0"]}  # fmt: skip
RATE = 0.02


def attached(model, **options):
    alteration = WeightCorrection(**OPTIONS | options)
    alteration.attach(model, lambda step: RATE)
    return alteration


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(), b.flatten(), 0).item()


def descend(alteration, layer, gradients, rate=RATE):
    """Plain descent; yields the gradients before and after the correction.

    Args:
        gradients: called at each step.
    """
    for step, gradient in enumerate(gradients):
        layer.weight.grad = gradient.clone()
        alteration([], step)
        yield gradient, layer.weight.grad
        with torch.no_grad():
            layer.weight -= rate * layer.weight.grad


class NoisyQuadratic:
    """0.025·‖W − W*‖², whose best direction is its gradient, W − W*, with noise of `noise` times its size at the start.

    W − W* has rank 2 at the start: the filters have to go in directions that they share.
    """

    def __init__(self, layer, steps, noise, seed):
        self.generator = torch.Generator().manual_seed(seed)
        way = torch.randn(16, 2, generator=self.generator) @ torch.randn(2, 64, generator=self.generator)
        self.layer, self.steps, self.goal = layer, steps, layer.weight.detach() - 2 * way
        self.noise = noise * self.best.square().mean().sqrt()

    @property
    def best(self):
        return 0.05 * (self.layer.weight.detach() - self.goal)

    def __iter__(self):
        for _ in range(self.steps):
            yield self.best + self.noise * torch.randn(16, 64, generator=self.generator)


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_offset_keeps_its_bound_is_odd_and_scales_with_the_gradient(rho, scale):
    predictor = Predictor(9, 4)
    nn.init.normal_(predictor.out.weight)
    gradient = torch.randn(2, 6, 9)
    offset = correct(predictor, scale * gradient, rho)
    bound = rho * torch.linalg.matrix_norm(scale * gradient)
    assert (torch.linalg.matrix_norm(offset) <= bound * (1 + 1e-5)).all()
    assert offset.any() == (rho > 0)
    torch.testing.assert_close(correct(predictor, -scale * gradient, rho), -offset, rtol=1e-5, atol=0)
    torch.testing.assert_close(offset / scale, correct(predictor, gradient, rho), rtol=1e-4, atol=1e-6)
    assert not correct(predictor, torch.zeros(6, 9), rho).any()


def test_training_starts_as_plain_descent():
    layer = nn.Linear(64, 16, bias=False)
    pairs = list(descend(attached(nn.Sequential(layer)), layer, NoisyQuadratic(layer, 12, 1.0, 0)))
    assert all(torch.equal(before, after) for before, after in pairs[:10])
    assert not torch.equal(*pairs[11])  # the first fit was at step 10


@pytest.mark.parametrize("target", ["weights", pytest.param("gradients", marks=pytest.mark.slow)])
def test_it_turns_noisy_gradients_towards_the_best_direction(target):
    gains = []
    for seed in range(5):
        torch.manual_seed(seed)
        layer = nn.Linear(64, 16, bias=False)
        alteration = attached(nn.Sequential(layer), target=target)
        quadratic = NoisyQuadratic(layer, 300, 2.0, seed)
        found = [
            cosine(corrected, quadratic.best) - cosine(gradient, quadratic.best)
            for gradient, corrected in descend(alteration, layer, quadratic)
        ]
        gains.append(statistics.mean(found[150:]))
    print(f"{target}: {statistics.mean(gains):.3f} ± {statistics.stdev(gains):.3f} over {len(gains)} seeds")
    assert statistics.mean(gains) > 0.05
    assert statistics.mean(gains) > 3 * statistics.stdev(gains) / math.sqrt(len(gains))


@pytest.mark.parametrize("fit", ["direction", "vector"])
def test_on_pure_noise_it_stays_within_its_bound(fit):
    layer = nn.Linear(64, 16, bias=False)
    alteration = attached(nn.Sequential(layer), fit=fit)
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(16, 64, generator=generator) for _ in range(300))
    for gradient, corrected in descend(alteration, layer, noise):
        assert cosine(gradient, corrected) >= math.sqrt(1 - 0.5**2) - 1e-5
        assert torch.linalg.norm(corrected - gradient) <= 0.5 * torch.linalg.norm(gradient) * (1 + 1e-5)


@pytest.mark.parametrize("target", ["weights", "gradients"])
@pytest.mark.parametrize("fit", ["direction", "vector"])
def test_the_fit_lowers_its_loss_on_a_recorded_sequence(target, fit):
    layer = nn.Linear(64, 16, bias=False)
    alteration = attached(nn.Sequential(layer), target=target, fit=fit, history=6)
    recorded = []
    for gradient in NoisyQuadratic(layer, 60, 0.5, 0):
        recorded.append((layer.weight.detach().clone(), gradient))
        with torch.no_grad():
            layer.weight -= RATE * gradient
    losses = []
    for replay in range(8):
        for step, (weight, gradient) in enumerate(recorded, 60 * replay):
            layer.weight.data.copy_(weight)
            layer.weight.grad = gradient.clone()
            alteration([], step)
        losses.append(alteration.end_epoch(replay)[LOSS])
    assert losses[-1] < 0.95 * losses[1]


def test_the_direction_of_the_weights_is_the_way_that_they_went():
    """Plain descent on a constant gradient: D is that gradient, by either target."""
    for target in ("weights", "gradients"):
        layer = nn.Linear(4, 3, bias=False)
        alteration = attached(nn.Sequential(layer), target=target, rho=0.0)
        gradient = torch.randn(3, 4)
        for _ in descend(alteration, layer, [gradient] * 11):
            pass
        torch.testing.assert_close(alteration.memories[0].directions[0], gradient, rtol=1e-4, atol=1e-5)
        record = alteration.end_epoch(0)
        assert record[BEFORE] == pytest.approx(record[AFTER]) == pytest.approx(1)
        assert record[RATIO] == 0
        assert alteration.end_epoch(1) == {}


@pytest.mark.parametrize("target", ["weights", "gradients"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_not_learnt_from(target, bad):
    """The gradient scaler skips such steps; one may be the step of a snapshot."""
    layer = nn.Linear(64, 16, bias=False)
    alteration = attached(nn.Sequential(layer), target=target)
    for step, gradient in enumerate(NoisyQuadratic(layer, 25, 1.0, 0)):
        layer.weight.grad = gradient * bad if step in (10, 13) else gradient
        alteration([], step)
    assert all(p.isfinite().all() for p in alteration.predictors.parameters())
    assert alteration.memories[0].gradients.isfinite().all()
    assert alteration.memories[0].directions.isfinite().all()
    assert layer.weight.grad.isfinite().all()
    assert all(math.isfinite(value) for value in alteration.end_epoch(0).values())


@pytest.mark.parametrize("fit", ["direction", "vector"])
def test_a_step_that_was_skipped_leaves_no_direction_and_is_not_learnt_from(fit):
    """With a gradient scaler: of two steps between snapshots the second one overflows."""
    layer = nn.Linear(64, 16, bias=False)
    alteration = attached(nn.Sequential(layer), target="gradients", every=2, fit=fit)
    for step, gradient in enumerate(NoisyQuadratic(layer, 9, 1.0, 0)):
        layer.weight.grad = gradient * math.inf if step == 3 else gradient
        alteration([], step)
    assert all(p.isfinite().all() for p in alteration.predictors.parameters())
    assert layer.weight.grad.isfinite().all()


def test_a_state_goes_on_bit_for_bit():
    def went_on(interrupted):
        torch.manual_seed(0)
        layer = nn.Linear(64, 16, bias=False)
        alteration = attached(nn.Sequential(layer))
        found = []
        for step, gradient in enumerate(NoisyQuadratic(layer, 50, 1.0, 0)):
            if interrupted and step == 27:
                state = alteration.state_dict()
                torch.save(state, "state.pt")
                torch.manual_seed(1)
                alteration = attached(nn.Sequential(layer))
                alteration.load_state_dict(torch.load("state.pt", weights_only=True))
            layer.weight.grad = gradient
            alteration([], step)
            found.append(layer.weight.grad)
            with torch.no_grad():
                layer.weight -= RATE * layer.weight.grad
        return found, alteration.end_epoch(0)

    (one, record), (other, again) = went_on(False), went_on(True)
    assert record == again
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_layers_of_one_size_share_a_predictor():
    layers = [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(2, 5, 3)]
    model = nn.Sequential(*layers)
    before = torch.random.get_rng_state()
    alteration = attached(model, layers=["0", "1", "2"])
    assert sorted(alteration.predictors) == ["18", "36"]
    assert torch.equal(before, torch.random.get_rng_state())
    assert "0, 1, 2" in alteration.describe()
    assert len(list(model.parameters())) == 6, "the predictors are no part of the network"


@pytest.mark.parametrize("layer", ["2", "1", "0.nothing"])
def test_layers_that_are_not_there_are_named(layer):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=f"names {layer}, which is no layer"):
        attached(model, layers=[layer])
