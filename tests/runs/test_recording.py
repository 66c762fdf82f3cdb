"""Runs that record norms: the files in their folders."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pgt.core.errors import InputError
from pgt.runs.folder import find, read_metrics
from pgt.runs.norms import read_norms
from pgt.training import epochs
from tests.conftest import TINY, train

RUN = (*TINY, "model=resnet20", "recipe.epochs=3")
RECORDED = (*RUN, "record.norms_every=1")


def folder(runs="runs"):
    [found] = find(Path(runs))
    return found[0]


def weights(path):
    return torch.load(path / "checkpoints" / "last.pt", weights_only=True)["model"]


def interrupted(*overrides):
    """Interrupt a run after the last step of its second epoch; return its folder."""
    evaluate, calls = epochs.evaluate, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(*overrides)
    return folder()


def test_norms_are_read_back_and_change_nothing():
    plain = train(*RUN, "paths.runs=plain")
    assert train(*RECORDED).run_id == plain.run_id
    path = folder()
    norms = read_norms(path)
    assert norms.steps.tolist() == list(range(6))
    assert [layer.filters for layer in norms.layers] == [16] * 7 + [32] * 6 + [64] * 6
    assert norms.layers[1].name == "blocks.0.conv1"
    assert norms.features.shape == (6, 64)
    for values in (norms.features, norms.gradient_norm, norms.logits["norm"], *map(norms.filters, range(1, 20))):
        assert np.isfinite(values).all()
        assert (np.diff(values, axis=0) != 0).any(), "as if nothing had been trained"
    assert np.array_equal(norms.gradient_norm, norms.gradient_norm_after)  # there is no transform
    before, after = weights(folder("plain")), weights(path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (folder("plain") / "norms").exists()


def test_an_interrupted_run_has_the_file_of_a_whole_one():
    train(*RECORDED, "paths.runs=whole")
    path = interrupted(*RECORDED)
    file = path / "norms" / "norms.bin"
    assert read_norms(path).steps.tolist() == [0, 1, 2, 3]  # its checkpoint is of step 2
    file.write_bytes(file.read_bytes()[:-50])
    train(*RECORDED)
    assert file.read_bytes() == (folder("whole") / "norms" / "norms.bin").read_bytes()


@pytest.mark.parametrize(("every", "steps"), [(0, [0, 1]), (4, [0, 1, 4, 5])])
def test_norms_every_may_change_when_a_run_is_resumed(every, steps):
    path = interrupted(*RECORDED)
    train(*RUN, f"record.norms_every={every}")
    assert read_norms(path).steps.tolist() == steps


def test_force_starts_over_and_another_networks_norms_are_refused():
    path = interrupted(*RECORDED)
    names = path / "norms" / "layers.json"
    names.write_text(names.read_text().replace('"conv1"', '"stem"'))
    with pytest.raises(InputError, match=r"norms holds the norms of another network: delete it, or add trainer.force"):
        train(*RECORDED)
    train(*RUN, "trainer.force=true")
    assert read_norms(path) is None


def test_zeroed_filters_are_reported(monkeypatch, capsys):
    assert "zeroed" not in str(train(*RUN, "paths.runs=plain")) + capsys.readouterr().out
    monkeypatch.setattr("pgt.runs.norms.ZEROED_OUT", 0.7)  # what some filters are born with
    train(*RECORDED)
    [said] = re.findall(r"zeroed-out filters: (\d+), in convolutions 1 \((\d+)\)", capsys.readouterr().out)
    assert "zeroed-out filters: " in (folder() / "log.txt").read_text()
    epochs = [record for record in read_metrics(folder()) if record["event"] == "epoch"]
    counts = epochs[-1]["zeroed_filters_by_layer"]
    assert (sum(counts), counts[0]) == (epochs[-1]["zeroed_filters"], int(said[1])) == (int(said[0]), int(said[1]))
    assert 0 < sum(counts) < 688
    # An epoch's count is of the weights behind its last step, a record of those before a step's update.
    assert list(read_norms(folder()).zeroed_out(4).values()) == epochs[1]["zeroed_filters_by_layer"]
    assert len(epochs) == 3


def test_recording_goes_with_accumulation_and_half_precision():
    """In fp16, which is slow on the CPU but runs the same code as on a GPU."""
    train(*TINY, "model=resnet20", "recipe.local_batch=2", "trainer.precision=fp16", "trainer.loss_scale=64",
          "data.image_size=8", "method=agc_pgt", "record.norms_every=5")  # fmt: skip
    norms = read_norms(folder())
    assert norms.steps.tolist() == [0, 1]
    assert (norms.gradient_norm_after < norms.gradient_norm).all()
