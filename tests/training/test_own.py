"""Functions and networks of the user's own and of timm: errors of faulty ones, and what the trainer makes of them."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from pgt.cli.main import main
from pgt.config.identity import group_id, identity, run_id
from pgt.core.errors import InputError, Stopped
from pgt.core.own import located
from pgt.core.types import Batch
from pgt.data import open_set
from pgt.methods import Transform
from pgt.models import build, classifiers
from pgt.runs.folder import find
from pgt.training.assemble import assemble
from pgt.training.job import data_options
from pgt.training.precision import Precision
from pgt.training.ranks import ALONE
from pgt.training.trainer import Trainer
from pgt.training.trial import try_network
from tests.conftest import TINY, compose, last_wins, train
from tests.training.test_stopping import Asked

FAULTY = """
import torch
from torch import nn

NUMBER = 3


def late(parameters, step, *, at):
    if step == at:
        raise ZeroDivisionError("two\\nlines")


def images(logits, labels):
    return logits


def constant(logits, labels):
    return logits.detach().sum()


def third_class(logits, labels):
    return logits[:, 3].sum() if len(labels) > 2 else torch.nn.functional.cross_entropy(logits, labels)[None][5]


class Useless:
    def __init__(self, a=1):
        pass


class Network(nn.Linear):
    def __init__(self, num_classes, fault=None):
        super().__init__(3, num_classes)
        self.fault = fault
        if fault == "init":
            raise ValueError("no such fault")

    def forward(self, x):
        if self.fault == "late" and self.training:
            raise IndexError("only in training")
        return x if self.fault == "shape" else super().forward(x.mean((2, 3)))


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, logits, labels):
        return self.factor * torch.nn.functional.cross_entropy(logits, labels)


def auxiliary(num_classes):
    network = Network(num_classes)
    network.register_forward_hook(lambda layer, images, logits: (logits, logits) if layer.training else logits)
    return network


def number(num_classes):
    return NUMBER
"""

STATEFUL = """
import torch
from torch import nn


def dropping(num_classes):
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072), nn.Dropout(0.5), nn.Linear(3072, num_classes))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, logits, labels):
        if logits.requires_grad:
            self.calls = self.calls + 1
        return torch.nn.functional.cross_entropy(logits / self.calls, labels)


def noisy(parameters, step):
    for _, parameter in parameters:
        parameter.grad += 0.01 * torch.randn_like(parameter)
"""


def line_of(text):
    """The place of the line with this text, as an error names it."""
    [number] = [number for number, line in enumerate(FAULTY.splitlines(), 1) if text in line]
    return f"faulty.py, line {number})"


@pytest.fixture
def _faulty(monkeypatch):
    Path("faulty.py").write_text(FAULTY)
    Path("broken.py").write_text("def f(:\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("faulty", "broken"):
        sys.modules.pop(name, None)


def own_model(text):
    """The arguments that choose a model of this text."""
    file = Path("own/model/mine.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return ("model=mine", "--config-dir", "own")


def transform(text):
    return f"method.transforms=[{text}]"


@pytest.mark.usefixtures("_faulty")
@pytest.mark.parametrize(
    ("override", "facts"),
    [
        (
            transform("{_target_: no_such_module.f}"),
            ["method.transforms.0", "No module named", "--config-dir"],
        ),
        (transform("{_target_: faulty.nothing}"), ["method.transforms.0 (faulty.nothing)", "no attribute 'nothing'"]),
        (transform("{_target_: broken.f}"), ["method.transforms.0 (broken.f)", "broken.py, line 1"]),
        (transform("{_target_: faulty.late}"), ["missing a required argument: 'at'", "(parameters, step, *, at)"]),
        (transform("{_target_: faulty.late, at: 1, of: 2}"), ["unexpected keyword argument 'of'"]),
        (transform("{name: value, clip_value: 1}, {_target_: faulty.late}"), ["method.transforms.1 (faulty.late)"]),
        (transform("{_target_: faulty.NUMBER}"), ["must be a function or a class, not int"]),
        (transform("{_target_: faulty}"), ["method.transforms.0._target_ must name a function", "got faulty"]),
        (transform("{_target_: faulty.late, name: gc, at: 1}"), ["method.transforms.0 has a name and a _target_"]),
        (transform("{_target_: faulty.Useless}"), ["must make something that can be called, not Useless"]),
        ("method.loss={_target_: faulty.images}", ["method.loss (faulty.images) must return a tensor of shape []"]),
        ("method.loss={_target_: faulty.constant}", ["method.loss (faulty.constant)", "no gradient"]),
        ("method.loss={_target_: faulty.third_class}", ["method.loss", "IndexError", line_of("[None][5]")]),
        ("method.loss={_target_: faulty.Weighted}", ["method.loss (faulty.Weighted) has parameters", "buffers"]),
        ("method.loss={gamma: 2}", ["method.loss._target_ is missing"]),
    ],
)
def test_a_faulty_function_gets_one_line_and_nothing_is_written(capfd, override, facts):
    assert main(["train", *TINY, "model=resnet20", "method=baseline", override]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert all(fact in err for fact in facts), err
    assert not find(Path("runs"))


@pytest.mark.usefixtures("_faulty")
@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (
            "{_target_: faulty.Network, fault: init}",
            ["model (faulty.Network) failed: ValueError: no such fault", line_of("no such fault")],
        ),
        (
            "{_target_: faulty.Network, fault: shape}",
            ["must return a tensor of shape [2, 10], not one of [2, 3, 32, 32]"],
        ),
        ("{_target_: faulty.Network, depth: 3}", ["model (faulty.Network)", "unexpected keyword argument 'depth'"]),
        ("{_target_: faulty.auxiliary}", ["model (faulty.auxiliary) must return a tensor of shape [2, 10], not tuple"]),
        (
            "{_target_: faulty.Network, fault: late}",
            ["model (faulty.Network) failed: IndexError", line_of("only in training")],
        ),
        ("{_target_: faulty.number}", ["model (faulty.number)", "not int"]),
        ("{_target_: faulty.Network, name: resnet18}", ["model has a name and a _target_"]),
        ("{_target_: timm.create_model, model_name: no_such}", ["model (timm.create_model) failed", "no_such"]),
    ],
)
def test_a_faulty_network_gets_one_line_and_nothing_is_written(capfd, text, facts):
    assert main(["train", *TINY, "method=baseline", *own_model(text)]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert all(fact in err for fact in facts), err
    assert not find(Path("runs"))


@pytest.mark.usefixtures("_faulty")
def test_an_exception_while_training_names_key_file_and_line_and_the_run_can_go_on(capfd):
    late = transform("{_target_: faulty.late, at: 1}")
    assert main(["train", *TINY, "model=resnet20", "method=baseline", late]) == 2
    assert "method.transforms.0 (faulty.late) failed: ZeroDivisionError: two lines (" in (err := capfd.readouterr().err)
    assert line_of("ZeroDivisionError") in err
    Path("faulty.py").write_text(FAULTY.replace("step == at", "False"))
    sys.modules.pop("faulty")
    assert main(["train", *TINY, "model=resnet20", "method=baseline", late]) == 0


def test_groups_of_one_image_that_a_network_cannot_be_trained_on_are_refused(capfd):
    one = ("recipe.global_batch=1", "recipe.local_batch=1")
    assert main(["train", *last_wins(*TINY, *one), "model=resnet18", "method=baseline"]) == 2
    err = capfd.readouterr().err
    assert "model (resnet18) cannot take groups of one image of 32 pixels: Expected more than 1 value" in err
    assert not find(Path("runs"))


class Reentrant(nn.Module):
    """A network that computes its activations again in a way in which `torch.autograd.grad` cannot be used."""

    def __init__(self):
        super().__init__()
        self.unused, self.body = nn.Linear(1, 1), nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

    def forward(self, images):
        if self.training:
            return checkpoint(self.body, images.requires_grad_(), use_reentrant=True)
        with torch.enable_grad():
            return self.body(images) + 0 * self.unused.weight.sum()


def test_a_network_with_reentrant_checkpoints_is_tried():
    config = compose("data=synthetic", "recipe=demo", "model.name=timm/resnet18")
    network = Reentrant()
    network.eval()(torch.zeros(2, 3, config.data.image_size, config.data.image_size))
    assert try_network(config, network, 10, Precision("fp32", "cpu"))  # in training, `unused` is
    assert all(parameter.grad is None for parameter in network.parameters())


def test_trying_a_network_leaves_its_buffers_and_random_numbers_as_they_were():
    config = compose("data=synthetic", "recipe=demo", "model.name=timm/resnet18")
    network = build("timm/resnet18", 10)
    before = [value.clone() for value in network.state_dict().values()], torch.random.get_rng_state()
    try_network(config, network, 10, Precision("fp32", "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(before[0], network.state_dict().values(), strict=True))
    assert torch.equal(before[1], torch.random.get_rng_state())


def test_dropout_noise_and_the_buffers_of_a_loss_do_not_depend_on_stops(monkeypatch):
    Path("stateful.py").write_text(STATEFUL)
    monkeypatch.syspath_prepend(".")
    own_model("{_target_: stateful.dropping}")
    run = last_wins(*TINY, "recipe.epochs=2", "data.num_samples=24", "recipe.local_batch=4", "method=baseline",
                    f"hydra.searchpath=[file://{Path('own').absolute()}]", "model=mine",
                    "method.loss={_target_: stateful.Counting}", transform("{_target_: stateful.noisy}"))  # fmt: skip
    for look in (2, 4):
        with monkeypatch.context() as patch:
            patch.setattr("pgt.training.run.Stop", partial(Asked, look))
            with pytest.raises(Stopped):
                train(*run)
    train(*run)
    train(*run, "paths.runs=whole")
    sys.modules.pop("stateful")
    went_on, whole = (torch.load(next(Path(root).rglob("last.pt")), weights_only=True) for root in ("runs", "whole"))
    assert went_on["loss"] == whole["loss"] == {"calls": 12}
    assert all(torch.equal(went_on["model"][key], value) for key, value in whole["model"].items())


def test_alterations_draw_other_random_numbers_than_the_groups_of_their_step():
    drawn = []

    class Noted(nn.Linear):
        def forward(self, x):
            drawn.append(torch.rand(3))
            return super().forward(x.flatten(1))

    network = Noted(12, 5)
    trainer = Trainer(network, nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters()), lambda step: 0.1,
                      [Transform(lambda parameters, step: drawn.append(torch.rand(3)))], Precision("fp32", "cpu"),
                      Precision("fp32", "cpu").scaler(65536, 2000))  # fmt: skip
    for step in range(2):
        trainer.train_step([Batch(torch.randn(2, 3, 2, 2), torch.tensor([0, 1])) for _ in range(2)], step)
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 6


def test_a_function_may_have_the_name_of_its_module():
    assert located("model", "torchvision.models.alexnet") is torchvision.models.alexnet
    with pytest.raises(InputError, match="must be a function or a class, not module"):
        located("model", "torch.nn")


def test_a_loss_of_ones_own_does_not_go_with_what_it_replaces():
    for override in ("method.alpha=0.5", "method.label_smoothing=0.1", "method.implementation=surrogate"):
        with pytest.raises(InputError, match=r"method\.loss takes the place .* method=baseline"):
            compose("method=baseline", "method.loss={_target_: a.b}", override)


def test_name_and_arguments_are_part_of_the_identity():
    def ids(part):
        return group_id(identity(compose("method=baseline", part)))

    plain = group_id(identity(compose("method=baseline")))
    assert ids("method.loss=null") == plain
    parts = [
        *("method.loss={_target_: a.b}", "method.loss={_target_: a.c}", "method.loss={_target_: a.b, gamma: 1}"),
        *(
            "method.loss={_target_: a.b, gamma: {}}",
            transform("{_target_: a.b}"),
            transform("{_target_: a.b, list: [1, {x: 2}]}"),
        ),
    ]
    assert len({plain, *map(ids, parts)}) == len(parts) + 1
    assert run_id(identity(compose("model.name=timm/resnet18"))) != run_id(identity(compose("model=resnet18")))


def test_a_loss_of_ones_own_trains_like_the_same_loss_of_ours():
    theirs = train(*TINY, "model=resnet20", "method=baseline", "method.loss={_target_: torch.nn.CrossEntropyLoss}")
    ours = train(*TINY, "model=resnet20", "method=baseline")
    assert theirs.run_id != ours.run_id
    assert theirs.train_loss == pytest.approx(ours.train_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "classifier"),
    [("resnet20", "fc"), ("vgg19_bn", "fc"), ("timm/test_convnext", "head.fc"), ("timm/test_vit", "head")],
)
def test_the_classifier_is_known_whatever_the_network_calls_it(name, classifier):
    network = build(name, 7)
    assert classifiers(network) == (classifier,)
    assert network.get_submodule(classifier).out_features == 7


def test_the_last_linear_layer_of_another_network_is_its_classifier():
    assert classifiers(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))) == ("2",)
    assert classifiers(nn.Conv2d(3, 4, 1)) == ()


def test_agc_leaves_out_the_classifier_of_timms_networks():
    config = compose(*TINY, "model.name=timm/test_convnext", "method=agc", "method.transforms.0.clip_factor=1e-9")
    loaders = assemble(config, open_set(**data_options(config)), ALONE)
    trainer = loaders[2]
    for _, parameter in trainer.parameters:
        parameter.grad = torch.ones_like(parameter)
    trainer.alterations[0](trainer.parameters, 0)
    kept = [name for name, parameter in trainer.parameters if (parameter.grad == 1).all()]
    assert kept == ["head.fc.weight", "head.fc.bias"]


def test_any_network_of_timm_trains_with_norms_recorded_and_stands_in_status_and_plan(capsys):
    run = last_wins(*TINY, "model.name=timm/test_convnext", "recipe.local_batch=null", "record.norms_every=1")
    assert main(["train", *run]) == 0
    [(_, summary)] = find(Path("runs"))
    assert summary.identity["model"] == {"name": "timm/test_convnext", "interpolation": None}
    capsys.readouterr()
    for command in (["plan", *run], ["status"], ["table", "custom"]):
        assert main(command) == 0
    assert "Checkpoints: 0.0 + ? GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (["model.name=timm/resnet5O"], ["timm has no network resnet5O", "did you mean timm/resnet50?"]),
        (["model.name=timm/resnet50.no_tag"], ["Invalid pretrained tag"]),
        (["model=resnet18", "model.name=timm/resnet18"], ["model.name=timm/resnet18 goes with model=timm"]),
        (["model=timm", "model.name=resnet18"], ["model needs an interpolation"]),
        (["model=timm"], ["model.name is missing"]),
        (["model.name=timm/test_vit3"], ["model (timm/test_vit3) cannot take images of 32 pixels"]),
        (["model.name=timm/test_resnet", "recipe.local_batch=null"], ["timm/test_resnet has batch norm"]),
    ],
)
def test_a_network_of_timm_that_cannot_be_trained_gets_one_line(capfd, overrides, facts):
    assert main(["train", *last_wins(*TINY, *overrides)]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert all(fact in err for fact in facts), err
    assert not find(Path("runs"))


def test_evaluation_resizes_as_timm_says_unless_the_config_does():
    folder = ("data=imagefolder", "data.root=.")
    for name, interpolation in (("timm/test_resnet", "bilinear"), ("timm/convnext_atto.d2_in1k", "bicubic")):
        assert data_options(compose(*folder, f"model.name={name}"))["interpolation"] == interpolation
    given = compose(*folder, "model.name=timm/convnext_atto", "model.interpolation=bilinear")
    assert data_options(given)["interpolation"] == "bilinear"


@pytest.mark.usefixtures("_faulty")
def test_norms_of_a_network_without_a_linear_classifier_are_refused_before_anything_is_written(capsys):
    chosen = own_model("_target_: faulty.convolutional\ninterpolation: bilinear\n")
    Path("faulty.py").write_text(
        "from torch import nn\n\n\ndef convolutional(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    assert main(["train", *TINY, *chosen, "method=baseline", "record.norms_every=5"]) == 2
    assert "record.norms_every=0" in capsys.readouterr().err
    assert not Path("runs").exists() or not [*Path("runs").rglob("*.json")]
