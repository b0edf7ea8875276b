"""The pictures of a run: its first training batch, and ground truth beside detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_util
from torch import Tensor
from torchvision.utils import make_grid

from transfer.data.dataset import Dataset, Record
from transfer.data.geometry import Geometry
from transfer.data.images import read_image
from transfer.data.targets import build_targets
from transfer.view.draw import FONT, Objects, above, draw, to_rgb

BATCH_IMAGES = 8  # of the first training batch
_BAND = 20  # pixels above a picture, for its title


def choose(records: Sequence[Record], count: int) -> list[Record]:
    """Annotated images at even distances through the data set: no look at any result."""
    annotated = [record for record in records if record.get("annotations")] or list(records)
    count = min(count, len(annotated))
    return [annotated[(2 * k + 1) * len(annotated) // (2 * count)] for k in range(count)]


def rgb(record: Record) -> Tensor:
    """The image of ``record`` as uint8 3 x H x W, upright; InputError if it cannot be read."""
    return torch.from_numpy(np.array(read_image(record, "RGB")).transpose(2, 0, 1))


def truth(record: Record, data: Dataset) -> Objects:
    """The annotated objects of ``record`` (of ``data``) in pixels of its image, without crowds."""
    annotations = [a for a in record["annotations"] if not a["iscrowd"]]
    masks = bool(annotations) and all("segmentation" in a for a in annotations)
    size = (record["height"], record["width"])
    same = Geometry(size, size, "none")
    names = data.metadata.get("keypoints", {}).get("names")
    flip = range(len(names)) if names else None  # nothing is flipped here
    return _objects(build_targets(annotations, same, "bitmask" if masks else None, flip), size)


def _objects(targets: dict[str, Any], size: tuple[int, int]) -> Objects:
    """A sample's targets with masks as bool N x H x W, whichever form they had."""
    objects = {k: v for k, v in targets.items() if k in ("boxes", "classes", "keypoints")}
    if "bitmasks" in targets:
        objects["masks"] = targets["bitmasks"]
    elif "polygons" in targets:
        decoded = [
            mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *size)))
            for polygons in targets["polygons"]
        ]
        objects["masks"] = torch.from_numpy(np.array(decoded, dtype=bool).reshape(-1, *size))
    return objects


def training_batch(batch: Sequence[dict[str, Any]], channel_order: str, data: Dataset) -> Tensor:
    """A grid (uint8 3 x H x W) of the first samples as the model gets them, with their targets."""
    drawn = [
        draw(
            to_rgb(sample["image"], channel_order),
            _objects(sample["targets"], tuple(sample["image"].shape[1:])),
            data.classes,
            skeleton(data),
        )
        for sample in batch[:BATCH_IMAGES]
    ]
    return grid(drawn, columns=min(4, len(drawn)))


def truth_and_detections(
    record: Record, found: dict[str, Tensor], data: Dataset, threshold: float
) -> Tensor:
    """Ground truth left, the detections of at least ``threshold`` right, each under its title."""
    image, real, sure = rgb(record), truth(record, data), above(found, threshold)
    pairs = (
        (f"ground truth: {len(real['classes'])}", real),
        (f"detections with score ≥ {threshold:g}: {len(sure['classes'])}", sure),
    )
    drawn = [titled(draw(image, o, data.classes, skeleton(data)), text) for text, o in pairs]
    return grid(drawn, columns=2)


def skeleton(data: Dataset) -> list[tuple[int, int]]:
    """Pairs of keypoints, from 0, to join with a line; none for data without keypoints."""
    pairs = data.metadata.get("keypoints", {}).get("skeleton", ())
    return [(a - 1, b - 1) for a, b in pairs]


def titled(image: Tensor, text: str) -> Tensor:
    """``image`` below a white band with ``text``."""
    band = Image.new("RGB", (image.shape[2], _BAND), "white")
    ImageDraw.Draw(band).text((4, 3), text, fill="black", font=ImageFont.truetype(FONT, 12))
    return torch.cat([torch.from_numpy(np.array(band)).permute(2, 0, 1), image], dim=1)


def grid(images: Sequence[Tensor], columns: int) -> Tensor:
    """Images of any sizes in rows of ``columns``, padded with white."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = [image.new_full((3, height, width), 255) for image in images]
    for target, image in zip(padded, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    return make_grid(torch.stack(padded), nrow=columns, padding=4, pad_value=255)
