"""Decoded pixels are those of Pillow, whichever library decodes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from data_synthetic import SHARED, needs_shared
from PIL import Image, ImageOps

from transfer.data import images
from transfer.data.images import colour_planes, read_image

VARIANTS = {
    f"{subsampling}-{'progressive' if progressive else 'baseline'}": {
        "subsampling": subsampling,
        "progressive": progressive,
    }
    for subsampling in ("4:4:4", "4:2:2", "4:2:0")
    for progressive in (False, True)
} | {"stored-as-rgb": {"keep_rgb": True}, "restarts": {"restart_marker_rows": 1}}


def photo(mode: str, width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return smooth.convert(mode)


def record(path: Path) -> dict[str, object]:
    with Image.open(path) as image:
        width, height = ImageOps.exif_transpose(image).size
    return {"file_name": str(path), "width": width, "height": height}


def by_pillow(path: Path, mode: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows by whether simplejpeg could decode, with each call of it."""
    calls: list[bool] = []
    original = simplejpeg.decode_jpeg

    def counted(*args: object) -> np.ndarray:
        calls.append(False)
        pixels = original(*args)
        calls[-1] = True
        return pixels

    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", counted)
    return calls


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("stored", ["RGB", "L"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_jpeg_pixels_are_pillows(tmp_path, decoded, variant, stored, mode):
    for number, size in enumerate([(37, 53), (16, 8), (17, 1), (1, 31)]):
        path = tmp_path / f"{number}.jpg"
        photo(stored, *size).save(path, quality=80, **VARIANTS[variant])
        assert np.array_equal(np.asarray(read_image(record(path), mode)), by_pillow(path, mode))
    assert decoded == [True] * 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_jpeg(tmp_path, decoded, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "a.jpg"
    photo("RGB", 33, 20).save(path, exif=exif)
    assert np.array_equal(np.asarray(read_image(record(path), "RGB")), by_pillow(path, "RGB"))
    assert decoded == [True]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "CMYK"), ("a.png", "RGBA"), ("a.png", "P"), ("a.bmp", "RGB"), ("a.webp", "RGB")],
)
def test_other_files_are_left_to_pillow(tmp_path, decoded, name, mode):
    path = tmp_path / name
    photo("RGB", 33, 20).convert(mode).save(path)
    assert np.array_equal(np.asarray(read_image(record(path), "RGB")), by_pillow(path, "RGB"))
    assert decoded == []


def test_damage_that_pillow_tolerates(tmp_path, decoded):
    """A file with bytes that belong to nothing in its middle, of which libjpeg only warns."""
    stream = io.BytesIO()
    photo("RGB", 64, 64).save(stream, "JPEG", restart_marker_rows=1)
    whole = stream.getvalue()
    path = tmp_path / "a.jpg"
    marker = whole.rindex(b"\xff\xd1")
    path.write_bytes(whole[:marker] + b"\x12\x34\x56" + whole[marker:])
    assert np.array_equal(np.asarray(read_image(record(path), "RGB")), by_pillow(path, "RGB"))
    assert decoded == [False]


@needs_shared
def test_real_photos(decoded):
    paths = sorted(SHARED.glob("imagenet1000_s160/**/*.jp*g"))[::4]
    paths += sorted(SHARED.glob("tiny_coco/val2017/*.jpg"))
    assert len(paths) >= 300
    for path in paths:
        assert np.array_equal(np.asarray(read_image(record(path), "RGB")), by_pillow(path, "RGB"))
    assert decoded == [True] * len(paths)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1, 3)])
def test_colour_planes(shape, reverse):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = np.atleast_3d(pixels).transpose(2, 0, 1)
    planes = colour_planes(pixels, reverse).numpy()
    assert np.array_equal(planes, expected[::-1] if reverse else expected)
