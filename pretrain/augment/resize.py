"""Crop and antialiased bilinear resize as Pillow's, over 8-bit pixels, compiled with numba.

Both passes, first along y, then along x, weigh and add rows of a matrix, which vectorises. Two
transpositions of bytes are all that this costs: between the passes, and at the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pretrain.augment.compiled import IMAGES, PIXELS, entry, helper

Array = np.ndarray
Taps = tuple[Array, Array, Array]

BLOCK = 16  # bytes in a vector register
TAPS = 4  # rows that are weighted and summed at once


@intrinsic
def _transpose_block(_: Any, source: Any, source_step: Any, target: Any, target_step: Any) -> Any:
    """16 x 16 bytes from one address to another; a step is the distance of two rows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, source_step, target, target_step = arguments
        lanes = ir.VectorType(ir.IntType(8), BLOCK)

        def row(base: Any, step: Any, number: int) -> Any:
            offset = builder.mul(step, ir.Constant(step.type, number))
            return builder.inttoptr(builder.add(base, offset), lanes.as_pointer())

        def zipped(first: int) -> Any:  # half of the bytes of two rows, in turn
            order = [i for lane in range(first, first + 8) for i in (lane, lane + BLOCK)]
            return ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), order)

        rows = [builder.load(row(source, source_step, i), align=1) for i in range(BLOCK)]
        for _ in range(4):  # zipping the upper with the lower half four times transposes
            rows = [
                builder.shuffle_vector(rows[i], rows[i + 8], zipped(first))
                for i in range(8)
                for first in (0, 8)
            ]
        for i in range(BLOCK):
            builder.store(rows[i], row(target, target_step, i), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


@helper
def _transpose(source: Array, target: Array) -> None:
    """uint8 H x W to W x H. The last block of a row or column overlaps the one before it."""
    height, width = source.shape
    if height < BLOCK or width < BLOCK:
        for y in range(height):
            for x in range(width):
                target[x, y] = source[y, x]
        return
    first, to = source.ctypes.data, target.ctypes.data
    for block_y in range(0, height, BLOCK):
        y = min(block_y, height - BLOCK)
        for block_x in range(0, width, BLOCK):
            x = min(block_x, width - BLOCK)
            _transpose_block(  # type: ignore[call-arg]
                types.intp(first + y * width + x), width, types.intp(to + x * height + y), height
            )


@helper
def _triangle(length: int, size: int, flip: bool) -> Taps:
    """Pillow's antialiased bilinear filter from ``length`` to ``size`` samples.

    First sample, number of samples and weights (float32, zeros up to a multiple of four) of each
    result; ``flip`` reverses the results.
    """
    scale = length / size
    reach = max(scale, 1.0)
    most = math.ceil(reach) * 2 + 1
    first, count = np.empty(size, np.int64), np.empty(size, np.int64)
    weights = np.zeros((size, (most + TAPS - 1) // TAPS * TAPS), np.float32)
    for i in range(size):
        centre = (i + 0.5) * scale
        low = max(int(centre - reach + 0.5), 0)
        high = min(int(centre + reach + 0.5), length)
        total = 0.0
        for j in range(low, high):
            total += max(1.0 - abs(j - centre + 0.5) / reach, 0.0)
        at = size - 1 - i if flip else i
        first[at], count[at] = low, high - low
        for j in range(low, high):
            weights[at, j - low] = max(1.0 - abs(j - centre + 0.5) / reach, 0.0) / total
    return first, count, weights


@helper
def _sum_to_bytes(a: Array, b: Array, c: Array, d: Array, weights: Array, out: Array) -> None:
    """Weighted sum of four rows, rounded: few enough that it stays in registers."""
    v, w, x, y = weights[0], weights[1], weights[2], weights[3]
    for i in range(out.shape[0]):
        total = v * np.float32(a[i]) + w * np.float32(b[i])
        total += x * np.float32(c[i]) + y * np.float32(d[i])
        out[i] = np.uint8(np.int32(total + np.float32(0.5)))


@helper
def _pair_to_bytes(a: Array, b: Array, weights: Array, out: Array) -> None:
    """Of two rows: all that an enlarged crop needs."""
    v, w = weights[0], weights[1]
    for i in range(out.shape[0]):
        total = v * np.float32(a[i]) + w * np.float32(b[i])
        out[i] = np.uint8(np.int32(total + np.float32(0.5)))


@helper
def _add_sum(a: Array, b: Array, c: Array, d: Array, weights: Array, total: Array) -> None:
    v, w, x, y = weights[0], weights[1], weights[2], weights[3]
    for i in range(total.shape[0]):
        total[i] += v * np.float32(a[i]) + w * np.float32(b[i])
        total[i] += x * np.float32(c[i]) + y * np.float32(d[i])


@helper
def _filter(rows: Array, left: int, right: int, taps: Taps, out: Array) -> None:
    """``out[i]`` = rounded sum of ``weights[i, k]`` x ``rows[first[i] + k, left:right]`` over k."""
    first, count, weights = taps
    total = np.empty(right - left, np.float32)
    last = rows.shape[0] - 1
    for i in range(first.shape[0]):
        if count[i] > TAPS:
            total[:] = np.float32(0.5)
        for k in range(0, count[i], TAPS):
            at = first[i] + k
            a, b = rows[at, left:right], rows[min(at + 1, last), left:right]
            c, d = rows[min(at + 2, last), left:right], rows[min(at + 3, last), left:right]
            if count[i] <= 2:
                _pair_to_bytes(a, b, weights[i], out[i])
            elif count[i] <= TAPS:
                _sum_to_bytes(a, b, c, d, weights[i], out[i])
            else:
                _add_sum(a, b, c, d, weights[i, k:], total)
        if count[i] > TAPS:
            for x in range(right - left):
                out[i, x] = np.uint8(np.int32(total[x]))


@entry(PIXELS, types.int64, types.int64, types.int64, types.int64, types.boolean, IMAGES)
def resized_crop(
    pixels: Array, top: int, left: int, height: int, width: int, flip: bool, columns: Array
) -> None:
    """Write the crop of uint8 H x W x 3 ``pixels``, resized, to uint8 S columns x 3 x S rows."""
    size = columns.shape[0]
    rows = pixels.reshape(pixels.shape[0], pixels.shape[1] * 3)[top : top + height]
    low = np.empty((size, width * 3), np.uint8)
    _filter(rows, left * 3, (left + width) * 3, _triangle(height, size, False), low)
    turned = np.empty((width * 3, size), np.uint8)
    _transpose(low, turned)
    wide, out = turned.reshape(width, 3 * size), columns.reshape(size, 3 * size)
    _filter(wide, 0, 3 * size, _triangle(width, size, flip), out)


@entry(IMAGES, IMAGES)
def upright(columns: Array, out: Array) -> None:
    """Uint8 S columns x 3 x S rows to 3 x S rows x S columns."""
    size = out.shape[1]
    _transpose(columns.reshape(size, 3 * size), out.reshape(3 * size, size))
