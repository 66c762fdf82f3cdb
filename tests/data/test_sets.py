import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from pgt import data
from pgt.data.delivery import Delivery
from pgt.data.folder import CROP_AREA, CROP_RATIO, centred, crop_box
from pgt.errors import InputError
from pgt.types import IGNORE_INDEX


def delivery(**changes):
    options = {"device": torch.device("cpu"), "dtype": torch.float32, "global_batch": 8, "local_batch": 4,
               "seed": 0, "drop_last": True, **changes}  # fmt: skip
    return Delivery(**options)


@pytest.fixture
def folder(tmp_path):
    """Two classes; the colour of an image says which file it is."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 11), ("val", 5)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


SETS = {
    "digits": {},
    "synthetic": {"num_samples": 20, "num_classes": 3, "image_size": 6},
    "imagefolder": {"root": ".", "image_size": 24, "workers": 2, "interpolation": "bilinear"},
}


@pytest.mark.parametrize("name", SETS)
def test_every_set_keeps_the_loaders_contract(name, folder):
    for dtype in (torch.float32, torch.bfloat16):
        train, test = data.load(name, delivery(dtype=dtype), **SETS[name])
        batches = list(train.epoch(0))
        assert len(batches) == train.steps_per_epoch * train.groups_per_step
        assert train.groups_per_step == 2
        for batch in batches:
            assert batch.images.shape[:2] == (4, 3)
            assert batch.images.dtype == dtype
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.labels.dtype == torch.int64
            assert 0 <= batch.labels.min() <= batch.labels.max() < train.num_classes
        labels = torch.cat([batch.labels for batch in test.epoch(0)])
        assert (labels != IGNORE_INDEX).sum() == test.num_samples


@pytest.mark.parametrize("name", SETS)
def test_an_epoch_repeats_and_the_next_differs(name, folder):
    train, _ = data.load(name, delivery(), **SETS[name])
    again, _ = data.load(name, delivery(), **{**SETS[name], **({"workers": 0} if name == "imagefolder" else {})})
    first, repeated, other = list(train.epoch(2)), list(again.epoch(2)), list(train.epoch(3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, repeated, strict=True))
    assert not all(torch.equal(a.images, b.images) for a, b in zip(first, other, strict=True))


def test_digits_are_split_alike_for_every_seed_and_moved_by_a_pixel():
    (train, test), (_, other) = (data.load("digits", delivery(seed=seed)) for seed in (0, 1))
    assert (train.num_samples, test.num_samples, train.num_classes) == (898, 899, 10)
    images = [torch.cat([b.images for b in loader.epoch(0)]) for loader in (test, other)]
    assert torch.equal(*images)
    sums = [torch.cat([b.images for b in train.epoch(e)]).sum() for e in (0, 1)]
    assert sums[0] != sums[1]


def test_a_manifest_changes_when_the_files_do(folder):
    before = data.manifest("imagefolder", **SETS["imagefolder"])
    assert before == data.manifest("imagefolder", **SETS["imagefolder"])
    (folder / "train" / "cat" / "0.png").unlink()
    assert before != data.manifest("imagefolder", **SETS["imagefolder"])


def test_a_broken_image_stops_with_its_name(folder):
    (folder / "train" / "cat" / "3.png").write_bytes(b"no image")
    for workers in (0, 2):
        train, _ = data.load("imagefolder", delivery(), **{**SETS["imagefolder"], "workers": workers})
        with pytest.raises(InputError, match=r"^cannot read the image train/cat/3.png: .*; replace or remove it$"):
            list(train.epoch(0))


def test_folders_that_do_not_fit_are_refused(folder):
    (folder / "val" / "dog").rename(folder / "val" / "wolf")
    with pytest.raises(InputError, match="different classes: dog, wolf"):
        data.load("imagefolder", delivery(), **SETS["imagefolder"])
    with pytest.raises(InputError, match="no folder nowhere/train"):
        data.load("imagefolder", delivery(), **{**SETS["imagefolder"], "root": "nowhere"})
    for split in ("train", "val"):
        (folder / "empty" / split / "x").mkdir(parents=True)
    with pytest.raises(InputError, match="no images under empty/train"):
        data.load("imagefolder", delivery(), **{**SETS["imagefolder"], "root": "empty"})


def test_a_set_smaller_than_a_batch_is_refused():
    with pytest.raises(InputError, match=r"lower recipe.global_batch, set data.drop_last=false"):
        data.load("digits", delivery(global_batch=1024))
    train, _ = data.load("digits", delivery(global_batch=1024, drop_last=False))
    assert sum(len(batch.labels) for batch in train.epoch(0)) == 1024


def test_crops_follow_the_specification():
    """Area and log ratio are uniform where every crop fits: a Kolmogorov–Smirnov test with a fixed seed."""
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(10_000, 10_000, rng) for _ in range(3000)])
    top, left, height, width = boxes.T
    area = height * width / 1e8
    small = area < 0.5  # larger ones do not always fit, which bends the distribution
    assert stats.kstest(area[small], stats.uniform(CROP_AREA[0], 0.5 - CROP_AREA[0]).cdf).pvalue > 0.01
    low, high = np.log(CROP_RATIO)
    assert stats.kstest(np.log(width / height)[small], stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 10_000).all()
    assert (left + width <= 10_000).all()


def test_a_crop_that_never_fits_is_the_centre_of_the_nearest_ratio():
    assert crop_box(1, 1000, np.random.default_rng(0))[2:] == (1, 1)
    assert crop_box(10, 4000, np.random.default_rng(0))[2] == 10


def test_evaluation_keeps_the_recipes_proportion():
    image = Image.fromarray(np.zeros((300, 600, 3), dtype=np.uint8))
    image.paste((255, 255, 255), (150, 0, 450, 300))  # the white centre is what remains
    view = centred(image, (0, 0), 224, "bilinear")
    assert view.shape == (3, 224, 224)
    assert (view == 255).all()
