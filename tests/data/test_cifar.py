"""CIFAR, read from archives made here: with the official files and keys, but fewer images."""

import hashlib
import pickle
import tarfile

import numpy as np
import pytest
import torch
from torchvision import datasets

from pgt import data
from pgt.core.errors import InputError
from pgt.data.memory import CropAndFlip
from tests.conftest import TINY, train
from tests.data.helpers import loaders

COUNTS = {"cifar10": (10, 5), "cifar100": (100, 1)}


def archive(folder, name, monkeypatch, packed=True):
    """Make an archive like the official one, and let torchvision expect its digests."""
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    classes, files = COUNTS[name]
    label = "labels" if name == "cifar10" else "fine_labels"
    inside = folder / kind.base_folder
    inside.mkdir()
    rng = np.random.default_rng(0)

    def write(file, content):
        (inside / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((inside / file).read_bytes()).hexdigest()

    def batch(size):
        return {"data": rng.integers(0, 256, (size, 3072), dtype=np.uint8), label: [i % classes for i in range(size)]}

    per_file = 100 // files
    monkeypatch.setattr(kind, "train_list", [[file, write(file, batch(per_file))] for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[file, write(file, batch(100))] for file, _ in kind.test_list])
    meta = {kind.meta["key"]: [f"class{i}" for i in range(classes)]}
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write(kind.meta["filename"], meta)})
    if packed:
        with tarfile.open(folder / kind.filename, "w:gz") as tar:
            tar.add(inside, kind.base_folder)
        for file in inside.iterdir():
            file.unlink()
        inside.rmdir()
        digest = hashlib.md5((folder / kind.filename).read_bytes()).hexdigest()
        monkeypatch.setattr(kind, "tgz_md5", digest)
    return kind


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", COUNTS)
def test_cifar_is_read_and_normalised(tmp_path, monkeypatch, name, packed):
    archive(tmp_path, name, monkeypatch, packed)
    train_loader, test = loaders({"name": name, "root": str(tmp_path)}, global_batch=100, local_batch=100)
    assert (train_loader.num_samples, test.num_samples, test.num_classes) == (100, 100, COUNTS[name][0])
    [batch] = test.epoch(0)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    plain = torch.from_numpy(kind(tmp_path, train=False).data).permute(0, 3, 1, 2) / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(batch.images, (plain - mean[:, None, None]) / deviation[:, None, None])
    assert batch.labels.tolist() == [i % COUNTS[name][0] for i in range(100)]
    first, second = (next(iter(train_loader.epoch(e))).images for e in (0, 1))
    assert not torch.equal(first, second)


def test_a_run_on_cifar(tmp_path, monkeypatch):
    archive(tmp_path, "cifar10", monkeypatch)
    monkeypatch.setenv("CIFAR", str(tmp_path))
    summary = train("model=resnet20", "data=cifar10", *(o for o in TINY if not o.startswith("data")))
    assert (summary.status, summary.identity["data"]["name"]) == ("finished", "cifar10")


def test_what_is_missing_or_damaged_is_said_and_nothing_is_fetched(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"^neither .*cifar-10-python.tar.gz nor .*cifar-10-batches-py: put the"):
        loaders({"name": "cifar10", "root": str(tmp_path)})
    kind = archive(tmp_path, "cifar10", monkeypatch)
    with pytest.raises(InputError, match=r"^no folder nowhere: data.root must hold the official archive"):
        data.check(name="cifar10", root="nowhere", drop_last=True)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    with (tmp_path / kind.filename).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"cifar-10-python.tar.gz is damaged: put the official archive there"):
        loaders({"name": "cifar10", "root": str(tmp_path)})
    (tmp_path / kind.base_folder).mkdir()
    with pytest.raises(InputError, match=r"cifar-10-batches-py is damaged: remove it, and put the official archive"):
        loaders({"name": "cifar10", "root": str(tmp_path)})


def test_crops_and_flips_are_even_and_keyed_by_the_sample():
    """All 9 x 9 places and both orientations are equally frequent, up to chance."""
    from scipy import stats

    n, side = 4000, 32
    ramp = torch.arange(side * side, dtype=torch.float64).view(1, 1, side, side) + 1
    augment = CropAndFlip(0, n, 4, torch.full((3,), -1.0), flip=True)
    images = augment(ramp.expand(n, 3, -1, -1), torch.arange(n), 0)
    middle = images[:, 0, 16, 15:17]  # inside the image at any offset
    flipped = middle[:, 0] > middle[:, 1]
    assert stats.binomtest(int(flipped.sum()), n, 0.5).pvalue > 0.01
    left = torch.where(flipped, middle[:, 1], middle[:, 0]).long() - 1
    rows, columns = left // side - 12, left % side - 11
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(9))
    table = np.zeros((9, 9))
    np.add.at(table, (rows.numpy(), columns.numpy()), 1)
    assert stats.chisquare(table.ravel()).pvalue > 0.01
    again = augment(ramp.expand(3, 3, -1, -1), torch.tensor([7, 3999, 0]), 0)
    assert torch.equal(again, images[[7, 3999, 0]])
    assert (images == -1).any()
