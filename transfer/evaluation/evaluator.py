"""What every evaluator offers, and the checks that all of them make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from runtime.errors import InputError

Detections = dict[str, Any]  # boxes, scores, classes, masks? of one image
Metrics = dict[str, dict[str, float]]


class Evaluator(Protocol):
    """Collects the detections of a data set and scores them."""

    metric: str
    """One line: what AP means here."""

    def process(self, batch: list[dict[str, Any]], detections: list[Detections]) -> None:
        """Take the detections of a batch of samples; :class:`InputError` if one is not finite."""

    def evaluate(self) -> Metrics:
        """Score all that was processed: task -> metric -> percent."""


def checked(
    batch: list[dict[str, Any]], detections: list[Detections], classes: int
) -> Iterator[tuple[Any, Detections]]:
    """Image id and detections (on the CPU) of each image, refused where they are not finite."""
    for sample, found in zip(batch, detections, strict=True):
        found = {key: value.detach().cpu() for key, value in found.items()}
        if not (torch.isfinite(found["boxes"]).all() and torch.isfinite(found["scores"]).all()):
            raise InputError(
                f"detections in {sample['file_name']} are not finite: training diverged; "
                "lower SOLVER.BASE_LR or check the weights"
            )
        if len(found["classes"]) and not 0 <= int(found["classes"].max()) < classes:
            raise InputError(
                f"detections in {sample['file_name']} have class {int(found['classes'].max())}, "
                f"the data set has {classes}; set MODEL.ROI_HEADS.NUM_CLASSES {classes}"
            )
        yield sample["image_id"], found
