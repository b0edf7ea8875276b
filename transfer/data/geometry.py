"""The one geometric change of an image and of all that is annotated in it: resize, then flip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]


def shortest_edge_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Height and width with the shorter side ``shortest``, unless the longer would exceed
    ``longest``; rounded as Detectron2's ``ResizeShortestEdge`` does (which
    fails where a side becomes 0; here it is 1).
    """
    scale = shortest * 1.0 / min(height, width)
    new_height, new_width = scale * height, scale * width
    if height < width:  # the shorter side exactly, free of the product's rounding
        new_height = float(shortest)
    else:
        new_width = float(shortest)
    if max(new_height, new_width) > longest:
        shrink = longest * 1.0 / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


@dataclass(frozen=True)
class Geometry:
    """Resize from ``old`` to ``new`` (height, width), then ``flip``: none, horizontal, vertical."""

    old: tuple[int, int]
    new: tuple[int, int]
    flip: str

    def image(self, image: Image.Image, resample: Image.Resampling) -> Array:
        """The changed image, uint8, H x W or H x W x C."""
        height, width = self.new
        pixels = np.asarray(image.resize((width, height), resample))
        if self.flip == "none":
            return pixels
        return cv2.flip(pixels, 1 if self.flip == "horizontal" else 0)

    def points(self, points: Array) -> Array:
        """The changed points, N x 2 (x, y) in pixels, of the same dtype as they came.

        That of integers too: Detectron2 truncates annotations that are written as integers.
        """
        moved = points.copy()
        for axis, side in ((0, 1), (1, 0)):  # x goes with the width
            moved[:, axis] = moved[:, axis] * (self.new[side] * 1.0 / self.old[side])
        if self.flip == "horizontal":
            moved[:, 0] = self.new[1] - moved[:, 0]
        elif self.flip == "vertical":
            moved[:, 1] = self.new[0] - moved[:, 1]
        return moved

    def box(self, box: Array) -> Array:
        """The changed box, 4 (XYXY), clipped to the new image."""
        corners = self.points(box.reshape(2, 2))
        moved = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        height, width = self.new
        return np.minimum(moved.clip(min=0), [width, height, width, height])
