"""Objects drawn over an image, by torchvision; a class has the same colour in every picture."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from runtime.files import atomic_write

FONT = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf")
Objects = Mapping[str, Any]  # boxes, classes, scores?, masks?, keypoints? of one image
_GOLDEN = 0.618034  # turns of the colour wheel from one class to the next: neighbours differ most
_LONGEST_LABEL = 20  # characters


def colour(label: int) -> tuple[int, int, int]:
    """RGB colour of class ``label``: bright, so that black text can be read on it."""
    red, green, blue = colorsys.hsv_to_rgb((label * _GOLDEN) % 1, 0.75, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    image: Tensor,
    objects: Objects,
    classes: Sequence[str],
    skeleton: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """``image`` (uint8 3 x H x W, RGB) with masks, boxes, keypoints and labels over it.

    ``objects`` are detections or ground truth on the CPU, in pixels of ``image``: ``boxes`` (float
    N x 4, XYXY), ``classes`` (int64 N) and, where there are any, ``scores`` (N), ``masks`` (bool
    N x H x W) and ``keypoints`` (N x K x 3, with x, y, and visibility or score). ``skeleton`` pairs
    keypoints, from 0, to join. The object of the highest score is drawn last, on top.
    """
    count = len(objects["classes"])
    if not count:
        return image
    scores = objects.get("scores", torch.arange(count, 0, -1))
    order = torch.as_tensor(scores).argsort(stable=True)
    parts = {k: torch.as_tensor(v)[order] for k, v in objects.items() if v is not None}
    numbers = parts["classes"].tolist()
    colours: list[Any] = [colour(number) for number in numbers]
    short = min(image.shape[1:])
    if "masks" in parts:
        image = draw_segmentation_masks(image, _topmost(parts["masks"]), alpha=0.4, colors=colours)
    image = draw_bounding_boxes(
        image,
        parts["boxes"],
        _labels(numbers, parts.get("scores"), classes),
        colors=colours,
        width=1 + short // 400,
        font=FONT,
        font_size=min(max(short // 40, 9), 20),
        label_colors="black",
        fill_labels=True,
    )
    for points, ink in zip(parts.get("keypoints", ()), colours, strict=False):
        image = _keypoints(image, points, ink, skeleton)
    return image


def _topmost(masks: Tensor) -> Tensor:
    """``masks`` (bool N x H x W) without what later ones cover: torchvision blackens overlaps."""
    from_the_top = masks.flip(0).cumsum(0, dtype=torch.int16).flip(0)
    return masks & (from_the_top == 1)


def _labels(numbers: list[int], scores: Tensor | None, classes: Sequence[str]) -> list[str]:
    names = [classes[number][:_LONGEST_LABEL] for number in numbers]
    if scores is None:
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, scores.tolist(), strict=True)]


def _keypoints(
    image: Tensor, points: Tensor, ink: Any, skeleton: Sequence[tuple[int, int]]
) -> Tensor:
    return draw_keypoints(
        image,
        points[None, :, :2],
        connectivity=list(skeleton) or None,
        colors=ink,
        radius=2,
        width=2,
        visibility=points[None, :, 2] > 0,
    )


def to_rgb(image: Tensor, channel_order: str) -> Tensor:
    """A sample's ``image`` (uint8 C x H x W in INPUT.FORMAT) as RGB, 3 x H x W."""
    if channel_order == "L":
        return image.expand(3, -1, -1)
    return image.flip(0) if channel_order == "BGR" else image


def above(found: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """The detections whose score is at least ``threshold``."""
    sure = found["scores"] >= threshold
    return {name: values[sure] for name, values in found.items()}


def save(image: Tensor, path: Path) -> None:
    """Write ``image`` (uint8 3 x H x W, RGB), atomically, in the format of the file's suffix."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    kind = Image.registered_extensions()[path.suffix.lower()]
    with atomic_write(path) as stream:
        picture.save(stream, format=kind, quality=90)
