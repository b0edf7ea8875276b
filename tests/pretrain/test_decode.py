"""The quick decoder against Pillow: the same bytes, or the same refusal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pretrain.source import decode as decoding
from pretrain.source import raw
from pretrain.source.decode import decode, decode_pixels
from pretrain.source.images import ImageFolder, UnreadableImageError
from pretrain.source.jpeg import decode_plain

SHARED = Path("/work/shared/data")
RNG = np.random.default_rng(0)
SMALL = RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)
PHOTO = Image.fromarray(SMALL).resize((60, 41), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def with_segment(marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment after its start."""
    content = encoded(PHOTO)
    return (
        content[:2]
        + bytes((0xFF, marker))
        + (len(body) + 2).to_bytes(2, "big")
        + body
        + content[2:]
    )


XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="%d"/>'
PLAIN = {
    **{f"4:{i}": encoded(PHOTO, subsampling=i) for i in (0, 1, 2)},
    **{f"quality {q}": encoded(PHOTO, quality=q) for q in (1, 50, 96, 100)},
    "progressive": encoded(PHOTO, progressive=True),
    "grey": encoded(PHOTO.convert("L")),
    "grey, progressive": encoded(PHOTO.convert("L"), progressive=True),
    "one pixel": encoded(PHOTO.crop((0, 0, 1, 1))),
    "one row": encoded(PHOTO.crop((0, 0, 60, 1))),
    "upright by Exif": encoded(PHOTO, exif=exif(1)),
    "a comment": encoded(PHOTO, comment=b"hello"),
    "a colour profile": encoded(PHOTO, icc_profile=b"x" * 70_000),
    "restarts": encoded(PHOTO, restart_marker_blocks=2),
    "optimised": encoded(PHOTO, optimize=True),
    "XMP without a turn": with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
    "bytes after its end": encoded(PHOTO) + b"tail",
}
NOT_PLAIN = {
    "CMYK": encoded(PHOTO.convert("CMYK")),
    "RGB": encoded(PHOTO, keep_rgb=True),
    **{f"turned by Exif {i}": encoded(PHOTO, exif=exif(i)) for i in range(2, 9)},
    "turned by XMP": with_segment(0xE1, XMP % 6),
    "damaged Exif": encoded(PHOTO, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "PNG": encoded(PHOTO, "PNG"),
    "16-bit PNG": encoded(
        Image.fromarray(RNG.integers(0, 1 << 16, (5, 7), dtype=np.uint16)), "PNG"
    ),
    "RGBA": encoded(PHOTO.convert("RGBA"), "PNG"),
    "palette": encoded(PHOTO.convert("P"), "PNG"),
    "WebP": encoded(PHOTO, "WEBP"),
    "TIFF": encoded(PHOTO, "TIFF"),
}


def plain(content: bytes) -> np.ndarray | None:
    return decode_plain(content, decoding.MAX_PIXELS, [])


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_become_pillows_bytes(name: str) -> None:
    pixels = plain(PLAIN[name])
    assert pixels is not None
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, np.asarray(decode(PLAIN[name])))


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_other_files_are_left_to_pillow(name: str) -> None:
    assert plain(NOT_PLAIN[name]) is None
    assert np.array_equal(decode_pixels(NOT_PLAIN[name]), np.asarray(decode(NOT_PLAIN[name])))


def test_turned_files_are_turned() -> None:
    assert decode_pixels(NOT_PLAIN["turned by Exif 6"]).shape == (60, 41, 3)
    assert decode_pixels(NOT_PLAIN["turned by XMP"]).shape == (60, 41, 3)


def outcome(decoder: Any, content: bytes) -> Any:
    try:
        return np.asarray(decoder(content)).tobytes()
    except Exception as error:
        return type(error), decoding.reason(error)


def test_cut_files_are_refused_as_by_pillow() -> None:
    for content in (PLAIN["4:2"], PLAIN["progressive"], PLAIN["grey"]):
        for length in {*range(0, 700, 23), *range(len(content) - 40, len(content))}:
            cut = content[:length]
            assert outcome(decode_pixels, cut) == outcome(decode, cut), length
    assert outcome(decode_pixels, PLAIN["4:2"][:-200])[0] is OSError


def test_damaged_files_end_as_by_pillow() -> None:
    """Some bytes are others. What libjpeg-turbo warns of, Pillow judges."""
    rng = np.random.default_rng(1)
    good = 0
    for content in (PLAIN["4:2"], PLAIN["progressive"]):
        for _ in range(300):
            damaged = bytearray(content)
            for at in rng.integers(2, len(content), 2):
                damaged[at] = rng.integers(256)
            result = outcome(decode_pixels, bytes(damaged))
            assert result == outcome(decode, bytes(damaged))
            good += isinstance(result, bytes)
    assert 20 < good < 580  # the test has met both


def test_lost_pixels_are_told_and_nothing_else() -> None:
    content = PLAIN["4:2"]
    told: list[str] = []
    for good in (*PLAIN.values(), *NOT_PLAIN.values(), raw.to_bytes(SMALL)):
        decode_pixels(good, told)
    of_another_version = content.replace(b"JFIF\0\1\1", b"JFIF\0\7\1")  # libjpeg warns of it
    assert of_another_version != content
    assert np.array_equal(decode_pixels(of_another_version, told), decode_pixels(content))
    assert told == []
    lost = content[: len(content) * 3 // 4] + b"\xff\xd9"
    assert np.array_equal(decode_pixels(lost, told), np.asarray(decode(lost)))
    assert told == ["Corrupt JPEG data: premature end of data segment"]


def test_too_large_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="60 x 41 pixels, more than 1000"):
        decode_pixels(PLAIN["4:2"])
    monkeypatch.setattr(decoding, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        decode_pixels(PLAIN["4:2"])


def test_raw_pixels_are_not_copied_and_checked() -> None:
    content = raw.to_bytes(SMALL)
    pixels = decode_pixels(content)
    assert np.array_equal(pixels, SMALL)
    assert not pixels.flags.owndata
    with pytest.raises(ValueError, match="cut short"):
        decode_pixels(content[:-1])


def test_a_source_refuses_with_the_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(PLAIN["4:2"][:-200])
    with pytest.raises(UnreadableImageError, match=r"x.jpg.*truncated"):
        ImageFolder.scan(tmp_path).pixels(0)


@pytest.mark.parametrize(("folder", "every"), [("odd", 1), ("imagenet1000_s160", 10), ("bccd", 20)])
def test_real_files(folder: str, every: int) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"needs {SHARED / folder}")
    source = ImageFolder.scan(SHARED / folder)
    for index in range(0, len(source.files), every):
        content = source.read(index)
        assert outcome(decode_pixels, content) == outcome(decode, content), source.files[index]
