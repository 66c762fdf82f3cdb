import json
from pathlib import Path

import numpy as np
import pytest

from pgt.core.errors import InputError
from pgt.runs.norms import FOLDER, Layer, NormsFile, RecordFormat, read_norms

LAYOUT = RecordFormat((Layer("conv1", 3), Layer("block.conv", 2), Layer("last", 4)), features=5)
VALUES = 6 + 5 + 9


def plant(steps, every=10):
    """Write a record for each step; the value at place p of record r is 100 r + p."""
    path = Path("run") / FOLDER
    path.mkdir(parents=True)
    (path / "layers.json").write_text(json.dumps(LAYOUT.describe(every)))
    file = NormsFile(path, LAYOUT)
    for number, step in enumerate(steps):
        file.write(step, np.arange(VALUES, dtype=np.float32) + 100 * number)
    file.close()
    return path


def test_what_was_written_is_read():
    plant([0, 10, 17])
    norms = read_norms(Path("run"))
    assert norms.layers == LAYOUT.layers
    assert (norms.steps.dtype, norms.steps.tolist()) == (np.int64, [0, 10, 17])
    start = np.array([[0], [100], [200]])
    assert norms.gradient_norm.tolist() == [0, 100, 200]
    assert norms.gradient_norm_after.tolist() == [1, 101, 201]
    assert {name: values[1] for name, values in norms.logits.items()} == {
        "norm": 102, "mean": 103, "max": 104, "variance": 105}  # fmt: skip
    assert np.array_equal(norms.features, start + np.arange(6, 11))
    assert norms.filters(1).dtype == np.float32
    for index, places in enumerate((range(11, 14), range(14, 16), range(16, 20)), start=1):
        assert np.array_equal(norms.filters(index), start + np.array(places))
    for index in (0, 4):
        with pytest.raises(InputError, match=f"there is no layer {index}: choose one of 1 to 3"):
            norms.filters(index)


def test_zeroed_filters_are_counted_exactly():
    path = plant([0])
    file = NormsFile(path, LAYOUT, step=1)
    later = np.ones(VALUES, np.float32)
    later[[11, 13, 16, 17, 18, 19]] = [0, 1e-30, 1e-4, 9e-4, 0, 0]  # a whole layer among them
    later[14:16] = [np.nan, 2e-3]
    file.write(5, later)
    file.close()
    norms = read_norms(Path("run"))
    assert norms.zeroed_out() == {1: 2, 2: 0, 3: 4}
    assert norms.zeroed_out(0) == {1: 0, 2: 0, 3: 0}
    with pytest.raises(IndexError):
        norms.zeroed_out(2)


@pytest.mark.parametrize("lost", [1, 8, 4 * VALUES, 4 * VALUES + 7])
def test_a_record_that_a_crash_cut_short_is_left_out_and_written_again(lost):
    path = plant([0, 10, 20])
    file, whole = path / "norms.bin", (path / "norms.bin").read_bytes()
    file.write_bytes(whole[:-lost])
    assert read_norms(Path("run")).steps.tolist() == [0, 10]
    again = NormsFile(path, LAYOUT, step=11)
    again.write(20, np.arange(VALUES, dtype=np.float32) + 200)
    again.close()
    assert file.read_bytes() == whole


def test_a_file_is_cut_back_to_the_steps_before():
    path = plant([0, 10, 20, 30])
    for step, left in ((25, [0, 10, 20]), (20, [0, 10]), (0, [])):
        NormsFile(path, LAYOUT, step).close()
        assert read_norms(Path("run")).steps.tolist() == left


def test_no_norms_and_damaged_ones():
    assert read_norms(Path("run")) is None
    path = plant([10, 0])
    with pytest.raises(InputError, match=r"^the steps in .*norms.bin do not ascend: it is damaged"):
        read_norms(Path("run"))
    good = json.loads((path / "layers.json").read_text())
    for damaged in ("{torn", "[]", "{}", json.dumps({**good, "features": 6}), json.dumps({**good, "layers": [3]}),
                    json.dumps({**good, "layers": good["layers"][::-1]})):  # fmt: skip
        (path / "layers.json").write_text(damaged)
        with pytest.raises(InputError, match=r"^cannot read .*layers.json \(\w+\): it is damaged; put it back, or del"):
            read_norms(Path("run"))
