"""Instance masks of COCO files: checked before pycocotools, which crashes on malformed ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from runtime.errors import InputError
from transfer.data.dataset import Findings, Record

_MOST_POINTS = 100_000
_LONGEST_OUTLINE = 2_000_000  # pixels; pycocotools takes 40 bytes of memory for each, unchecked
_REACH = 10  # a coordinate further out than this many image sides is a mistake
_RLE_DIGITS = 6  # 6 x 5 bits hold every run length of the largest image that is read
LARGEST_IMAGE = 1 << 28  # pixels


def check_coordinates(values: Any, height: int, width: int) -> None:
    """:class:`InputError` unless ``values`` is a list of finite numbers near the image."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        raise InputError("coordinates must be a list of numbers")
    reach = min(_REACH * max(height, width), LARGEST_IMAGE)  # 5 times as much is an int in C
    near = not values or (min(values) >= -reach and max(values) <= reach)
    if not near or not math.isfinite(sum(values)):  # the sum sees NaN, which min and max pass over
        raise InputError(f"coordinates must be finite and within {_REACH} image sizes")


def read_polygons(polygons: list[Any], height: int, width: int, findings: Findings) -> list[Any]:
    """The polygons (lists x1, y1, x2, y2, ... in pixels) that have at least three points.

    Detectron2 drops the others too (in evaluation as well here); this is noted.
    """
    for polygon in polygons:
        check_coordinates(polygon, height, width)
        if len(polygon) > 2 * _MOST_POINTS:
            raise InputError(f"polygon has more than {_MOST_POINTS} points")
        if _is_too_long(polygon):
            raise InputError(f"polygon has an outline of more than {_LONGEST_OUTLINE} pixels")
    valid = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    for _ in range(len(polygons) - len(valid)):
        findings.note("polygons with fewer than 3 points or a half point: left out")
    return valid


def _is_too_long(polygon: list[float]) -> bool:
    if not polygon or len(polygon) * (max(polygon) - min(polygon)) <= _LONGEST_OUTLINE:
        return False  # of almost all: as many edges as points, none longer than that
    points = np.array(polygon[: len(polygon) // 2 * 2], dtype=np.float64).reshape(-1, 2)
    edges = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
    return bool(edges.sum() > _LONGEST_OUTLINE)


def read_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """A run-length mask, compressed, of exactly the image's size (rows, columns)."""
    size = rle.get("size")
    if size != [height, width] or not all(type(side) is int for side in size):
        raise InputError(f"mask size {size} is not the image's [{height}, {width}]")
    counts = rle.get("counts")
    if isinstance(counts, str):
        _check_runs(_decompress(counts), height * width)
        return rle
    if not isinstance(counts, list) or any(type(run) is not int for run in counts):
        raise InputError("mask counts must be a string or a list of whole numbers")
    _check_runs(counts, height * width)
    return mask_util.frPyObjects(rle, height, width)


def _check_runs(runs: list[int], pixels: int) -> None:
    if len(runs) > pixels + 1 or any(run < 0 for run in runs) or sum(runs) != pixels:
        raise InputError(f"mask runs do not add up to the image's {pixels} pixels")


def _decompress(text: str) -> list[int]:
    """Run lengths of COCO's compressed form.

    Each is written as digits of 5 bits, the lowest first, as characters from "0" on, with a bit
    that says that digits follow; the last digit carries the sign. From the fourth run on the
    difference to the last but one is written.
    """
    runs: list[int] = []
    value, digits, more = 0, 0, False
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or digits == _RLE_DIGITS:
            raise InputError("compressed mask counts are malformed")
        value |= (code & 31) << (5 * digits)
        digits += 1
        more = bool(code & 32)
        if not more:
            if code & 16:
                value -= 1 << (5 * digits)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, digits = 0, 0
    if more:
        raise InputError("compressed mask counts are cut off")
    return runs


def require_masks(records: list[Record], mask_format: str) -> None:
    """:class:`InputError` unless every object to train on has a mask of a usable kind.

    Detectron2 meets these in the middle of training. ``mask_format`` is INPUT.MASK_FORMAT.
    """
    for record in records:
        for annotation in record["annotations"]:
            if annotation["iscrowd"]:
                continue
            segmentation = annotation.get("segmentation")
            if segmentation is None:
                raise InputError(
                    f"{record['file_name']}: an object has no segmentation, which MODEL.MASK_ON "
                    "needs; annotate it or set MODEL.MASK_ON False"
                )
            if isinstance(segmentation, dict) and mask_format == "polygon":
                raise InputError(
                    f"{record['file_name']}: a mask is run-length encoded; "
                    "set INPUT.MASK_FORMAT bitmask"
                )
