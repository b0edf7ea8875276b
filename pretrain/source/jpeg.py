"""Plain JPEG files by libjpeg-turbo itself, to the same pixels as by Pillow, in less time.

What is plain is decided from the headers. All other files are left to Pillow, and so are damaged
ones: it refuses those that are cut short, and decodes of others what it can, without a word.
"""

from __future__ import annotations

import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

START_OF_IMAGE = b"\xff\xd8"
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive; none with arithmetic coding
TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantisation, restart interval
START_OF_SCAN, COMMENT = 0xDA, 0xFE
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


# How libjpeg's warnings of pixels that are lost begin; others are about versions and the like
DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")


def decode_plain(content: bytes, max_pixels: int, damage: list[str]) -> np.ndarray | None:
    """The pixels, uint8 H x W x 3 (RGB); None for Pillow to see to it.

    Plain are 8-bit grey and YCbCr files without a turn by Exif or XMP, of at most ``max_pixels``,
    that libjpeg-turbo decodes without a warning. One of lost pixels is added to ``damage``.
    """
    size = _size_of_plain(content)
    if size is None or size[0] * size[1] > max_pixels:
        return None
    try:
        if simplejpeg.decode_jpeg_header(content)[2] not in ("Gray", "YCbCr"):
            return None
        return simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError as error:
        if str(error).startswith(DAMAGE):
            damage.append(str(error))
        return None


def _size_of_plain(content: bytes) -> tuple[int, int] | None:
    """Height and width by the headers; None where something in them is unusual."""
    if not content.startswith(START_OF_IMAGE):
        return None
    at = 2
    size: tuple[int, int] | None = None
    notes: list[bytes] = []
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == START_OF_SCAN:
            return size if _upright(notes) else None
        body = at + 4
        if marker in FRAMES:
            if length < 8 or content[body] != 8 or size is not None:  # bits a sample
                return None
            height, width = content[body + 1 : body + 3], content[body + 3 : body + 5]
            size = int.from_bytes(height, "big"), int.from_bytes(width, "big")
        elif marker == 0xE1:
            notes.append(content[body : at + 2 + length])
        elif marker not in TABLES and marker != COMMENT and not 0xE0 <= marker <= 0xEF:
            return None
        at += 2 + length
    return None


def _upright(notes: list[bytes]) -> bool:
    """Whether APP1 segments leave the image as it is, or nothing of its turn is known."""
    exif = [note for note in notes if note.startswith(EXIF)]
    if any(note.startswith(XMP) and b"Orientation" in note for note in notes) or len(exif) > 1:
        return False
    if not exif:
        return True
    tags = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            tags.load(exif[0])
            return tags.get(ExifTags.Base.Orientation, 1) == 1
        except Exception:  # of almost any type on damaged blocks
            return False
