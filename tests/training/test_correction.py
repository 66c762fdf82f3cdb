"""Gradient correction in whole runs: the baseline at ρ = γ = 0, mixed precision, records, exports, bad input."""

from pathlib import Path

import pytest
import torch

from pgt.cli.main import main
from pgt.core.types import ADDED_BRANCHES, BRANCHES, is_own
from pgt.data import open_set
from pgt.runs.folder import find, read_epochs
from pgt.runs.norms import read_format
from pgt.tools import networks, weights
from pgt.training.assemble import assemble
from pgt.training.ranks import ALONE
from tests.conftest import TINY, compose, train

SMALL = ("data=synthetic", "data.num_samples=96", "data.image_size=8", "recipe=demo", "recipe.global_batch=16",
         "recipe.local_batch=8", "recipe.warmup_epochs=0", "recipe.epochs=7", "model=resnet20")  # fmt: skip
RUN = (*TINY, "model=resnet20", "recipe.epochs=2", "method=gcgd", "method.transforms.1.every=2", "record.norms_every=1")


def after_steps(steps, *overrides):
    """The trainer after some steps of an epoch."""
    torch.manual_seed(0)
    dataset = open_set(name="synthetic", num_samples=96, num_classes=10, image_size=8)
    loader, _, trainer = assemble(compose(*SMALL, *overrides), dataset, ALONE)
    trainer.model.train()
    batches = loader.epoch(0)
    for step in range(steps):
        trainer.train_step([next(batches) for _ in range(loader.groups_per_step)], step)
    return trainer


def test_at_rho_0_and_gamma_0_training_is_the_baselines_bit_for_bit():
    zero = ("method=gcgd", "method.transforms.0.gamma=0", "method.transforms.1.rho=0", "method.transforms.1.every=2")
    bare, altered = (after_steps(3, *method).model.state_dict() for method in (["method=baseline"], zero))
    assert {key for key in altered if is_own(key)} == set(bare)
    assert all(torch.equal(altered[key], value) for key, value in bare.items())


def test_activations_computed_again_change_no_number():
    once, again = (
        after_steps(2, "method=gcode", f"trainer.checkpoint_activations={again}").model.state_dict()
        for again in ("false", "true")
    )
    assert all(torch.equal(again[key], value) for key, value in once.items())


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_in_16_bits_the_predictors_stay_in_float32(precision):
    """In fp16 the loss scale overflows at first, so that the first snapshot has gradients that are not finite."""
    more = ("method=gcgd", "method.transforms.1.every=2", f"trainer.precision={precision}", "trainer.loss_scale=5e5")
    trainer = after_steps(6, *more)
    correction = trainer.alterations[1]
    assert {p.dtype for p in correction.predictors.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in [*correction.predictors.parameters(), *trainer.model.parameters()])
    assert any(p.any() for name, p in correction.predictors.named_parameters() if name.endswith("out.weight"))
    skipped = trainer.tally.read()[3]
    assert skipped > 0 if precision == "fp16" else skipped == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, and what it printed."""
    root = tmp_path_factory.mktemp("runs")
    train(*RUN, f"paths.runs={root}")
    [(folder, _)] = find(root)
    return folder


def test_a_run_says_which_layers_it_corrects_and_records_how(finished):
    log = (finished / "log.txt").read_text()
    assert "blocks.2.conv2, blocks.5.conv2, blocks.8.conv2" in log
    assert "blocks.0 to blocks.2" in log
    names = {"gcw_relative_norm", "gcw_cosine_gradient", "gcw_cosine_corrected", "gcw_fit_loss"}
    assert all(names <= set(record) for record in read_epochs(finished, 2)[1:])


def test_recorded_norms_and_zeroed_filters_are_the_networks_own(finished):
    layers = read_format(finished / "norms").layers
    assert len(layers) == 19
    assert not any(BRANCHES in layer.name for layer in layers)
    assert len(read_epochs(finished, 2)[-1]["zeroed_filters_by_layer"]) == 19


@pytest.mark.parametrize("which", ["best", "last"])
def test_an_export_has_the_network_alone(finished, which, capsys):
    state = torch.load(finished / "checkpoints" / f"{which}.pt", weights_only=True)["model"]
    assert any(key.startswith(BRANCHES) for key in state), "training resumes with the branches"
    assert main(["export", str(finished), "--weights", which, "--output", f"out-{which}"]) in (0, None)
    source = weights.read(Path(f"out-{which}"))
    name, model = networks.fit(source.path, source.state, source.model)
    assert name == "resnet20"
    assert set(source.state) == {key for key in state if is_own(key)} == set(model.state_dict())
    capsys.readouterr()
    assert main(["validate", str(finished), "--weights", which]) in (0, None)


def test_additive_branches_cannot_be_left_out(capsys):
    train(*RUN, "method.transforms.0.mode=additive")
    [(folder, _)] = find(Path("runs"))
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert any(key.startswith(ADDED_BRANCHES) for key in state)
    assert len(read_format(folder / "norms").layers) == 19
    for command in (["export", str(folder), "--output", "out"], ["validate", str(folder)]):
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "additive" in error
        assert error.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (["method=gcw", "method.transforms.0.layers=[conv9]"], ["method.transforms.0 (gcw)", "conv9"]),
        (["method=gcode", "method.transforms.0.spans=[[blocks.0,fc]]"], ["method.transforms.0 (gcode)", "fc"]),
        (
            ["method=gcode", "method.transforms.0.spans=[[blocks.0]]"],
            ["method.transforms.0.spans.0", "of at least 2 items"],
        ),
        (["method=gcw", "method.transforms.0.rho=1"], ["method.transforms.0.rho", "must be below 1"]),
        (["method=gcw", "method.transforms.0.every=1"], ["method.transforms.0.every", "at least 2"]),
        (["method=gcode", "method.transforms.0.solver=dopri5"], ["method.transforms.0.solver", "euler, rk4"]),
    ],
)
def test_what_does_not_fit_gets_one_line_and_leaves_nothing(overrides, facts, capsys):
    assert main(["train", *TINY, "model=resnet20", *overrides]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(fact in error for fact in facts), error
    assert not Path("runs").exists()


def test_the_adjoint_without_its_package_is_told(monkeypatch, capsys):
    monkeypatch.setattr("pgt.config.schema.find_spec", lambda name: None)
    assert main(["train", *TINY, "model=resnet20", "method=gcode", "method.transforms.0.adjoint=true"]) == 2
    error = capsys.readouterr().err
    assert "method.transforms.0.adjoint needs the package torchdiffeq" in error
    assert error.count("\n") == 1
