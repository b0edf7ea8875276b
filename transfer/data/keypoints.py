"""Keypoints of COCO files: their names, which ones a flip exchanges, what training needs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from runtime.errors import InputError
from transfer.data.dataset import Dataset, Record
from transfer.data.geometry import Array, Geometry

_SIDES = (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"))
COCO_PERSON = 17  # keypoints that COCO has OKS sigmas for


def read_keypoint_names(categories: list[dict[str, Any]], path: str) -> dict[str, Any] | None:
    """The keypoints that the categories of a COCO file name; None if they name none.

    Returns ``names``, ``flip`` (pairs of names that a horizontal flip exchanges: those that
    differ in left and right) and ``skeleton`` (pairs of numbers from 1, as in the file).
    """
    with_names = [c for c in categories if c.get("keypoints")]
    if not with_names:
        return None
    names = with_names[0]["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: 'keypoints' of a category must be a list of names")
    if len(set(names)) != len(names):
        raise InputError(f"{path}: two keypoints have the same name")
    if any(c["keypoints"] != names for c in with_names):
        raise InputError(f"{path}: all categories with keypoints must have the same ones")
    flip = [(a, b) for a in names if (b := _other_side(a, "left")) in names]
    skeleton = with_names[0].get("skeleton", [])
    numbers = range(1, len(names) + 1)
    if not isinstance(skeleton, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(n in numbers for n in pair)
        for pair in skeleton
    ):
        raise InputError(f"{path}: 'skeleton' must pair keypoints by their numbers from 1")
    return {"names": tuple(names), "flip": tuple(flip), "skeleton": skeleton}


def _other_side(name: str, side: str) -> str | None:
    """The name with right for left (``side`` "left"), or the reverse; None if it has no side."""
    for left, right in _SIDES:
        here, there = (left, right) if side == "left" else (right, left)
        if here in name:
            return name.replace(here, there)
    return None


def flip_indices(keypoints: dict[str, Any]) -> tuple[int, ...]:
    """For each keypoint the one that is in its place after a horizontal flip."""
    names = keypoints["names"]
    other = {a: b for pair in keypoints["flip"] for a, b in (pair, pair[::-1])}
    return tuple(names.index(other.get(name, name)) for name in names)


def require_keypoints(cfg: Any, datasets: Sequence[Dataset]) -> int:
    """The number of keypoints of ``datasets``; :class:`InputError` where MODEL.KEYPOINT_ON cannot
    train on them or TEST.KEYPOINT_OKS_SIGMAS cannot score them.

    Detectron2 meets most of this in the middle of training or after it.
    """
    for dataset in datasets:
        if "keypoints" not in dataset.metadata:
            raise InputError(
                f"{dataset.name}: MODEL.KEYPOINT_ON needs a COCO file whose categories name their "
                "'keypoints', such as keypoints_coco_2017_train"
            )
    first = datasets[0].metadata["keypoints"]
    for dataset in datasets:
        if dataset.metadata["keypoints"]["names"] != first["names"]:
            raise InputError(f"{dataset.name} and {datasets[0].name} have different keypoints")
        for record in dataset.records:
            _check_points(record, len(first["names"]))
    count, sigmas = len(first["names"]), len(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    if sigmas != count and not (sigmas == 0 and count == COCO_PERSON):
        raise InputError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {sigmas} numbers, {datasets[0].name} has {count} "
            "keypoints: give one for each (its typical error over the object's size; COCO's are "
            "0.026 to 0.107)"
        )
    if cfg.INPUT.RANDOM_FLIP == "horizontal":
        _check_sides(datasets[0].name, first)
    return count


def _check_points(record: Record, count: int) -> None:
    for annotation in record["annotations"]:
        values = annotation.get("keypoints", [])
        if len(values) not in (0, 3 * count):
            raise InputError(
                f"{record['file_name']}: an object has {len(values) // 3} keypoints, its "
                f"categories name {count}"
            )
        if not set(values[2::3]) <= {0, 1, 2}:
            raise InputError(
                f"{record['file_name']}: visibility of a keypoint must be 0, 1 or 2, not "
                f"{next(v for v in values[2::3] if v not in (0, 1, 2))}"
            )


def _check_sides(name: str, keypoints: dict[str, Any]) -> None:
    paired = {point for pair in keypoints["flip"] for point in pair}
    for point in keypoints["names"]:
        if point not in paired and (_other_side(point, "left") or _other_side(point, "right")):
            raise InputError(
                f"{name}: keypoint {point!r} has no counterpart on the other side, so a flipped "
                "image would have a wrong one: rename it or set INPUT.RANDOM_FLIP none"
            )
    if not paired:
        logging.getLogger(__name__).info("%s: no keypoints are named left and right", name)


def training_keypoints(
    cfg: Any, datasets: Sequence[Dataset], records: list[Record]
) -> list[Record]:
    """The records with at least ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE labelled points.

    Each gets ``keypoint_flip``, :func:`flip_indices` for the mapper.
    """
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    usable = [r for r in records if _labelled(r) >= least]
    if len(usable) < len(records):
        dropped = len(records) - len(usable)
        logging.getLogger(__name__).info("%d images with too few keypoints are not used", dropped)
    flip = flip_indices(datasets[0].metadata["keypoints"])
    return [{**record, "keypoint_flip": flip} for record in usable]


def _labelled(record: Record) -> int:
    return sum(v > 0 for a in record["annotations"] for v in a.get("keypoints", [])[2::3])


def keypoint_targets(
    objects: list[Record], geometry: Geometry, flip: Sequence[int]
) -> torch.Tensor:
    """Keypoints of ``objects`` after ``geometry``, float32 N x K x 3: x, y, visibility.

    As Detectron2's ``transform_keypoint_annotations``: points outside the changed image become
    unlabelled, those of the other side are exchanged in a flipped image, and what is not
    labelled is all zero. An object without keypoints has only unlabelled ones.
    """
    points = [_changed(a.get("keypoints") or [0] * 3 * len(flip), geometry, flip) for a in objects]
    stacked = np.array(points, dtype=np.float64).reshape(-1, len(flip), 3)
    return torch.as_tensor(stacked, dtype=torch.float32)


def _changed(values: Sequence[float], geometry: Geometry, flip: Sequence[int]) -> Array:
    points = np.array(values, dtype=np.float64).reshape(-1, 3)
    points[:, :2] = geometry.points(points[:, :2])
    height, width = geometry.new
    inside = ((points[:, :2] >= 0) & (points[:, :2] <= (width, height))).all(axis=1)
    points[~inside, 2] = 0
    if geometry.flip == "horizontal":
        points = points[list(flip)]
    points[points[:, 2] == 0] = 0
    return points
