"""The bytes of an image file to pixels: whole and upright, or refused. Never a part of an image."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from pretrain.source import raw
from pretrain.source.jpeg import decode_plain

DECODERS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # Pillow knows some that run other programs
MAX_PIXELS = 50_000_000  # 150 MB of RGB in each worker
MAX_BYTES = 256 << 20  # of a file


def decode(content: bytes) -> Image.Image:
    """The RGB image in the bytes of a file, turned upright by its Exif tag.

    16-bit grey keeps its high byte, as Pillow does for 16-bit colour. Raises an exception of almost
    any type where the bytes are damaged, cut short, of another format or too large, or the pixels
    have no known range (32-bit integers and floats). Pillow's own limit on pixels is higher.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    if content.startswith(raw.MAGIC):
        return Image.fromarray(raw.parse(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a line a worker and image; what matters raises
        with Image.open(io.BytesIO(content), formats=DECODERS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS}")
            image.load()
            return _eight_bits(_upright(image)).convert("RGB")


def decode_pixels(content: bytes, damage: list[str] | None = None) -> np.ndarray:
    """As :func:`decode`: uint8 H x W x 3. Sooner, where the file is a plain JPEG or raw pixels.

    To ``damage`` is added what libjpeg says of a plain JPEG whose pixels are partly lost, on one
    line. Of other files, a turned JPEG among them, nobody tells.
    """
    if content.startswith(raw.MAGIC):
        return raw.parse(content)
    found: list[str] = [] if damage is None else damage
    pixels = decode_plain(content, MAX_PIXELS, found) if len(content) <= MAX_BYTES else None
    return np.asarray(decode(content)) if pixels is None else pixels


def reason(error: Exception) -> str:
    """What :func:`decode` died of, on one line of printable characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "cannot identify image file" in text:  # Pillow would name the object in memory
        return f"not a file of {', '.join(DECODERS)}"
    return printable(text)[:200]


def printable(text: str) -> str:
    """``text`` without control characters: safe in a log, one line in a list."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # cameras write damaged Exif blocks; the pixels are good
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert() would clip: all white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; convert to 8 bits")
    return image
