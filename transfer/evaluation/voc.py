"""Average precision as PASCAL VOC defines it and Detectron2 computes it."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer.data.dataset import Dataset
from transfer.evaluation.evaluator import Detections, Metrics, checked

Floats = npt.NDArray[np.float64]
METRICS = ("auto", "11-point", "area")
THRESHOLDS = range(50, 100, 5)  # percent of overlap


class VocEvaluator:
    """Equal to Detectron2's ``PascalVOCDetectionEvaluator`` to the last digit.

    That includes its habits, which move AP slightly: scores are rounded to 3 decimals and
    coordinates to 0.1, and detections of equal score rank as ``np.argsort`` leaves them.
    ``metric`` is "11-point" (VOC 2007's), "area" (under the curve, from 2010 on), or "auto": as
    Detectron2, 11-point for data sets of the year 2007, area for all others.

    A class without objects in the test set counts as 0 in the mean, as there (where it can also
    make the mean NaN, with the area metric); this is logged, and ``metric`` says it.
    """

    def __init__(self, dataset: Dataset, metric: str = "auto") -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}: {metric!r}")
        if metric == "auto":
            metric = "11-point" if dataset.metadata["year"] == 2007 else "area"
        self._classes = dataset.classes
        self._eleven_points = metric == "11-point"
        self._truth = _GroundTruth(dataset)
        self._found: dict[int, list[tuple[Any, list[float]]]] = defaultdict(list)
        shape = "11-point" if self._eleven_points else "area under curve"
        self.metric = f"VOC AP ({shape}), mean over IoU 0.50:0.95"
        absent = [c for i, c in enumerate(self._classes) if not self._truth.positives(i)]
        if absent:
            self.metric += f"; {len(absent)} of {len(self._classes)} classes without objects as 0"
            logging.getLogger(__name__).warning("no objects to find of: %s", ", ".join(absent))

    def process(self, batch: list[dict[str, Any]], detections: list[Detections]) -> None:
        """Take the detections of a batch; :class:`InputError` if they are not finite."""
        for image_id, found in checked(batch, detections, len(self._classes)):
            boxes = found["boxes"].numpy().copy()
            boxes[:, :2] += 1  # back to VOC's pixel counting, in float32
            rows = zip(
                found["classes"].tolist(), found["scores"].tolist(), boxes.tolist(), strict=True
            )
            for label, score, box in rows:
                # by way of text: the same rounding as of the files that VOC's tools read
                rounded = [float(f"{score:.3f}"), *(float(f"{edge:.1f}") for edge in box)]
                self._found[label].append((image_id, rounded))

    def evaluate(self) -> Metrics:
        """AP, AP50, AP75 and ``AP-<class>`` in percent."""
        table = np.array([self._class_aps(i) for i in range(len(self._classes))]) * 100
        by_threshold = [np.mean(table[:, i]) for i in range(len(THRESHOLDS))]
        bbox = {
            "AP": float(np.mean(by_threshold)),
            "AP50": float(by_threshold[THRESHOLDS.index(50)]),
            "AP75": float(by_threshold[THRESHOLDS.index(75)]),
        }
        bbox |= {f"AP-{c}": float(np.mean(table[i])) for i, c in enumerate(self._classes)}
        return {"bbox": bbox}

    def _class_aps(self, label: int) -> list[float]:
        """AP of one class at each of the thresholds."""
        found = self._found.get(label, [])
        rows = np.array([row for _, row in found]).reshape(-1, 5)
        order = np.argsort(-rows[:, 0])
        image_ids = [found[i][0] for i in order]
        overlap, match, difficult = self._truth.match(label, image_ids, rows[order, 1:])
        positives = self._truth.positives(label)
        return [
            _average_precision(
                *_hits(overlap > percent / 100.0, match, difficult), positives, self._eleven_points
            )
            for percent in THRESHOLDS
        ]


class _GroundTruth:
    """The objects of each class and image, in VOC's coordinates (from 1, last pixel included)."""

    def __init__(self, dataset: Dataset) -> None:
        rows: dict[int, dict[Any, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
        for record in dataset.records:
            for a in record["annotations"]:
                x1, y1, x2, y2 = a["bbox"]
                row = [x1 + 1, y1 + 1, x2, y2, a["difficult"]]
                rows[a["category_id"]][record["image_id"]].append(row)
        self._rows = {c: {i: np.array(r) for i, r in images.items()} for c, images in rows.items()}

    def positives(self, label: int) -> int:
        """The number of objects that must be found."""
        return sum(int((rows[:, 4] == 0).sum()) for rows in self._rows.get(label, {}).values())

    def match(
        self, label: int, image_ids: list[Any], boxes: Floats
    ) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """For each box its largest overlap with an object of its image, and which object it is.

        Returns overlap (-inf where the image has none), the object's number within the class,
        and whether it is difficult.
        """
        overlap = np.full(len(boxes), -np.inf)
        match = np.full(len(boxes), -1)
        difficult = np.zeros(len(boxes), dtype=bool)
        where: dict[Any, list[int]] = defaultdict(list)
        for i, image_id in enumerate(image_ids):
            where[image_id].append(i)
        first = 0
        for image_id, rows in self._rows.get(label, {}).items():
            if places := where.get(image_id):
                overlaps = _overlaps(boxes[places], rows)
                best = overlaps.argmax(axis=1)
                overlap[places] = overlaps[np.arange(len(best)), best]
                match[places] = first + best
                difficult[places] = rows[best, 4] == 1
            first += len(rows)
        return overlap, match, difficult


def _overlaps(boxes: Floats, objects: Floats) -> Floats:
    """Intersection over union of boxes (N x 4) and objects (M x 5), N x M, in VOC's pixels."""
    b, o = boxes[:, None, :], objects[None, :, :]
    width = np.maximum(np.minimum(o[..., 2], b[..., 2]) - np.maximum(o[..., 0], b[..., 0]) + 1, 0)
    height = np.maximum(np.minimum(o[..., 3], b[..., 3]) - np.maximum(o[..., 1], b[..., 1]) + 1, 0)
    common = width * height
    areas = [(r[..., 2] - r[..., 0] + 1) * (r[..., 3] - r[..., 1] + 1) for r in (b, o)]
    return common / (areas[0] + areas[1] - common)


def _hits(
    close: npt.NDArray[np.bool_], match: npt.NDArray[np.int64], difficult: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """True and false positives (0 or 1) of detections in falling order of score.

    The first detection that is close enough to an object finds it, later ones are false; those
    that are close to a difficult object count as neither.
    """
    true = np.zeros(len(match))
    candidates = np.flatnonzero(close & ~difficult)
    _, first = np.unique(match[candidates], return_index=True)
    true[candidates[first]] = 1
    false = 1.0 - true
    false[close & difficult] = 0
    return true, false


def _average_precision(true: Floats, false: Floats, positives: int, eleven_points: bool) -> float:
    if not positives:
        return 0.0
    true, false = np.cumsum(true), np.cumsum(false)
    recall = true / float(positives)
    precision = true / np.maximum(true + false, np.finfo(np.float64).eps)
    if eleven_points:
        ap = 0.0
        for least in np.arange(0.0, 1.1, 0.1):
            ap += np.max(precision[recall >= least], initial=0) / 11.0
        return float(ap)
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(envelope[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))
