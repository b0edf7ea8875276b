"""Pixels kept as they are, in a NumPy file (.npy) of uint8 H x W x 3: nothing to decode."""

from __future__ import annotations

import io
import math
import re

import numpy as np

SUFFIX = ".npy"
MAGIC = b"\x93NUMPY"
# As numpy.save writes it. Its own reader takes 20 times as long, and more than these arrays.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d{1,6}), (\d{1,6}), 3\), \} *\n",
    re.DOTALL,
)
HEADER_BYTES = 128  # that :func:`shape` needs


def to_bytes(pixels: np.ndarray) -> bytes:
    """The file that holds ``pixels``, uint8 H x W x 3."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(pixels), allow_pickle=False)
    return out.getvalue()


def shape(content: bytes | memoryview, size: int) -> tuple[int, int, int, int]:
    """Offset of the pixels, H, W and 3 of a file of ``size`` bytes that begins with ``content``.

    ValueError for anything but uint8 H x W x 3 in C order, whole, with at least one pixel.
    """
    match = _HEADER.match(content)
    if match is None or match.end() != 10 + int.from_bytes(match[1], "little"):
        raise ValueError("not a NumPy file of uint8 H x W x 3 in C order")
    height, width = int(match[2]), int(match[3])
    if not height * width:
        raise ValueError(f"{width} x {height} pixels")
    if match.end() + height * width * 3 != size:
        raise ValueError(f"{size} bytes cannot be {width} x {height} pixels: damaged or cut short")
    return match.end(), height, width, 3


def parse(content: bytes | memoryview) -> np.ndarray:
    """The pixels of a whole file: uint8 H x W x 3 in the same memory, read-only.

    ValueError as :func:`shape`.
    """
    offset, *dimensions = shape(content, len(content))
    pixels = np.frombuffer(content, np.uint8, math.prod(dimensions), offset).reshape(dimensions)
    pixels.flags.writeable = False
    return pixels
