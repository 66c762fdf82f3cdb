"""GC-ODE: the forward pass stays, and the gradient gains exactly what the branches carry."""

import sys

import pytest
import torch
import torch.nn.functional as F
import torchdiffeq
from torch import nn

from pgt.core.types import ADDED_BRANCHES, BRANCHES, is_own
from pgt.methods.correction_ode import Branch, Field, StateCorrection, TimeConvolution, integrate
from pgt.methods.stages import Stage
from pgt.models import build

OPTIONS = {"gamma": 0.3, "mode": "gradient", "solver": "euler", "steps": 2, "adjoint": False}


def network(name="resnet20", **options):
    """A network with branches, in float64, in training."""
    torch.manual_seed(0)
    model = build(name, 5).double()
    if options is not None:
        StateCorrection(**OPTIONS | options).attach(model, lambda step: 0.1)
    return model


def plain(name="resnet20"):
    torch.manual_seed(0)
    return build(name, 5).double()


IMAGES = torch.randn(3, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2])


def own(model):
    return {name: p for name, p in model.named_parameters() if is_own(name)}


def gradients(model):
    F.cross_entropy(model(IMAGES), LABELS).backward()
    return {name: p.grad for name, p in own(model).items()}


@pytest.mark.parametrize("name", ["resnet20", "resnet20_nobn", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_the_forward_pass_stays_bit_for_bit(name):
    altered, bare = network(name), plain(name)
    for training in (True, False):
        altered.train(training)
        bare.train(training)
        assert torch.equal(altered(IMAGES), bare(IMAGES))
    for key, value in bare.state_dict().items():
        assert torch.equal(altered.state_dict()[key], value)


def test_evaluation_leaves_the_branches_out(monkeypatch):
    altered = network().eval()
    monkeypatch.setattr(Branch, "forward", lambda *_: pytest.fail("a branch is computed"))
    altered(IMAGES)


@pytest.mark.parametrize("mode", ["gradient", "additive"])
def test_gamma_0_is_the_baseline_bit_for_bit(mode):
    altered, bare = network(gamma=0.0, mode=mode), plain()
    found = gradients(altered)
    assert all(torch.equal(found[name], gradient) for name, gradient in gradients(bare).items())


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_the_gradient_gains_what_finite_differences_give(solver):
    """With the gradient g that arrives behind each stage held fixed, the altered gradient is that of the plain loss and
    γ·⟨g, b⟩ over all branches, which central differences in float64 take from values alone."""
    model = network(solver=solver)
    arrived, before = {}, {}
    spans = [("blocks.0", "blocks.2"), ("blocks.3", "blocks.5"), ("blocks.6", "blocks.8")]
    after = {}
    for index, (first, last) in enumerate(spans):

        def catch(module, inputs, output, index=index):
            after[index] = output.detach()
            if output.requires_grad:
                output.register_hook(lambda gradient: arrived.setdefault(index, gradient.clone()))

        def see(module, inputs, index=index):
            before[index] = inputs[0]

        model.get_submodule(first).register_forward_pre_hook(see)
        model.get_submodule(last).register_forward_hook(catch)
    gradients(model)
    assert len(arrived) == 3
    kept = {index: gradient.clone() for index, gradient in arrived.items()}
    branches = model.get_submodule(BRANCHES)

    @torch.no_grad()
    def value():
        loss = F.cross_entropy(model(IMAGES), LABELS)
        carried = sum((kept[i] * branch(before[i], after[i])).sum() for i, branch in enumerate(branches))
        return (loss + OPTIONS["gamma"] * carried).item()

    def compare(parameters, step=1e-6):
        generator = torch.Generator().manual_seed(1)
        ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        length = torch.nn.utils.get_total_norm(ways)
        ways = [way / length for way in ways]
        values = []
        for sign in (1, -2, 1):
            for p, way in zip(parameters, ways, strict=True):
                p.data.add_(way, alpha=sign * step)
            values.append(value())
        expected = (values[0] - values[1]) / (2 * step)
        assert sum((p.grad * way).sum() for p, way in zip(parameters, ways, strict=True)).item() == pytest.approx(
            expected, rel=2e-6, abs=1e-9
        )

    compare(list(own(model).values()))
    compare([model.conv1.weight])
    compare(list(branches.parameters()))
    bare = gradients(plain())
    assert not torch.allclose(bare["conv1.weight"], model.conv1.weight.grad, rtol=1e-3)
    assert torch.equal(bare["fc.weight"], model.fc.weight.grad), "no branch comes after the last stage"


def test_additive_branches_are_part_of_the_forward_pass():
    model, bare = network(mode="additive"), plain()
    for training in (True, False):
        assert not torch.allclose(model.train(training)(IMAGES), bare.train(training)(IMAGES))
    assert not is_own(f"{ADDED_BRANCHES}.0.widen.weight")
    torch.autograd.gradcheck(lambda x: model.eval()(x), IMAGES[:1].requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_the_solvers_are_those_of_torchdiffeq(solver):
    field = Field(4).double()
    h = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    grid = torch.linspace(0, 1, 4, dtype=torch.float64)
    expected = torchdiffeq.odeint(field, h, grid, method=solver)[-1]
    torch.testing.assert_close(integrate(field, h, solver, 3), expected, rtol=1e-12, atol=1e-12)


def test_the_adjoint_gives_nearly_the_same_gradients():
    """The adjoint equation is solved backwards by the same solver, so that it agrees up to the error of a step."""
    stage, h = Stage("", "", "", 4, 8), torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    direct, adjoint = (Branch(stage, "rk4", 8, adjoint).double() for adjoint in (False, True))
    adjoint.load_state_dict(direct.state_dict())
    found = []
    for branch in (direct, adjoint):
        result = branch(h, torch.empty(2, 8, 3, 3))
        found.append([result, *torch.autograd.grad(result.square().sum(), [h, *branch.parameters()])])
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(*found, strict=True):
        assert torch.linalg.vector_norm(one - other) < 0.01 * torch.linalg.vector_norm(one)


def test_the_time_is_a_channel_of_the_convolutions():
    layer = TimeConvolution(4)
    x = torch.randn(2, 4, 5, 5)
    joined = torch.cat([x, torch.full((2, 1, 5, 5), 0.7)], 1)
    filters = torch.stack([weight / torch.linalg.vector_norm(weight) for weight in layer.weight])
    torch.testing.assert_close(layer(x, 0.7), F.conv2d(joined, filters, padding=1))


def test_branches_do_not_grow_with_their_weights():
    h = torch.randn(2, 4, 6, 6)
    branch = Branch(Stage("", "", "", 4, 8), "euler", 2, False)
    before = branch(h, torch.empty(2, 8, 3, 3))
    with torch.no_grad():
        for p in branch.parameters():
            p.mul_(1000)
    torch.testing.assert_close(branch(h, torch.empty(2, 8, 3, 3)), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8, 13])
def test_branches_come_out_in_the_shape_of_the_state_behind_the_stages(size):
    stage = Stage("", "", "", 4, 8)
    for stride in (1, 2, 4):
        after = torch.empty(1, 8, -(-size // stride), -(-size // stride))
        assert Branch(stage, "euler", 1, False)(torch.randn(1, 4, size, size), after).shape == after.shape


def test_spans_can_be_named():
    model = build("resnet20", 5)
    alteration = StateCorrection(**OPTIONS, spans=[["blocks.0", "blocks.8"]])
    alteration.attach(model, lambda step: 0.1)
    assert len(model.get_submodule(BRANCHES)) == 1
    assert "blocks.0 to blocks.8" in alteration.describe()
    model(torch.randn(2, 3, 13, 13)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="twice"):
        StateCorrection(**OPTIONS).attach(model, lambda step: 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adjoint", [False, True])
def test_it_works_under_autocast(dtype, adjoint):
    torch.manual_seed(0)
    model = build("resnet20", 5)
    StateCorrection(**OPTIONS | {"adjoint": adjoint}).attach(model, lambda step: 0.1)
    with torch.autocast("cpu", dtype):
        loss = F.cross_entropy(model(torch.randn(2, 3, 8, 8)), LABELS[:2])
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gradient", "additive"])
def test_it_compiles_without_graph_breaks(mode):
    found = []
    for compiled in (False, True):
        model = network(mode=mode)
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        F.cross_entropy(run(IMAGES), LABELS).backward()
        found.append([p.grad for p in model.parameters()])
    torch._dynamo.reset()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_networks_random_numbers_stay():
    model = nn.Sequential(build("resnet20", 5))
    before = torch.random.get_rng_state()
    StateCorrection(**OPTIONS).attach(model[0], lambda step: 0.1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_without_the_adjoint_the_package_is_not_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    network()(IMAGES)
    with pytest.raises(ImportError):
        network(adjoint=True)(IMAGES)
