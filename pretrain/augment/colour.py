"""Colour jitter and grey as Pillow and torchvision make them, on 8-bit images, with numba.

All operations are applied to a few lines of the view at a time, as float32 in the L1 cache. Two
passes over the view where contrast is among them, which needs the mean after the operations before
it, else one. After each operation values are clipped and cut off as Pillow does.
"""

from __future__ import annotations

import numpy as np
from numba import types

from pretrain.augment.compiled import IMAGES, entry, exact, integers

Array = np.ndarray

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # as in pretrain.views.OPERATIONS
NO_GREY, GREY_FIRST, GREY_LAST = range(3)
LINES = 4  # at a time: the beginnings and ends of short loops take as long as the loops


@exact
def _luma(red: Array, green: Array, blue: Array, out: Array) -> None:
    """ITU-R 601 as Pillow rounds it. Every sum is below 2**24, so that float32 holds it."""
    r, g, b = np.float32(19595), np.float32(38470), np.float32(7471)
    for i in range(out.shape[0]):
        level = red[i] * r + green[i] * g + blue[i] * b + np.float32(32768)
        out[i] = np.float32(np.int32(level * np.float32(1 / 65536)))


@exact
def _blend(values: Array, level: float, factor: float) -> None:
    """Pillow's blend of a plain image with this one, in place."""
    level, factor = np.float32(level), np.float32(factor)
    for i in range(values.shape[0]):
        value = level + factor * (values[i] - level)
        values[i] = np.float32(np.int32(min(max(value, np.float32(0)), np.float32(255))))


@exact
def _blend_grey(values: Array, grey: Array, factor: float) -> None:
    """Pillow's blend of the grey image with this one, in place."""
    factor = np.float32(factor)
    for i in range(values.shape[0]):
        value = grey[i] + factor * (values[i] - grey[i])
        values[i] = np.float32(np.int32(min(max(value, np.float32(0)), np.float32(255))))


@exact
def _sector(hue: float, offset: float) -> float:
    """Share of the saturation that a channel lacks of the value: a trapezium over six sectors."""
    at = hue + np.float32(offset)
    at = at - np.float32(6) if at >= np.float32(6) else at
    return min(max(min(at, np.float32(4) - at), np.float32(0)), np.float32(1))


@exact
def _shift_hue(red: Array, green: Array, blue: Array, shift: float) -> None:
    """To Pillow's 8-bit HSV, the hue moved by ``shift`` of 256, and back. Without a branch."""
    for i in range(red.shape[0]):
        r, g, b = red[i], green[i], blue[i]
        value, least = max(r, max(g, b)), min(r, min(g, b))
        spread = value - least
        over = np.float32(1) / max(spread, np.float32(1))
        blue_or_red = (b - r) * over + np.float32(2)
        hue = (r - g) * over + np.float32(4)
        hue = blue_or_red if g == value else hue
        hue = (g - b) * over if r == value else hue
        hue = hue + np.float32(6) if hue < np.float32(0) else hue
        saturation = np.float32(np.int32(spread * np.float32(255) / max(value, np.float32(1))))
        turned = np.float32(np.int32(hue * np.float32(42.5))) + np.float32(shift)
        turned = turned - np.float32(256) if turned >= np.float32(256) else turned
        turned = turned * np.float32(6 / 255)
        most = value * saturation * np.float32(1 / 255)
        rounded = value + np.float32(0.5)
        red[i] = np.float32(np.int32(rounded - most * _sector(turned, 5)))
        green[i] = np.float32(np.int32(rounded - most * _sector(turned, 3)))
        blue[i] = np.float32(np.int32(rounded - most * _sector(turned, 1)))


@integers
def _sum(values: Array) -> float:
    total = np.float32(0)
    for i in range(values.shape[0]):
        total += values[i]
    return total


@exact
def _apply(row: Array, channels: int, operation: int, factor: float, mean: float) -> None:
    """One operation on lines of the view: float32 channels x pixels, and a row to work in."""
    if operation in (BRIGHTNESS, CONTRAST):
        for c in range(channels):
            _blend(row[c], mean if operation == CONTRAST else 0.0, factor)
    elif operation == SATURATION and channels == 3:  # grey stays as it is, of hue as well
        _luma(row[0], row[1], row[2], row[3])
        for c in range(3):
            _blend_grey(row[c], row[3], factor)
    elif operation == HUE and channels == 3:
        _shift_hue(row[0], row[1], row[2], float(int(factor * 255) % 256))


@exact
def _grey(row: Array) -> None:
    _luma(row[0], row[1], row[2], row[3])
    row[0, :] = row[3]


@exact
def _load(view: Array, y: int, row: Array, grey: bool) -> None:
    size = view.shape[2]
    for line in range(row.shape[1] // size):
        for c in range(3):
            plane, values = view[y + line, c], row[c, line * size : (line + 1) * size]
            for x in range(size):
                values[x] = np.float32(plane[x])
    if grey:
        _grey(row)


@exact
def _store(row: Array, view: Array, y: int, grey: bool) -> None:
    size = view.shape[2]
    for line in range(row.shape[1] // size):
        for c in range(3):
            plane = view[y + line, c]
            values = row[0 if grey else c, line * size : (line + 1) * size]
            for x in range(size):
                plane[x] = np.uint8(np.int32(values[x]))


@entry(
    IMAGES,
    types.UniTuple(types.int64, 4),
    types.UniTuple(types.float64, 4),
    types.int64,
)
def jitter(view: Array, operations: tuple, factors: tuple, grey: int) -> None:
    """The operations with their factors, in their order, on uint8 S x 3 x S, in place.

    Operations are those of this file's constants, -1 for none; ``grey`` is one, too.
    """
    size = view.shape[0]
    full = np.empty((4, LINES * size), np.float32)
    rest = np.empty((4, size % LINES * size), np.float32)
    channels = 1 if grey == GREY_FIRST else 3
    first, mean = 0, 0.0
    for i in range(4):
        if operations[i] == CONTRAST:
            total = 0.0
            for y in range(0, size, LINES):
                row = full if y + LINES <= size else rest
                _load(view, y, row, grey == GREY_FIRST)
                for k in range(i):
                    _apply(row, channels, operations[k], factors[k], 0.0)
                if i > 0:
                    _store(row, view, y, grey == GREY_FIRST)
                if channels == 3:
                    _luma(row[0], row[1], row[2], row[3])
                total += _sum(row[3] if channels == 3 else row[0])
            first, mean = i, float(int(total / (size * size) + 0.5))
    for y in range(0, size, LINES):
        row = full if y + LINES <= size else rest
        _load(view, y, row, grey == GREY_FIRST)
        for k in range(first, 4):
            _apply(row, channels, operations[k], factors[k], mean)
        if grey == GREY_LAST:
            _grey(row)
        _store(row, view, y, grey != NO_GREY)
