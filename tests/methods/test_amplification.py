"""Gradient amplification: the measures, the choice of layers, and what happens to gradients."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.utils import counters

from pgt.core.types import Batch
from pgt.methods import Amplification, PowerGradCrossEntropy, build_alteration
from pgt.methods.amplification import MEASURES, choose, draw, normalised
from pgt.training import optimizer
from pgt.training.precision import Precision
from pgt.training.trainer import Trainer
from tests.conftest import compose, train
from tests.methods.test_clipping import OPTIONS as CLIPPING

OPTIONS = {
    "measure": "cancellation", "threshold": "mean", "select": "above", "ratio": None, "kinds": ["conv", "linear"],
    "where": "activations", "factor": 3.0, "epochs": [[1, 100]], "refresh": 1,
}  # fmt: skip
STEPS = 4


def amplification(**options):
    return Amplification(**{**OPTIONS, **options})


def everywhere(net, where="activations", layers=None, **options):
    """Amplification of these layers (all, if not named) from the next step on, attached to the network."""
    alteration = amplification(where=where, **options)
    alteration.attach(net, lambda step: 0.1)
    picked = [layers is None or name in layers for name in alteration.layers]
    assert any(picked)
    alteration.load_state_dict({**alteration.state_dict(), "choice": picked})
    return alteration


def chain(width=5):
    torch.manual_seed(2)
    layers = [part for _ in range(4) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(width, 3)).double()


def network():
    """Convolutions, batch norms with ReLUs that work in place, a shortcut, and a classifier."""

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    torch.manual_seed(3)
    block = Residual(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), block, nn.Flatten(),
                         nn.Linear(4 * 36, 5))  # fmt: skip


def trainer(net, *alterations, precision="fp64", scale=65536.0, compiled=False):
    chosen = Precision(precision, "cpu")
    net = chosen.apply(net)
    for alteration in alterations:
        alteration.attach(net, lambda step: 0.1)
    sgd = optimizer.build(net, 0.9, 5e-4, fused=False)
    return Trainer(net, PowerGradCrossEntropy(0.5), sgd, lambda step: 0.1, list(alterations), chosen,
                   chosen.scaler(scale, 2000), accumulating=True, compiled=compiled)  # fmt: skip


def groups(step, dtype=torch.float64, count=1):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(12, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(5, (12,), generator=generator)
    return [Batch(x, y) for x, y in zip(images.chunk(count), labels.chunk(count), strict=True)]


def run(subject, epochs=range(3), dtype=torch.float64, count=1):
    """Train; the records of the epochs by the first alteration that has any."""
    subject.model.train()
    records = []
    for epoch in epochs:
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            subject.train_step(groups(step, dtype, count), step)
        records += [a.end_epoch(epoch) for a in subject.alterations if isinstance(a, Amplification)]
    return records


def weights(subject):
    return torch.cat([p.detach().ravel() for p in subject.model.parameters()])


def amplified(record):
    return {key.removeprefix("amplification/") for key, value in record.items()
            if key.startswith("amplification/") and value != 1}  # fmt: skip


def of_layers(record):
    return {key.removeprefix("fluctuation/"): v for key, v in record.items() if key.startswith("fluctuation/")}


# The measures


def direct(measure, gradients):
    """The formulas of the docstrings, of gradients [T, J] in Python's own numbers."""
    rows = gradients.reshape(len(gradients), -1).tolist()
    if measure == "cancellation":
        flat = [value for row in rows for value in row]
        gross = sum(map(abs, flat))
        return 1 - abs(sum(flat)) / gross if gross else 0.0
    shares = [abs(sum(of)) / sum(map(abs, of)) if any(of) else 1.0 for of in zip(*rows, strict=True)]
    return 1 - sum(shares) / len(shares)


@st.composite
def histories(draw):
    """Gradients [T, J] of a layer: steps of very different sizes, some of them 0, and weights without gradient."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    steps, count = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    gradients = torch.randn(steps, count, generator=generator, dtype=torch.float64)
    gradients += draw(st.sampled_from([0.0, 1.0, -3.0]))
    sizes = draw(st.lists(st.sampled_from([0.0, 1e-6, 1.0, 1e4]), min_size=steps, max_size=steps))
    gradients *= torch.tensor(sizes, dtype=torch.float64)[:, None]
    return gradients * (torch.rand(count, generator=generator) > 0.2)


def measured(measure, gradients):
    return MEASURES[measure](gradients.sum(0), gradients.abs().sum(0)).item()


@pytest.mark.parametrize("measure", sorted(MEASURES))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(gradients=histories(), scale=st.sampled_from([-5.0, 1e-3, 2.0, 1e6]), seed=st.integers(0, 99))
def test_the_measures_are_their_formulas_bounded_and_free_of_scale_and_order(measure, gradients, scale, seed):
    value = measured(measure, gradients)
    assert 0 <= value <= 1
    assert value == pytest.approx(direct(measure, gradients), abs=1e-12)
    assert measured(measure, scale * gradients) == pytest.approx(value, abs=1e-12)
    order = torch.randperm(len(gradients), generator=torch.Generator().manual_seed(seed))
    assert measured(measure, gradients[order]) == pytest.approx(value, abs=1e-12)
    both_ways = torch.cat([gradients, -gradients])
    assert measured(measure, both_ways) == pytest.approx(1 if gradients.any() else 0) or measure != "cancellation"
    assert measured(measure, gradients.abs()) == pytest.approx(0, abs=1e-12)


def test_the_measures_differ_where_weights_disagree():
    """Each weight is pulled one way at all steps, but half of them to the other side."""
    gradients = torch.tensor([[1.0, -1.0]] * 3)
    assert measured("cancellation", gradients) == 1
    assert measured("cancellation_per_weight", gradients) == 0


@pytest.mark.parametrize("measure", sorted(MEASURES))
@pytest.mark.parametrize("count", [1, 3])
def test_they_equal_a_direct_computation_on_recorded_gradients(measure, count):
    class Recorded(list):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def attach(self, model, schedule):
            pass

        def __call__(self, parameters, step):
            self.append({n: p.grad.clone() for n, p in parameters})

    net = network()
    recorded = Recorded(net)
    subject = trainer(net, recorded, amplification(measure=measure, epochs=[]))
    [record] = run(subject, range(1), count=count)
    names = {name.removesuffix(".weight") for name, p in net.named_parameters() if p.ndim > 1}
    assert of_layers(record).keys() == names
    for name, value in of_layers(record).items():
        gradients = torch.stack([step[f"{name}.weight"] for step in recorded])
        assert value == pytest.approx(direct(measure, gradients), abs=1e-12)
    [again] = run(subject, range(1, 2), count=count)  # the sums begin anew
    gradients = torch.stack([step["0.weight"] for step in recorded[STEPS:]])
    assert of_layers(again)["0"] == pytest.approx(direct(measure, gradients), abs=1e-12)


# The choice


def test_layers_above_or_below_the_threshold_are_chosen_and_none_on_it():
    values = torch.tensor([0.90, 0.90, 0.91, 0.99], dtype=torch.float64)  # mean 0.925, deviation 0.0377
    assert choose(values, "mean", "above") == [False, False, False, True]
    assert choose(values, "mean", "below") == [True, True, True, False]
    assert choose(values, "mean_plus_std", "above") == [False, False, False, True]
    flat = torch.tensor([0.0, 0.5, 0.6, 1.0], dtype=torch.float64)  # mean 0.525, deviation 0.356
    assert choose(flat, "mean", "above") == [False, False, True, True]
    assert choose(flat, "mean_plus_std", "above") == [False, False, False, True]
    for select in ("above", "below"):
        assert choose(torch.full((3,), 0.7), "mean", select) == [False] * 3


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12), st.sampled_from([0.001, 1.0, 7.0]))
def test_normalisation_changes_no_choice(values, scale):
    raw = torch.tensor(values, dtype=torch.float64) / 1000
    scaled = normalised(raw)
    assert scaled.min() == 0
    assert scaled.max() in (0, 1)
    for threshold in ("mean", "mean_plus_std"):
        limit = raw.mean() + (raw.std(correction=0) if threshold == "mean_plus_std" else 0)
        clear = (raw - limit).abs() > 1e-9  # rounding decides nothing here
        for select, expected in (("above", raw > limit), ("below", raw < limit)):
            picked = torch.tensor(choose(raw, threshold, select))
            assert torch.equal(picked[clear], expected[clear])
            assert torch.equal(torch.tensor(choose(scale * raw + 5, threshold, select))[clear], expected[clear])


def test_a_random_share_depends_on_seed_and_epoch_alone():
    assert [sum(draw(10, ratio, 0, 1)) for ratio in (0.0, 0.3, 1.0)] == [1, 3, 10]
    assert draw(20, 0.5, 0, 1) == draw(20, 0.5, 0, 1)
    assert len({tuple(draw(20, 0.5, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(
    ("options", "fresh"),
    [
        ({"epochs": [[1, 100]]}, [1, 2, 3, 4, 5, 6, 7]),
        ({"epochs": [[0, 100]], "refresh": 3}, [1, 3, 6]),
        ({"epochs": [[2, 4], [5, 7]], "refresh": 5}, [2, 5]),
        ({"epochs": [[2, 4], [4, 6]], "refresh": 5}, [2, 4]),
        ({"epochs": []}, []),
    ],
)
def test_phases_and_refresh(options, fresh):
    """With a random choice, a fresh one is seen: it is that of its epoch."""
    net = chain(2)
    torch.manual_seed(0)
    alteration = amplification(select="random", ratio=0.4, kinds=["linear"], **options)
    alteration.attach(net, lambda step: 0.1)
    assert alteration.choice is None
    current = None
    for epoch in range(8):
        on = any(first <= epoch < end for first, end in options["epochs"]) and epoch > 0
        current = draw(5, 0.4, 0, epoch) if epoch in fresh else current if on else None
        expected = {name for name, picked in zip("02468", current or [], strict=False) if picked}
        assert amplified(alteration.end_epoch(epoch)) == expected, epoch


# The gradients


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"epochs": []}, {"epochs": [[9, 10]]}], ids=str)
@pytest.mark.parametrize("where", ["activations", "weights"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_factor_or_an_epoch_it_is_the_baseline_bit_for_bit(options, where, precision):
    plain, altered = network(), network()
    plain, altered = (
        trainer(plain, precision=precision),
        trainer(altered, amplification(where=where, kinds=["conv", "linear", "norm"], **options), precision=precision),
    )
    dtype = Precision(precision, "cpu").dtype
    run(plain, dtype=dtype)
    records = run(altered, dtype=dtype)
    assert torch.equal(weights(plain), weights(altered))
    assert not any(amplified(record) for record in records)
    assert any(any(a.choice or []) for a in altered.alterations) == ("factor" in options)


def gradients(net, x):
    x = x.clone().requires_grad_()
    net.zero_grad()
    net(x).square().sum().backward()
    return x.grad, {name: p.grad.clone() for name, p in net.named_parameters()}


X = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_last_layers_factor_multiplies_the_gradient_of_its_input_and_of_all_before():
    plain, net = chain(), chain()
    everywhere(net, layers=["8"], kinds=["linear"], factor=1.7)
    (dx, own), (expected, others) = gradients(net, X), gradients(plain, X)
    torch.testing.assert_close(dx, 1.7 * expected, rtol=1e-12, atol=0)
    for name, value in others.items():
        torch.testing.assert_close(own[name], 1.7 * value, rtol=1e-12, atol=0)


def test_chosen_layers_in_a_chain_multiply_what_is_before_them_by_a_power():
    plain, net = chain(), chain()
    everywhere(net, layers=["2", "4", "8"], kinds=["linear"], factor=1.5)
    (dx, own), (expected, others) = gradients(net, X), gradients(plain, X)
    torch.testing.assert_close(dx, 1.5**3 * expected, rtol=1e-12, atol=0)
    for name, power in {"0": 3, "2": 3, "4": 2, "6": 1, "8": 1}.items():
        for kind in ("weight", "bias"):
            key = f"{name}.{kind}"
            torch.testing.assert_close(own[key], 1.5**power * others[key], rtol=1e-12, atol=0)


def test_on_a_shortcut_nothing_is_multiplied():
    """x + f(x): the gradient of x is that of the sum and the branch's own, and only the branch is amplified."""
    plain, net = network().double(), network().double()
    everywhere(net, layers=["3.0"])
    x = groups(0)[0].images
    kept = {}
    for name, each in (("plain", plain), ("net", net)):
        each[3].register_full_backward_hook(lambda module, i, o, name=name: kept.update({name: (i[0], o[0])}))
        gradients(each, x)
    (before, above), (after, same) = kept["plain"], kept["net"]
    torch.testing.assert_close(above, same, rtol=1e-12, atol=0)
    torch.testing.assert_close(after - same, 3 * (before - above), rtol=1e-9, atol=1e-12)


def test_on_weights_only_the_chosen_layers_own_gradients_differ():
    plain, net = chain(), chain()
    alteration = everywhere(net, "weights", ["2", "8"], kinds=["linear"], factor=1.7)
    (dx, _), (expected, others) = gradients(net, X), gradients(plain, X)
    alteration(list(net.named_parameters()), 0)
    assert torch.equal(dx, expected)
    for name, p in net.named_parameters():
        chosen = name.split(".")[0] in ("2", "8")
        assert torch.equal(p.grad, 1.7 * others[name] if chosen else others[name]), name


def test_a_weight_that_chosen_layers_share_is_multiplied_once():
    plain, net = chain(), chain()
    for each in (plain, net):
        each[2].weight = each[0].weight
    alteration = everywhere(net, "weights", ["0", "2"], kinds=["linear"], factor=1.7)
    (_, _), (_, expected) = gradients(net, X), gradients(plain, X)
    alteration(list(net.named_parameters()), 0)
    assert torch.equal(net[0].weight.grad, 1.7 * expected["0.weight"])


@pytest.mark.parametrize("measure", sorted(MEASURES))
@pytest.mark.parametrize("where", ["activations", "weights"])
def test_in_a_chain_the_measure_does_not_see_the_factor(measure, where):
    """It is constant in an epoch. On weights it is applied after the sums, too."""
    found = []
    for factor in (1.0, 4.0):
        net = chain()
        alteration = everywhere(net, where, factor=factor, measure=measure)
        for step in range(3):
            gradients(net, X + step)
            alteration(list(net.named_parameters()), step)
        found.append(list(of_layers(alteration.end_epoch(1)).values()))
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    assert min(found[0]) > 0


def test_norms_before_a_relu_in_place_can_be_amplified():
    plain, net = network().double(), network().double()
    alteration = everywhere(net, kinds=["norm"], layers=["1"])
    assert list(alteration.layers) == ["1", "3.1"]
    x = groups(0)[0].images
    (_, own), (_, others) = gradients(net, x), gradients(plain, x)
    for name in ("0.weight", "1.weight", "1.bias"):
        torch.testing.assert_close(own[name], 3 * others[name], rtol=1e-9, atol=1e-12)
    assert torch.equal(own["3.0.weight"], others["3.0.weight"])


def test_a_layer_that_is_never_called_is_not_said_to_be_amplified():
    """nn.MultiheadAttention computes with its out_proj's weight and does not call it: no hook of its output fires."""
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 3)})
    alteration = amplification(kinds=["linear"], where="activations")
    alteration.attach(net, lambda step: 0.1)
    assert list(alteration.layers) == ["head"]
    alteration = amplification(kinds=["linear"], where="weights")
    alteration.attach(net, lambda step: 0.1)
    assert list(alteration.layers) == ["attention.out_proj", "head"]


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(ValueError, match=r"^finds no layer of the kinds norm in the network: set kinds to some of"):
        amplification(kinds=["norm"]).attach(chain(), lambda step: 0.1)
    frozen = chain()
    for p in frozen.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no layer of the kinds linear"):
        amplification(kinds=["linear"]).attach(frozen, lambda step: 0.1)


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_zeros_and_missing_gradients_are_taken(measure):
    net = chain()
    alteration = everywhere(net, "weights", measure=measure)
    alteration(list(net.named_parameters()), 0)
    gradients(net, 0 * X)
    net[0].weight.grad = None
    alteration(list(net.named_parameters()), 1)
    values = of_layers(alteration.end_epoch(0))
    assert values["0"] == 0
    assert all(0 <= value <= 1 for value in values.values())


# In training


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_a_run_resumed_within_an_epoch_chooses_and_trains_alike(measure):
    whole = trainer(network(), amplification(measure=measure, refresh=2))
    expected = run(whole)
    assert any(amplified(record) for record in expected)
    begun = trainer(network(), amplification(measure=measure, refresh=2))
    records = run(begun, range(1))
    for step in (4, 5):
        begun.train_step(groups(step), step)
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    resumed = trainer(copy.deepcopy(network()), amplification(measure=measure, refresh=2))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in (6, 7):
        resumed.train_step(groups(step), step)
    records.append(resumed.alterations[0].end_epoch(1))
    records += run(resumed, range(2, 3))
    assert records == expected
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own
@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_compiled_it_trains_the_same_and_a_new_choice_compiles_nothing(monkeypatch, count):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiler(module, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    subject = trainer(network(), amplification(kinds=["conv", "linear", "norm"]), compiled=True)
    records = run(subject, range(2), count=count)
    graphs = counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]
    records += run(subject, range(2, 5), count=count)
    assert counters["stats"]["unique_graphs"] == graphs
    assert len({frozenset(amplified(record)) for record in records}) > 1
    plain = trainer(network(), amplification(kinds=["conv", "linear", "norm"]))
    run(plain, range(5), count=count)
    torch.testing.assert_close(weights(subject), weights(plain), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_fp16_overflow_skips_steps_and_spoils_no_measure(measure):
    """The factor drives gradients out of fp16's range. The scaler lowers its scale, and training goes on."""
    subject = trainer(network(), amplification(measure=measure, factor=64.0), precision="fp16", scale=2.0**16)
    [first] = run(subject, range(1), torch.float16)
    before = subject.scaler.get_scale()
    assert any(subject.alterations[0].choice)
    [second] = run(subject, range(1, 2), torch.float16)
    _, _, _, skipped, *_ = subject.tally.read()
    assert skipped > 0
    assert subject.scaler.get_scale() < before
    assert weights(subject).isfinite().all()
    for record in (first, second):
        assert all(0 <= value <= 1 for value in of_layers(record).values())
    [third] = run(subject, range(2, 3), torch.float16)
    assert any(value > 0 for value in of_layers(third).values())


def test_a_step_that_is_not_finite_counts_for_nothing():
    net, twin = chain(), chain()
    alteration, other = everywhere(net), everywhere(twin)
    for step, factor in enumerate((1.0, float("inf"), -0.5)):
        gradients(net, (1 + step) * X)
        gradients(twin, (1 + step) * X)
        if factor == factor and abs(factor) != float("inf"):
            other(list(twin.named_parameters()), step)
        else:
            net[4].weight.grad[0, 0] = factor
        alteration(list(net.named_parameters()), step)
    assert of_layers(alteration.end_epoch(0)) == of_layers(other.end_epoch(0))


@pytest.mark.parametrize("name", ["gc", "agc"])
def test_clipping_behind_it_bounds_what_it_made_and_before_it_does_not(name):
    bound = {"gc": {"max_norm": 0.01}, "agc": {"clip_factor": 1e-4}}[name]

    def norm(first, second):
        """That of all gradients, after both."""
        net = network()
        subject = trainer(net, *[a for a in (first, second)])
        kept = []
        monitor = build_alteration(name, **{**CLIPPING[name], **bound})
        for alteration in subject.alterations:
            if isinstance(alteration, Amplification):
                alteration.load_state_dict({**alteration.state_dict(), "choice": [True] * len(alteration.layers)})
        step = subject.optimizer.step

        def look(*arguments, **options):
            grads = [p.grad.clone() for _, p in subject.parameters]
            monitor(subject.parameters, 0)
            kept.append(
                all(torch.allclose(a, p.grad, rtol=1e-5) for a, (_, p) in zip(grads, subject.parameters, strict=True))
            )
            return step(*arguments, **options)

        subject.optimizer.step = look
        subject.train_step(groups(0), 0)
        return kept[0]

    def clip():
        return build_alteration(name, **{**CLIPPING[name], **bound})

    assert norm(amplification(where="weights"), clip())
    assert not norm(clip(), amplification(where="weights"))
    assert norm(amplification(), clip())
    assert norm(clip(), amplification())  # within backpropagation it is before both


@pytest.mark.parametrize("order", [["gc", "amplification"], ["amplification", "gc"]], ids="+".join)
def test_a_run_with_pgt_and_clipping_in_either_order(order, capsys):
    entries = {
        "gc": "{name: gc, max_norm: 1.0}",
        "amplification": "{name: amplification, measure: cancellation_per_weight, threshold: mean, select: above, "
        "ratio: null, kinds: [conv, norm], where: activations, factor: 2, epochs: [[1, 3]], refresh: 1}",
    }
    config = ("recipe=demo", "recipe.epochs=3", "recipe.warmup_epochs=0", "recipe.global_batch=8",
              "recipe.local_batch=4", "data=synthetic", "data.num_samples=16", "data.image_size=8", "model=resnet20",
              "method=pgt", f"method.transforms=[{', '.join(entries[name] for name in order)}]")  # fmt: skip
    summary = train(*config)
    assert (summary.status, summary.epochs) == ("finished", 3)
    assert compose(*config).method.transforms[order.index("amplification")].factor == 2
    assert f"{'+'.join(order)}+pgt" in capsys.readouterr().out
