"""Annotations of one image to the tensors that a detector trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_util

from transfer.data.dataset import XYWH, Record
from transfer.data.geometry import Array, Geometry
from transfer.data.keypoints import keypoint_targets

_SMALLEST_SIDE = 1e-5  # pixels; a box with a smaller side is empty to Detectron2


def build_targets(
    annotations: list[Record],
    geometry: Geometry,
    mask_format: str | None,
    keypoint_flip: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Boxes, classes, masks (``mask_format``: polygon, bitmask or None) and, if it is known which
    ones a flip exchanges, keypoints after ``geometry``.

    Returns ``boxes`` (float32 N x 4, XYXY pixels of the changed image), ``classes`` (int64 N) and
    ``polygons`` (N lists of float64 arrays x1, y1, x2, y2, ...) or ``bitmasks`` (bool N x H x W)
    and ``keypoints`` (:func:`~transfer.data.keypoints.keypoint_targets`).
    As Detectron2: crowds are left out, boxes are clipped, empty boxes and empty masks dropped.
    """
    objects = [a for a in annotations if not a.get("iscrowd", 0)]
    boxes = np.array([geometry.box(_corners(a)) for a in objects]).reshape(-1, 4)
    targets: dict[str, Any] = {
        "boxes": torch.as_tensor(boxes, dtype=torch.float32),
        "classes": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
    }
    sides = targets["boxes"][:, 2:] - targets["boxes"][:, :2]
    keep = (sides > _SMALLEST_SIDE).all(dim=1)
    if mask_format == "polygon":
        targets["polygons"] = [_polygons(a["segmentation"], geometry) for a in objects]
    elif mask_format == "bitmask":
        masks = [_bitmask(a["segmentation"], geometry) for a in objects]
        stacked = np.array(masks, dtype=bool).reshape(-1, *geometry.new)
        targets["bitmasks"] = torch.from_numpy(stacked)
        keep &= targets["bitmasks"].flatten(1).any(dim=1)
    if keypoint_flip is not None:
        targets["keypoints"] = keypoint_targets(objects, geometry, keypoint_flip)
    return {key: _select(value, keep) for key, value in targets.items()}


def _corners(annotation: Record) -> Array:
    box = annotation["bbox"]
    if annotation["bbox_mode"] != XYWH:
        return np.array(box)
    corners = torch.tensor(box)  # float32, whose rounding Detectron2's boxes have gone through
    corners[2:] += corners[:2]
    return np.array(corners.tolist())


def _polygons(segmentation: list[Any], geometry: Geometry) -> list[Array]:
    moved = [geometry.points(np.array(polygon).reshape(-1, 2)) for polygon in segmentation]
    return [points.reshape(-1).astype(np.float64) for points in moved]


def _bitmask(segmentation: Any, geometry: Geometry) -> Array:
    if isinstance(segmentation, dict):
        mask = Image.fromarray(mask_util.decode(segmentation))
        return geometry.image(mask, Image.Resampling.NEAREST).astype(bool)
    polygons = _polygons(segmentation, geometry)
    runs = mask_util.frPyObjects(polygons, *geometry.new)
    return mask_util.decode(mask_util.merge(runs)).astype(bool)


def _select(values: Any, keep: torch.Tensor) -> Any:
    if isinstance(values, list):
        return [value for value, kept in zip(values, keep.tolist(), strict=True) if kept]
    return values[keep]
