import numpy as np
import pytest
import torch
from PIL import Image

from pgt import data
from pgt.core.errors import InputError
from pgt.core.registry import DATA_SETS
from pgt.core.types import IGNORE_INDEX
from tests.data.helpers import BACKENDS, FOLDER, loaders

SETS = {
    "digits": {"name": "digits"},
    "synthetic": {"name": "synthetic", "num_samples": 20, "num_classes": 3, "image_size": 6},
    "dali": {**FOLDER, "backend": "dali"},
    "torchvision": {**FOLDER, "backend": "torchvision"},
}


@pytest.fixture
def folder(tmp_path):
    """Two classes of random PNGs."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 11), ("val", 5)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_set_keeps_the_loaders_contract(name, dtype, folder):
    train, test = loaders(SETS[name], dtype=dtype)
    batches = list(train.epoch(0))
    assert len(batches) == train.steps_per_epoch * train.groups_per_step
    assert train.groups_per_step == 2
    for batch in batches:
        assert batch.images.shape[:2] == (4, 3)
        assert batch.images.dtype == dtype
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == torch.int64
        assert 0 <= batch.labels.min() <= batch.labels.max() < train.num_classes
    for _ in range(2):  # an evaluation can follow an evaluation
        labels = torch.cat([batch.labels for batch in test.epoch(0)])
        assert (labels != IGNORE_INDEX).sum() == test.num_samples


@pytest.mark.parametrize("name", SETS)
def test_an_epoch_repeats_and_the_next_differs(name, folder):
    train, _ = loaders(SETS[name])
    again, _ = loaders({**SETS[name], **({"workers": 0} if "workers" in SETS[name] else {})})
    first, repeated, other = list(train.epoch(2)), list(again.epoch(2)), list(train.epoch(3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, repeated, strict=True))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(first, repeated, strict=True))
    assert not all(torch.equal(a.images, b.images) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", [name for name in SETS if name != "synthetic"])  # which alters no image
def test_the_seed_decides_how_each_image_is_shown(name, folder):
    """Not its place in the epoch alone."""
    options = {**SETS[name], **({"workers": 0} if "workers" in SETS[name] else {})}
    first, other = (shown(*loaders(options, seed=seed, drop_last=False)) for seed in (0, 1))
    alike = [torch.equal(first[index], other[index]) for index in first]
    assert sum(alike) < len(alike) / 2  # one digit in nine is moved by the same pixel


def shown(train, _):
    """The image of each sample index in an epoch."""
    return dict(zip(train.sampler.order(0).tolist(), torch.cat([b.images for b in train.epoch(0)]), strict=True))


@pytest.mark.parametrize("name", SETS)
def test_a_place_is_left_and_found_again(name, folder):
    """Behind every step of an epoch; behind the last one begins the next epoch."""
    sizes = {"global_batch": 128, "local_batch": 64} if name == "digits" else {}  # 7 steps
    train, _ = loaders(SETS[name], **sizes)
    whole = list(train.epoch(1))
    for step in range(1, train.steps_per_epoch + 1):
        left, _ = loaders(SETS[name], **sizes)
        batches = left.epoch(1)
        for _ in range(step * left.groups_per_step):
            next(batches)
        state = left.state_dict()
        if step == left.steps_per_epoch:
            assert (state["epoch"], state["step"]) == (2, 0)
        found, _ = loaders(SETS[name], **sizes)
        found.load_state_dict(state)
        rest = list(found.epoch(1)) if state["epoch"] == 1 else []
        assert len(rest) == len(whole) - step * train.groups_per_step
        for a, b in zip(rest, whole[len(whole) - len(rest) :], strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
        assert len(list(found.epoch(2))) == len(whole)


def test_a_place_within_a_step_is_the_steps_beginning():
    train, _ = loaders(SETS["digits"])
    batches = train.epoch(3)
    places = []
    for _ in range(4):
        next(batches)
        places.append((train.state_dict()["epoch"], train.state_dict()["step"]))
    assert places == [(0, 0), (3, 1), (3, 1), (3, 2)]


def test_a_place_in_another_order_is_refused():
    train, _ = loaders(SETS["digits"])
    other, _ = loaders(SETS["digits"], seed=1)
    with pytest.raises(InputError, match=r"left in another order \(898 samples by 8, seed 0; now .* seed 1\)"):
        other.load_state_dict(train.state_dict())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "world_size", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_ranks_share_the_work_and_change_no_sample(name, world_size, folder):
    """The same groups, pixel for pixel, whoever delivers them; each evaluation sample once."""
    one_train, one_test = loaders(SETS[name], local_batch=2)
    ranks = [loaders(SETS[name], local_batch=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [list(train.epoch(1)) for train, _ in ranks]
    per_step = one_train.groups_per_step // world_size
    steps = range(0, len(parts[0]), per_step)
    together = [batch for start in steps for part in parts for batch in part[start : start + per_step]]
    for a, b in zip(together, one_train.epoch(1), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
    evaluated = [[batch.labels for batch in test.epoch(0)] for _, test in ranks]
    assert len({len(part) for part in evaluated}) == 1
    labels = torch.cat([torch.cat(part) for part in evaluated])
    expected = torch.cat([batch.labels for batch in one_test.epoch(0)])
    for c in range(one_test.num_classes):
        assert (labels == c).sum() == (expected == c).sum()


def test_digits_are_split_alike_for_every_seed_and_moved_by_a_pixel():
    (train, test), (_, other) = (loaders(SETS["digits"], seed=seed) for seed in (0, 1))
    assert (train.num_samples, test.num_samples, train.num_classes) == (898, 899, 10)
    images = [torch.cat([b.images for b in loader.epoch(0)]) for loader in (test, other)]
    assert torch.equal(*images)
    sums = [torch.cat([b.images for b in train.epoch(e)]).sum() for e in (0, 1)]
    assert sums[0] != sums[1]


def test_a_set_smaller_than_a_batch_is_refused():
    with pytest.raises(InputError, match=r"lower recipe.global_batch, set data.drop_last=false"):
        loaders(SETS["digits"], global_batch=1024)
    train, _ = loaders(SETS["digits"], global_batch=1024, drop_last=False)
    assert sum(len(batch.labels) for batch in train.epoch(0)) == 1024


@pytest.mark.parametrize("backend", BACKENDS)
def test_folders_that_do_not_fit_are_refused(folder, backend):
    options = SETS[backend]
    (folder / "val" / "dog").rename(folder / "val" / "wolf")
    with pytest.raises(InputError, match="different classes: dog, wolf"):
        data.open_set(**options)
    with pytest.raises(InputError, match="no folder nowhere/train"):
        data.open_set(**{**options, "root": "nowhere"})
    for split in ("train", "val"):
        (folder / "empty" / split / "x").mkdir(parents=True)
    with pytest.raises(InputError, match="no images under empty/train"):
        data.open_set(**{**options, "root": "empty"})


def test_a_gpu_that_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match=r"data\.dali_device=gpu needs a GPU"):
        loaders({**SETS["dali"], "dali_device": "gpu"})


def test_the_known_size_of_digits_is_its_size():
    train, test = loaders({"name": "digits"}, global_batch=64, local_batch=64)
    assert (train.num_samples, test.num_samples) == DATA_SETS["digits"].samples
