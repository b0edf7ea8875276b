"""tools/make_shards.py: what is in the shards."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image
from sources_synthetic import write_tar
from test_trainer import run

from convert.seen_images import SeenImages
from pretrain.linear.config import default_cfg as linear_cfg
from pretrain.linear.data import Data
from pretrain.sharding.content import Options
from pretrain.sharding.make_shards import make_shards
from pretrain.source import raw
from pretrain.source.images import ImageFolder
from pretrain.source.open_source import open_source
from runtime.errors import InputError

RAW = Options(format="raw", shard_size=10)
SMALL = Options(short_side=16, quality=90, shard_size=10)
PLAIN = Options(shard_size=10)


pytestmark = pytest.mark.usefixtures("own_cache")


def files(folder: Path) -> dict[str, bytes]:
    """Of a finished set: but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def by_original(source: object) -> dict[bytes, int]:
    return {source.sha256(i): i for i in range(len(source.files))}


def test_files_go_in_unchanged_with_their_classes(image_folder: Path, tmp_path: Path) -> None:
    index = make_shards(str(image_folder), str(tmp_path / "out"), PLAIN)
    assert [shard.images for shard in index.shards] == [10, 10, 4]
    folder, shards = ImageFolder.scan(image_folder), open_source(tmp_path / "out")
    places = by_original(shards)
    order = [places[folder.sha256(i)] for i in range(24)]
    assert sorted(order) == list(range(24))
    assert order != list(range(24))  # shuffled
    assert [shards.read(i) for i in order] == [folder.read(i) for i in range(24)]
    assert [shards.class_names()[i] for i in order] == folder.class_names()
    assert [shards.labels()[i] for i in order] == folder.labels()
    names = [f"{i:02d}_{i % 12:03d}.jpg" for i in range(24)]
    assert [shards.files[i].split("/")[1] for i in order] == names
    make_shards(str(image_folder), str(tmp_path / "same"), Options(shard_size=10, seed=None))
    unshuffled = open_source(tmp_path / "same")
    assert [unshuffled.read(i) for i in range(24)] == [folder.read(i) for i in range(24)]


def test_the_bytes_depend_on_images_and_options_alone(image_folder: Path, tmp_path: Path) -> None:
    make_shards(str(image_folder), str(tmp_path / "one"), SMALL, workers=1)
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    for path in moved.rglob("*.jpg"):
        os.utime(path, (1, 1))
    make_shards(str(moved), str(tmp_path / "two"), SMALL, workers=3)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for number, other in enumerate((PLAIN, RAW, Options(short_side=16, quality=91, shard_size=10))):
        make_shards(str(image_folder), str(tmp_path / f"{number}"), other)
        assert files(tmp_path / "one").keys() == files(tmp_path / f"{number}").keys()
        assert files(tmp_path / "one") != files(tmp_path / f"{number}")
    with tarfile.open(tmp_path / "one" / "shard-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname) == ("", "")


def odd_images(folder: Path) -> None:
    """Every mode that a camera or a scanner leaves; what is not square shows a wrong turn."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 9, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((90, 50), Image.Resampling.BILINEAR)
    folder.mkdir()
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("RGBA").save(folder / "rgba.png")
    photo.convert("P").save(folder / "palette.png")
    deep = (np.asarray(photo.convert("L")).astype(np.uint16) << 8) + 77
    Image.fromarray(deep).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo.save(folder / "turned.jpg", exif=exif)
    photo.save(folder / "photo.webp")
    photo.resize((12, 20)).save(folder / "small.bmp")


def reference_pixels(path: Path, short_side: int) -> np.ndarray:
    from PIL import ImageOps

    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    image = image.convert("RGB")
    if short_side and min(image.size) > short_side:
        scale = short_side / min(image.size)
        size = [int(round(side * scale, 6)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)


@pytest.mark.parametrize("short_side", [0, 20])
@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_images_of_all_kinds(form: str, short_side: int, tmp_path: Path) -> None:
    odd_images(tmp_path / "odd")
    quality = 95 if form == "jpeg" and short_side else 0
    make_shards(str(tmp_path / "odd"), str(tmp_path / "out"), Options(form, short_side, quality))
    folder, shards = ImageFolder.scan(tmp_path / "odd"), open_source(tmp_path / "out")
    places = by_original(shards)
    for i, name in enumerate(folder.files):
        wanted = reference_pixels(tmp_path / "odd" / name, short_side)
        place = places[folder.sha256(i)]
        found = shards.pixels(place)
        assert (found.shape, found.dtype) == (wanted.shape, np.uint8), name
        if form == "raw" or not short_side or name == "small.bmp":
            assert np.array_equal(found, wanted), name
            assert np.array_equal(np.asarray(shards.load(place)), wanted), name
        else:
            assert np.abs(found.astype(int) - wanted).mean() < 6, name
    if form == "jpeg":  # what is small enough already stays as it is
        small = places[folder.sha256(folder.files.index("small.bmp"))]
        assert shards.read(small) == (tmp_path / "odd" / "small.bmp").read_bytes()


@pytest.mark.parametrize("options", [PLAIN, RAW, SMALL])
def test_pretraining_images_are_recognised_in_any_shards(
    options: Options, image_folder: Path, tmp_path: Path
) -> None:
    """No test image is pretrained on unnoticed: not one that was made smaller either, or twice."""
    make_shards(str(image_folder), str(tmp_path / "once"), options)
    make_shards(str(tmp_path / "once"), str(tmp_path / "twice"), Options(shard_size=7))
    folder = ImageFolder.scan(image_folder)
    for name in ("once", "twice"):
        shards = open_source(tmp_path / name)
        seen = SeenImages.of(24, shards.sha256)
        assert seen.among(folder.files, folder.sha256) == list(folder.files)
        assert len(seen.among(shards.files, shards.sha256)) == 24  # as a test set
    write_images(tmp_path / "others", 3, seed=9)
    others = ImageFolder.scan(tmp_path / "others")
    assert not seen.among(others.files, others.sha256)


def test_a_test_image_is_refused_though_shards_held_it_smaller(
    image_folder: Path, tmp_path: Path
) -> None:
    make_shards(str(image_folder), str(tmp_path / "out"), SMALL)
    state = run(tmp_path / "out", tmp_path / "run", "SOLVER.EPOCHS", "1")
    seen = SeenImages.from_dict(state["seen_images"], "checkpoint")
    folder = ImageFolder.scan(image_folder)
    test = Data(folder, folder, torch.tensor([0]), folder.sha256)
    with pytest.raises(InputError, match="24 of 24 test images were among the images of pretrain"):
        test.seen_by(linear_cfg(), seen)


def test_odd_names(tmp_path: Path) -> None:
    write_images(tmp_path / "plain", 8)
    photos = [path.read_bytes() for path in sorted((tmp_path / "plain").iterdir())]
    names = ["a.jpg", "a.png", "a.b.c.JPG", "x/a.jpg", "y.z/a.jpg", "é 雪.jpeg", "n" * 180 + ".jpg"]
    names.append(os.fsdecode(b"\xff.jpg"))  # no UTF-8
    for name, photo in zip(names, photos, strict=True):
        (tmp_path / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "odd" / name).write_bytes(photo)
    make_shards(str(tmp_path / "odd"), str(tmp_path / "out"), PLAIN)
    shards = open_source(tmp_path / "out")
    assert sorted(shards.read(i) for i in range(8)) == sorted(photos)
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        members = tar.getnames()
    assert len({name.split(".")[0] for name in members}) == 8
    assert all(name.isascii() and name.count(".") == 1 for name in members)
    listed = [tmp_path / "list" / "0", tmp_path / "list" / "1"]  # no suffix, as lists may have it
    (tmp_path / "list").mkdir()
    listed[0].write_bytes(photos[0])
    Image.open(io.BytesIO(photos[1])).save(listed[1], "PNG")
    (tmp_path / "list" / "names").write_text("0\tx\n1\ty\n")
    make_shards(str(tmp_path / "list" / "names"), str(tmp_path / "two"), Options(seed=None))
    shards = open_source(tmp_path / "two")
    assert [name.rpartition(".")[2] for name in shards.files] == ["jpeg", "png"]
    assert shards.classes() == ("x", "y")


@pytest.mark.skipif(not importlib.util.find_spec("webdataset"), reason="webdataset is absent")
@pytest.mark.parametrize("options", [PLAIN, RAW])
def test_webdataset_reads_them(options: Options, image_folder: Path, tmp_path: Path) -> None:
    import webdataset

    make_shards(str(image_folder), str(tmp_path / "out"), options)
    shards = open_source(tmp_path / "out")
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 24
    for i, sample in enumerate(samples):
        pixels = sample["npy" if options is RAW else "jpg"]
        assert np.array_equal(pixels, shards.pixels(i))
        assert sample["cls"] == shards.labels()[i]


def test_raw_members_are_read_as_numpy_writes_them_or_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    content = raw.to_bytes(pixels)
    assert np.array_equal(np.load(io.BytesIO(content)), pixels)
    assert np.array_equal(raw.parse(content), pixels)
    assert not raw.parse(content).flags.writeable
    for other in (
        pixels.astype(np.uint16),
        np.asfortranarray(pixels),
        pixels[..., :1],
        pixels[0],
        pixels[:0],
        pixels.astype(np.int8),
    ):
        out = io.BytesIO()
        np.save(out, other)
        wrong = out.getvalue()
        with pytest.raises(ValueError, match=r"NumPy file|pixels"):
            raw.parse(wrong)
        write_tar(tmp_path / "0.tar", [("x.npy", wrong)])
        with pytest.raises(InputError, match=r"'x.npy' in .*0.tar' is no image"):
            open_source(tmp_path)
    for wrong in (content[:-1], content + b"\0", content[:60], b""):
        with pytest.raises(ValueError, match=r"NumPy file|cut short"):
            raw.parse(wrong)


def test_numpy_files_about_an_image_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    out = io.BytesIO()
    np.save(out, np.zeros(7, dtype=np.float32))
    members = [("a.jpg", (tmp_path / "000.jpg").read_bytes()), ("a.npy", out.getvalue())]
    write_tar(tmp_path / "0.tar", members)
    assert open_source(tmp_path / "0.tar").files == ("0.tar/a.jpg",)
