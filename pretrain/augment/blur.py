"""Pillow's Gaussian blur of 8-bit images along one axis, with numba.

Pillow blurs by three boxes whose outer taps count in part (Gwosdek et al., SSVM 2011), first along
x and then along y, and rounds after each, which takes away some of a weak blur. So does this.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from pretrain.augment.compiled import IMAGES, entry, exact

Array = np.ndarray
Box = tuple[int, float, float]  # whole taps to either side, weight of each tap, of the outer two

PASSES = 3
HALF = np.float32(0.5)


@exact
def _box(sigma: float) -> Box:
    variance = sigma * sigma / PASSES
    whole = int((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) ** 2)
    weight = 1 / (2 * (whole + part) + 1)
    return whole, np.float32(weight), np.float32(part * weight)


@exact
def _add(row: Array, total: Array) -> None:
    for x in range(total.shape[0]):
        total[x] += np.float32(row[x])


@exact
def _next_row(low: Array, high: Array, leaving: Array, total: Array, box: Box, out: Array) -> None:
    """Weigh the sum of a row and its whole neighbours, and move the sum on to the next row."""
    weight, outer = np.float32(box[1]), np.float32(box[2])
    for x in range(out.shape[0]):
        a, b = np.float32(low[x]), np.float32(high[x])
        out[x] = np.uint8(np.int32(weight * total[x] + outer * (a + b) + HALF))
        total[x] += b - np.float32(leaving[x])


@exact
def _one_box(image: Array, box: Box, total: Array, out: Array) -> None:
    """Rows beyond an edge are the edge's."""
    whole, last = box[0], image.shape[0] - 1
    total[:] = np.float32(0)
    for y in range(-whole, whole + 1):
        _add(image[min(max(y, 0), last)], total)
    for y in range(image.shape[0]):
        low, high = image[max(y - whole - 1, 0)], image[min(y + whole + 1, last)]
        _next_row(low, high, image[max(y - whole, 0)], total, box, out[y])


@entry(IMAGES, types.float64)
def blur_columns(images: Array, sigma: float) -> None:
    """Blur uint8 N x H x W along H by a Gaussian of ``sigma`` pixels, in place."""
    count, height, width = images.shape
    box, total = _box(sigma), np.empty(width, np.float32)
    here, there = np.empty((height, width), np.uint8), np.empty((height, width), np.uint8)
    for i in range(count):
        _one_box(images[i], box, total, here)
        _one_box(here, box, total, there)
        _one_box(there, box, total, images[i])
