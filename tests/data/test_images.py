"""Image files through both backends: what is shown of them, and what happens to odd ones."""

import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
import socket
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from scipy import stats

from pgt import data, models
from pgt.cli.main import main
from pgt.core.errors import InputError
from pgt.core.machine import has_dali
from pgt.core.types import IGNORE_INDEX
from pgt.data import image_file
from pgt.data.image_file import read
from pgt.data.reader import CROP_AREA, CROP_RATIO, central_view, crop_box
from pgt.data.tree import Files, scan
from pgt.tools.jpegs import generate
from tests.data.helpers import BACKENDS, FOLDER, digest, loaders, script

LEVEL = 1 / (255 * 0.224)
"""One step of an 8-bit pixel after normalisation, in the widest channel."""


def photo(width=120, height=90, seed=0, mode="RGB"):
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return blobs.resize((width, height), Image.BICUBIC).convert(mode)


def tree(root, files, val=1):
    """`root` with a class of `files` (name -> bytes), a class of three photos, and `val` photos of each."""
    for name in ("cat", "dog"):
        for split, count in (("train", 3 if name == "dog" else 0), ("val", val)):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                photo(seed=i).save(folder / f"{i}.jpg")
    for name, content in files.items():
        (root / "train" / "cat" / name).write_bytes(content)
    return root


def encoded(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def epoch(options, epoch=0, split=0, **changes):
    """All images and labels of an epoch in one batch each."""
    loader = loaders(options, **changes)[split]
    batches = list(loader.epoch(epoch))
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches]), loader


@pytest.mark.parametrize(
    ("interpolation", "split"),
    [
        pytest.param("bilinear", 0, id="bilinear-train"),
        pytest.param("bicubic", 1, id="bicubic-val"),
        pytest.param("bilinear", 1, id="bilinear-val", marks=pytest.mark.slow),
        pytest.param("bicubic", 0, id="bicubic-train", marks=pytest.mark.slow),
    ],
)
def test_dali_and_pillow_show_the_same(tmp_path, interpolation, split):
    """The backends agree to a level of 255 if their filters are the same, and a network cannot tell them apart.

    PGT_TEST_IMAGES names a folder of classes of images to compare on, instead of generated ones.
    """
    root = os.environ.get("PGT_TEST_IMAGES")
    if root is None:
        generate(tmp_path / "train", 12)
        root = tmp_path / "train"
    for name in ("train", "val"):
        if not (tmp_path / name).exists():
            (tmp_path / name).symlink_to(root)
    count = len(scan(tmp_path / "train"))
    options = {**FOLDER, "image_size": 224, "interpolation": interpolation}
    (a, labels, _), (b, same, _) = (
        epoch({**options, "backend": backend}, split=split, global_batch=count, local_batch=count)
        for backend in BACKENDS
    )
    assert torch.equal(labels, same)
    difference = (a - b).abs()
    assert difference.mean() < 0.25 * LEVEL
    if interpolation == "bilinear" or split == 0:
        assert difference.max() < 1.01 * LEVEL
    torch.manual_seed(0)
    network = models.build("resnet18", 1000).eval()
    with torch.no_grad():
        z, w = network(a), network(b)
    assert torch.cosine_similarity(z, w).min() > 0.999
    assert (z.argmax(1) == w.argmax(1)).float().mean() > 0.98


@pytest.mark.skipif(not has_dali(), reason="needs NVIDIA DALI")
@pytest.mark.parametrize("split", [0, 1], ids=["train", "val"])
def test_what_is_decoded_whole_and_cut_is_what_is_decoded_in_part(tmp_path, monkeypatch, split):
    """The path of DALI on a GPU, followed on the CPU."""
    from nvidia.dali import fn

    for part in ("train", "val"):
        generate(tmp_path / part, 8)
    decode = fn.decoders.image
    part = list(loaders({**FOLDER, "backend": "dali"})[split].epoch(0))
    ways = []

    def whole(data, device, adjust_orientation, **for_the_gpu):
        ways.append((device, "preallocate_width_hint" in for_the_gpu))
        return decode(data, device="cpu", adjust_orientation=adjust_orientation)

    monkeypatch.setattr(fn.decoders, "image", whole)
    loader = loaders({**FOLDER, "backend": "dali"})[split]
    loader._on_gpu = True
    for _ in range(2):
        for one, other in zip(part, loader.epoch(0), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
    # The second epoch was not the one that would have followed; the pipeline of an evaluation was closed.
    assert ways == [("mixed", split == 0)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_arrives_follows_the_specification(tmp_path, backend):
    """Area, ratio and flip read off the delivered pixels of an image whose colours say where they come from."""
    side = 768
    ramp = np.broadcast_to(np.linspace(0, 255, side), (side, side))
    image = Image.fromarray(np.stack([ramp, ramp.T, 0 * ramp], 2).round().astype(np.uint8))
    for split in ("train", "val"):
        (tmp_path / split / "x").mkdir(parents=True)
    for i in range(20):
        image.save(tmp_path / "train" / "x" / f"{i}.bmp")
    image.save(tmp_path / "val" / "x" / "0.bmp")
    loader, _ = loaders({**FOLDER, "backend": backend, "image_size": 16}, global_batch=20, local_batch=20)
    pixels = torch.cat([next(loader.epoch(e)).images for e in range(60)]).double()
    scale = torch.tensor([0.229, 0.224]).double()[:, None, None] * (side - 1)
    across = (pixels[:, :2] * scale)[:, 0].mean(1)  # [samples, 16]: columns of the image
    down = (pixels[:, :2] * scale)[:, 1].mean(2)
    step = torch.arange(16).double() - 7.5
    slope_x, slope_y = (across @ step) / (step @ step), (down @ step) / (step @ step)
    width, height = slope_x.abs() * 16 / side, slope_y * 16 / side
    assert (height > 0).all()
    flips = int((slope_x < 0).sum())
    assert stats.binomtest(flips, len(pixels), 0.5).pvalue > 0.01
    area, ratio = (width * height).numpy(), (width / height).numpy()
    small = area < 0.5  # larger ones do not always fit, which bends the distribution
    assert small.sum() > 400
    assert stats.kstest(area[small], stats.uniform(CROP_AREA[0], 0.5 - CROP_AREA[0]).cdf).pvalue > 0.01
    low, high = np.log(CROP_RATIO)
    assert stats.kstest(np.log(ratio[small]), stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_crops_follow_the_specification():
    """Area and log ratio are uniform where every crop fits: a Kolmogorov–Smirnov test with a fixed seed."""
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(10_000, 10_000, rng) for _ in range(3000)])
    top, left, height, width = boxes.T
    area = height * width / 1e8
    small = area < 0.5
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


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (500, 333), (64, 64), (2400, 56), (257, 256)])
@pytest.mark.parametrize("side", [224, 32, 288])
def test_evaluation_is_torchvisions_resize_and_centre_crop(size, side):
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = photo(*size)
    view = central_view(*reversed(size), side)
    reference = Compose([Resize(round(side * 256 / 224)), CenterCrop(side)])(image)
    resized = image.resize(view.size[::-1], Image.BILINEAR)
    top, left = view.corner
    assert np.array_equal(np.asarray(reference), np.asarray(resized.crop((left, top, left + side, top + side))))


def bitmap_of_15_bits():
    pixels = np.random.default_rng(0).integers(0, 1 << 15, (90, 120), dtype="<u2").tobytes()
    sizes = struct.pack("<IiiHHIIiiII", 40, 120, 90, 1, 16, 0, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + sizes + pixels


ODD = {
    "png named.JPEG": encoded(photo(), "PNG"),
    "cmyk.jpg": encoded(photo(mode="CMYK")),
    "grey.jpg": encoded(photo(mode="L")),
    "progressive.jpg": encoded(photo(), progressive=True),
    "palette.png": encoded(photo(mode="P"), "PNG"),
    "alpha.png": encoded(photo(mode="RGBA"), "PNG"),
    "bits.png": encoded(photo(mode="1"), "PNG"),
    "gif named.jpg": encoded(photo(mode="P"), "GIF"),
    "webp.webp": encoded(photo(), "WEBP", lossless=True),
    "16 bit.png": encoded(Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257), "PNG"),
    "comment behind the end.jpg": encoded(photo()) + b"x" * 500,
    "bytes between.jpg": encoded(photo())[:20] + bytes(5) + encoded(photo())[20:],
    "zeros for an end.jpg": encoded(photo())[:-2] + bytes(6),
    "no end.png": encoded(photo(), "PNG")[:-12],
    "15 bits.bmp": bitmap_of_15_bits(),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_files_show_what_pillow_shows(tmp_path, backend):
    """Each file is a group of its own, since a backend gets all of a group as bitmaps if it fails on one file."""
    tree(tmp_path, ODD)
    plain = {}
    for name, content in ODD.items():
        with Image.open(io.BytesIO(content)) as image:
            shown = photo(mode="L") if name.startswith("16") else image
            plain[f"{Path(name).stem}.png"] = encoded(shown.convert("RGB"), "PNG")
    tree(tmp_path / "plain", plain)
    options, count = {**FOLDER, "backend": backend, "image_size": 64}, len(ODD) + 3
    (a, _, loader), (b, _, _) = (
        epoch({**options, "root": root}, global_batch=count, local_batch=1) for root in (".", "plain")
    )
    names = [loader.reader.files.path(index).name for index in loader.sampler.part(0).ravel()]
    difference = dict(zip(names, (a - b).abs().amax((1, 2, 3)).tolist(), strict=True))
    assert {name: value for name, value in difference.items() if value >= 1.01 * LEVEL} == {}


def test_rotation_in_the_exif_data_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    tree(tmp_path, {"turned.jpg": encoded(photo(), exif=exif.tobytes())})
    tree(tmp_path / "plain", {"turned.jpg": encoded(photo())})
    for backend in BACKENDS:
        options = {**FOLDER, "backend": backend, "image_size": 64}
        images = [epoch({**options, "root": root}, global_batch=4, local_batch=4)[0] for root in (".", "plain")]
        assert torch.equal(*images)


def deep(values, format="PNG"):
    return encoded(Image.fromarray(values), format)


def tiff_of_12_bits(values):
    """Grey `values` [H, W], of which W is even, packed by two into three bytes."""
    height, width = values.shape
    first, second = values.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


RAMP = np.linspace(0, 1, 80 * 60).reshape(60, 80)


@pytest.mark.parametrize("brightest", [1, 255, 256, 65535])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_deep_greyscale_is_scaled_to_8_bits_however_dark(brightest, format):
    values = (RAMP * brightest).round().astype(np.uint16)
    with Image.open(io.BytesIO(deep(values, format))) as image:
        shown = np.asarray(image_file.rgb(image))
    assert np.abs(shown - values[..., None] / 257).max() <= 0.5


def test_deep_colours_are_decoded_here_and_cut_as_pillow_cuts_them(tmp_path):
    """DALI would round them: 255 of 65535 to 1."""
    values = np.full((4, 6, 3), 255, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path = tmp_path / "16 bits.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks))  # fmt: skip
    content, *_ = read(path)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, np.asarray(image).max()) == ("BMP", 0)


def test_deep_greyscale_of_another_range_is_as_bright():
    values = (RAMP * 4095).round().astype(np.uint16)
    pgm = b"P5 80 60 4095 " + values.astype(">u2").tobytes()
    for content in (tiff_of_12_bits(values), pgm):
        with Image.open(io.BytesIO(content)) as image:
            assert np.abs(np.asarray(image_file.rgb(image)) - 255 * RAMP[..., None]).max() < 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_grey_values_without_a_defined_white_are_refused_by_name(tmp_path, backend, kind):
    top = 1 if kind == "float32" else 65535
    tree(tmp_path, {"deep.tif": deep((RAMP * top).astype(kind), "TIFF")})
    with pytest.raises(InputError, match=r"train/cat/deep.tif: .*save it with 8 or 16 bits"):
        epoch({**FOLDER, "backend": backend, "workers": 0}, global_batch=4, local_batch=4)


def noted_badly():
    """A JPEG of whose EXIF data Pillow warns, and a palette PNG of whose transparency it does."""
    exif = b"Exif\0\0II*\0\x08\0\0\0" + b"\x05\0" + bytes(6)
    palette = encoded(photo(mode="P"), "PNG", transparency=bytes(range(256)))
    return {"exif.jpg": encoded(photo(), exif=exif), "palette.png": palette}


@pytest.mark.parametrize("backend", BACKENDS)
def test_pillows_warnings_are_not_repeated(tmp_path, backend, monkeypatch, recwarn):
    for content in noted_badly().values():
        with Image.open(io.BytesIO(content)) as image:
            image.convert("RGB")
    assert len(recwarn) == 2
    recwarn.clear()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 120 - 1)
    tree(tmp_path, noted_badly())
    for split in (0, 1):
        epoch({**FOLDER, "backend": backend, "workers": 0}, split=split, global_batch=5, local_batch=5)
    assert [str(warning.message) for warning in recwarn] == []


def test_images_in_folders_within_a_class_and_pgm_are_in_the_set(tmp_path):
    tree(tmp_path, {"a.jpg": WHOLE, "b.PGM": encoded(photo(mode="L"), "PPM"), "notes.txt": b"x"})
    cat, far = tmp_path / "train" / "cat", tmp_path / "far"
    for folder in (cat / "b" / "deeper", cat / ".hidden", far):
        folder.mkdir(parents=True)
        (folder / "c.jpg").write_bytes(WHOLE)
    (cat / "b" / "back").symlink_to("../../cat")
    (cat / "linked").symlink_to(far)
    (cat / "again").symlink_to(far)
    files = scan(tmp_path / "train")
    names = ["a.jpg", "b.PGM", "b/deeper/c.jpg", "linked/c.jpg"]
    assert [name.decode() for name in files.names[:-3]] == names
    assert files.labels.tolist() == [0] * 4 + [1] * 3
    assert files.ignored == 2  # notes.txt, .hidden
    assert files.path(2) == cat / "b" / "deeper" / "c.jpg"
    assert files.indices([files.path(2), tmp_path / "val" / "cat" / "a.jpg", cat]) == {2}
    _, labels, _ = epoch({**FOLDER, "backend": BACKENDS[0]}, global_batch=7, local_batch=7)
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 3


def test_files_are_found_in_a_long_list():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20, dtype=np.int32), rng.integers(1, 9, 20))
    names = np.array([b"%d.jpg" % (i % 9) for i in range(len(labels))])  # some of them in several classes
    files = Files(Path("train"), tuple(f"n{i:02}" for i in range(20)), names, labels)
    every = [files.path(i) for i in range(len(files))]
    wanted = [*every[::3], every[-1], Path("train/n03/none.jpg"), Path("train/n20/0.jpg"), Path("val/n03/0.jpg")]
    assert files.indices(wanted) == {i for i, path in enumerate(every) if path in wanted}
    assert files.indices([]) == set()


def test_what_is_no_image_by_its_name_shifts_no_class(tmp_path):
    tree(tmp_path, {"a.jpg": encoded(photo()), "notes.txt": b"x", ".hidden.jpg": b"x", "._a.jpg": b"x"})
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "README").write_text("x")
    files = scan(tmp_path / "train")
    assert files.classes == ("cat", "dog")
    assert [str(files.path(i).relative_to(tmp_path)) for i in range(4)] == [
        "train/cat/a.jpg", "train/dog/0.jpg", "train/dog/1.jpg", "train/dog/2.jpg"]  # fmt: skip
    assert files.labels.tolist() == [0, 1, 1, 1]


def test_a_class_that_is_a_link_to_nowhere_shifts_no_class(tmp_path, capsys):
    tree(tmp_path, {"a.jpg": WHOLE})
    for split in ("train", "val"):
        (tmp_path / split / "bird").symlink_to("elsewhere")
    with pytest.raises(OSError, match="train/bird"):
        data.open_set(**{**FOLDER, "backend": "dali"})
    assert main(["train", "data=imagefolder", "data.root=."]) == 2
    assert "train/bird: No such file or directory" in capsys.readouterr().err


def test_an_empty_class_folder_is_refused(tmp_path):
    tree(tmp_path, {"notes.txt": b"x"})
    with pytest.raises(InputError, match="no images in 1 class folders of train: cat; fill them"):
        data.open_set(**{**FOLDER, "backend": "dali"})


def test_names_that_are_no_utf8_are_files_like_others(tmp_path):
    tree(tmp_path, {})
    name = b"\xff\xfe.jpg"
    with open(os.path.join(os.fsencode(tmp_path / "train" / "cat"), name), "wb") as file:
        file.write(encoded(photo()))
    _, labels, _ = epoch({**FOLDER, "backend": "dali"}, global_batch=4, local_batch=4)
    assert sorted(labels.tolist()) == [0, 1, 1, 1]


WHOLE = encoded(photo())


def holed(content, start, length=100):
    """Zero some bytes in the middle, so that the end of the file is in its place."""
    return content[:start] + bytes(length) + content[start + length :]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
BROKEN = {
    "cut off.jpg": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "cut off at the very end.jpg": (WHOLE[:-40], "truncated"),
    "empty.jpg": (b"", "not an image"),
    "text.jpg": (b"no image, but long enough for a header " * 9, "not an image"),
    "cut off.png": (encoded(photo(), "PNG")[:-200], "truncated|broken"),
    "cut off.webp": (encoded(photo(), "WEBP")[:-50], "not an image|decod"),
    "a hole.png": (holed(encoded(NOISE, "PNG"), 20_000), "broken|CRC|decod|stream"),
    "no tables.jpg": (holed(WHOLE, 180, 300), "broken|decod|truncated|not an image"),
    "long.png": (encoded(Image.new("RGB", (3000, 2)), "PNG"), "more than 100 times as long as wide"),
}


@pytest.fixture
def broken(tmp_path):
    """All of `BROKEN` beside a good file in train/cat, and in val/dog."""
    tree(tmp_path, {"fine.jpg": WHOLE, **{name: content for name, (content, _) in BROKEN.items()}})
    for name, (content, _) in BROKEN.items():
        (tmp_path / "val" / "dog" / name).write_bytes(content)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("split", "folder"), [(0, "train/cat"), (1, "val/dog")])
def test_a_broken_file_stops_the_run_with_its_name(broken, backend, split, folder):
    """Each file is a group of its own: as soon as the one that stopped the run is gone, the next one does."""
    options, left = {**FOLDER, "backend": backend}, dict(BROKEN)
    while left:
        with pytest.raises(InputError) as stopped:
            epoch(options, split=split, global_batch=4, local_batch=1, evaluation_batch=1, drop_last=False)
        found = re.match(rf"cannot read the image {folder}/(.*?\.\w+): (.*)on_bad_file=skip", str(stopped.value))
        assert found, stopped.value
        assert re.search(left.pop(found[1])[1], found[2])
        (Path(folder) / found[1]).unlink()


@pytest.mark.parametrize("backend", BACKENDS)
def test_broken_files_are_left_out(broken, backend):
    options, count = {**FOLDER, "backend": backend, "on_bad_file": "skip"}, len(BROKEN) + 4
    images, labels, loader = epoch(options, global_batch=count, local_batch=1)
    assert images.isfinite().all()
    assert set(loader.skipped) == {Path("train/cat") / name for name in BROKEN}
    before = scan(Path("train")).names.tolist().index(b"fine.jpg")  # the next good file is used for a broken one
    assert sorted(labels.tolist()) == [0] * (1 + before) + [1] * (3 + len(BROKEN) - before)
    _, labels, loader = epoch(options, split=1, evaluation_batch=1)
    assert sorted(labels[labels != IGNORE_INDEX].tolist()) == [0, 1]
    assert set(loader.skipped) == {Path("val/dog") / name for name in BROKEN}
    assert loader.num_samples == 2 + len(BROKEN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_cannot_be_opened(tmp_path, backend):
    tree(tmp_path, {})
    (tmp_path / "train" / "cat" / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"train/cat/gone.jpg: No such file or directory; mend"):
        epoch({**FOLDER, "backend": backend}, global_batch=4, local_batch=4)


@pytest.fixture
def _soon():
    """Fail the test if it waits for ever."""
    signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail("it waits"))
    signal.alarm(60)
    yield
    signal.alarm(0)


NO_FILE = {
    "device.jpg": "not a regular file",
    "directory.jpg": "Is a directory",
    "gone.jpg": "No such file or directory",
    "loop.jpg": "Too many levels of symbolic links",
    "pipe.jpg": "not a regular file",
    "socket.jpg": "No such device or address",
    "through a file.jpg": "Not a directory",
}


def no_files(folder):
    """Make something that is not a regular file under each name of `NO_FILE`."""
    (folder / "device.jpg").symlink_to("/dev/null")
    (folder / "directory.jpg").mkdir()
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(folder):
        made.bind("socket.jpg")
    (folder / "through a file.jpg").symlink_to("../dog/0.jpg/x")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_soon")
def test_what_is_no_file_is_a_bad_one_and_a_link_is_none(tmp_path, backend):
    tree(tmp_path, {"a.jpg": WHOLE})
    cat = tmp_path / "train" / "cat"
    (cat / "linked.jpg").symlink_to("../dog/0.jpg")
    no_files(cat)
    options = {**FOLDER, "backend": backend, "on_bad_file": "skip"}
    _, labels, loader = epoch(options, global_batch=12, local_batch=12)
    assert {path.name for path in loader.skipped} == set(NO_FILE)
    assert sorted(labels.tolist()) == [0] * (2 + 3) + [1] * (3 + 4)  # "linked.jpg" stands for three, a dog for four
    for name in NO_FILE:
        if name != "pipe.jpg":
            (cat / name).rmdir() if name == "directory.jpg" else (cat / name).unlink()
    with pytest.raises(InputError, match=r"^cannot read the image train/cat/pipe.jpg: not a regular file; mend or"):
        epoch({**options, "on_bad_file": "error"}, global_batch=6, local_batch=6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_broken_files_in_a_row_are_left_out(tmp_path, backend):
    """Even if each is found to be broken only when it is decoded, and if no other file is left."""
    tree(tmp_path, {f"{i}.png": BROKEN["a hole.png"][0] for i in range(4)})
    options = {**FOLDER, "backend": backend, "on_bad_file": "skip"}
    _, labels, loader = epoch(options, global_batch=7, local_batch=7)
    assert labels.tolist().count(1) == 7  # of the next class: each of the four has the first dog for it
    assert len(loader.skipped) == 4
    for path in (tmp_path / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"^cannot read 7 files in a row, the image train/.* and those behind"):
        epoch(options, global_batch=7, local_batch=7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_many_broken_files_in_a_row_stop_the_run(tmp_path, backend):
    """A hundred are left out, since the next file replaces them; of more none would, and the batches lack samples."""
    tree(tmp_path, {f"{i:03}.jpg": b"" for i in range(100)})
    options = {**FOLDER, "backend": backend, "on_bad_file": "skip", "workers": 0}
    _, labels, loader = epoch(options, global_batch=103, local_batch=103)
    assert labels.tolist() == [1] * 103
    assert len(loader.skipped) == 100
    (tmp_path / "train" / "cat" / "100.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"^cannot read 101 files in a row, the image train/cat/000.jpg \(not an"):
        epoch(options, global_batch=104, local_batch=104)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_was_left_out_stops_a_run_that_leaves_out_none(tmp_path, backend):
    tree(tmp_path, {"a.jpg": b""})
    options = {**FOLDER, "backend": backend, "workers": 0}
    _, _, skipping = epoch({**options, "on_bad_file": "skip"}, global_batch=4, local_batch=4)
    loader, _ = loaders(options, global_batch=4, local_batch=4)
    loader.skipped.update(skipping.skipped)  # as a run does that goes on
    with pytest.raises(InputError, match=r"^cannot read the image train/cat/a.jpg: not an image; mend"):
        next(loader.epoch(0))


def fail_at(monkeypatch, name, reading):
    """From now on, reading the file of this name fails once: at this reading, counted from 1."""
    original, calls = image_file.contents, []

    def contents(path):
        if path.name == name:
            calls.append(path)
            if len(calls) == reading:
                raise OSError(5, "Input/output error")
        return original(path)

    monkeypatch.setattr(image_file, "contents", contents)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_disk_in_trouble_stops_the_run_even_where_bad_files_are_left_out(tmp_path, backend, monkeypatch):
    """A file that can be read the second time is not a bad file."""
    tree(tmp_path, {"a.jpg": WHOLE})
    fail_at(monkeypatch, "a.jpg", 1)
    options = {**FOLDER, "backend": backend, "on_bad_file": "skip", "workers": 0}
    with pytest.raises(InputError, match=r"a.jpg could not be read before, and now it can: .*is the disk all right\?"):
        epoch(options, global_batch=4, local_batch=4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reading", [1, 2])
def test_a_disk_in_trouble_stops_the_run_where_a_file_stands_for_a_bad_one(tmp_path, backend, reading, monkeypatch):
    """Otherwise another file would stand for it in this epoch. `b.jpg` is read twice, once instead of `a.jpg`."""
    tree(tmp_path, {"a.jpg": b"", "b.jpg": WHOLE})
    fail_at(monkeypatch, "b.jpg", reading)
    options = {**FOLDER, "backend": backend, "on_bad_file": "skip", "workers": 0}
    with pytest.raises(InputError, match=r"b.jpg could not be read before, and now it can: .*is the disk all right\?"):
        epoch(options, global_batch=5, local_batch=5)


def test_dali_is_closed_though_the_gpu_waits_for_a_rank_that_is_gone(tmp_path, monkeypatch):
    generate(tmp_path / "train", 8)
    generate(tmp_path / "val", 4)
    loader, _ = loaders({**FOLDER, "backend": "dali"})
    monkeypatch.setattr("pgt.data.dali.CLOSING_SECONDS", 0.05)
    loader._held = [(SimpleNamespace(query=lambda: False), "the batch")]  # its copy is never made
    loader.close()
    assert loader._held, "memory that is still to be read stays"
    loader._held = []


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_epoch_left_in_the_middle_spoils_no_other(tmp_path, backend):
    generate(tmp_path / "train", 24)
    generate(tmp_path / "val", 6)
    train, test = loaders({**FOLDER, "backend": backend})
    whole, other, evaluated = (list(digest(loader.epoch(e))) for loader, e in ((train, 0), (train, 1), (test, 0)))
    for loader, e, expected in ((train, 0, whole), (test, 0, evaluated), (train, 1, other)):
        next(loader.epoch(e))
        assert list(digest(loader.epoch(e))) == expected


def test_the_same_processes_decode_every_epoch(tmp_path):
    generate(tmp_path / "train", 24)
    generate(tmp_path / "val", 2)
    train, _ = loaders({**FOLDER, "backend": "torchvision"})
    serving = []
    for e in range(2):
        for _ in train.epoch(e):
            pids = {process.pid for process in multiprocessing.active_children()}
        serving.append(pids)
    assert serving[0] == serving[1] != set()


def test_a_file_is_decoded_twice_only_where_its_end_is_missing(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    for name, content, expected in (("a.jpg", WHOLE, 0), ("b.jpg", WHOLE + b"x" * 200, 1), ("c.jpg", WHOLE[:-40], 2)):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == (content, 90, 120)
        assert len(decoded) == expected


REST = """
import json, sys
from tests.data.helpers import FOLDER, digest, loaders
if __name__ == "__main__":
    states = json.loads(sys.argv[2])
    for rank, state in enumerate(states):
        train, _ = loaders({**FOLDER, "backend": sys.argv[1]}, rank=rank, world_size=len(states))
        train.load_state_dict(state)
        print(*digest(train.epoch(1)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_process_goes_on_bit_for_bit(tmp_path, backend, world_size):
    generate(tmp_path / "train", 24)
    generate(tmp_path / "val", 2)
    states, expected = [], []
    for rank in range(world_size):
        train, _ = loaders({**FOLDER, "backend": backend}, rank=rank, world_size=world_size)
        lines = []
        for line in digest(train.epoch(1)):
            lines.append(line)
            if len(lines) == train.groups_per_step:
                states.append(train.state_dict())
        assert len(set(lines)) == len(lines) == 3 * 2 // world_size
        expected.append(" ".join(lines[train.groups_per_step :]))
    assert script(REST, backend, json.dumps(states)) == expected


READ_AHEAD = """
import sys
from tests.data.helpers import FOLDER, digest, loaders
if __name__ == "__main__":
    workers = int(sys.argv[1])
    train, _ = loaders({**FOLDER, "backend": "dali", "on_bad_file": "skip", "workers": workers}, cpus=workers)
    print(*digest(train.epoch(0)), *train.skipped)
"""


@pytest.mark.slow
def test_files_read_ahead_in_other_processes_change_nothing(tmp_path):
    generate(tmp_path / "train", 20)
    generate(tmp_path / "val", 2)
    (tmp_path / "train" / "class0" / "broken.jpg").write_bytes(b"")
    here, there = (script(READ_AHEAD, str(workers)) for workers in (1, 8))
    assert here == there
    assert here[0].endswith("train/class0/broken.jpg")


MEMORY = """
import sys, os, torch
from tests.data.helpers import FOLDER, loaders
def resident():
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    def parent(pid):
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    total = 0
    for pid in pids:
        try:
            if int(pid) == os.getpid() or parent(pid) == os.getpid():
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    total += sum(int(line.split()[1]) for line in file if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
        except OSError:
            continue
    return total
if __name__ == "__main__":
    train, test = loaders({**FOLDER, "backend": sys.argv[1], "image_size": 224})
    for epoch in range(40):
        for loader, index in ((train, epoch), (test, 0)):
            for batch in loader.epoch(index):
                pass
        if epoch % 10 == 9:
            print(resident())
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_stays_flat(tmp_path, backend, monkeypatch):
    """The memory of the process and its readers does not grow. Shared pages are counted once, those of libraries not
    at all, since their share depends on how many other processes use them."""
    generate(tmp_path / "train", 48)
    generate(tmp_path / "val", 8)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back at once; else sizes vary by 15%
    sizes = [int(line) for line in script(MEMORY, backend)]
    assert max(sizes) / sizes[0] < 1.04, sizes  # without a leak 1.01; a batch kept in each of ten epochs adds 0.05
