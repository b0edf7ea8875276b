"""Proposals of one image with the ground truth that each was matched with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

Targets = dict[str, Any]


@dataclass(frozen=True)
class Regions:
    """Sampled training regions of one image.

    ``boxes`` float32 R x 4, ``classes`` int64 R (background is the number of classes),
    ``truth_boxes`` float32 R x 4 (meaningful for foreground), ``matches`` int64 R: index into
    ``targets``, the image's ground truth.
    """

    boxes: Tensor
    classes: Tensor
    truth_boxes: Tensor
    matches: Tensor
    targets: Targets

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor) -> Regions:
        return Regions(
            self.boxes[index],
            self.classes[index],
            self.truth_boxes[index],
            self.matches[index],
            self.targets,
        )

    def is_foreground(self, classes: int) -> Tensor:
        """Which regions show an object of one of the ``classes`` classes, bool R."""
        return (self.classes != -1) & (self.classes != classes)
