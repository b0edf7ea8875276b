"""Average precision as LVIS defines it, of boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as mask_util

from transfer.data.dataset import Dataset
from transfer.data.lvis import FREQUENCIES
from transfer.evaluation.coco import as_results, ground_truth, indexed, percent, silent
from transfer.evaluation.evaluator import Detections, Metrics, checked

_MOST = 300  # detections of an image, over all classes
_AT_ONCE = 10  # classes that are scored together: each pair of an image and a class takes memory
_AREAS = ("AP", "APs", "APm", "APl")  # the area ranges, in faster-coco-eval's order


class LvisEvaluator:
    """The numbers of Detectron2's ``LVISEvaluator`` and of the ``lvis`` package.

    An image counts for the classes that were looked for in it: those of its objects and its
    ``neg_category_ids``. Where a class was not annotated exhaustively, unmatched detections count
    as neither right nor wrong. Of an image the 300 best detections are taken, over all classes.
    APr, APc and APf are the means over the rare, common and frequent classes. Without any
    detection AP is 0 (there: NaN); NaN means that the data set has no such object (there: -100).
    """

    metric = "LVIS AP (101-point, at most 300 detections an image), mean over IoU 0.50:0.95"

    def __init__(self, dataset: Dataset) -> None:
        self._classes = dataset.classes
        self._frequency = np.array([FREQUENCIES.index(f) for f in dataset.metadata["frequency"]])
        self._image_ids = {r["image_id"]: i for i, r in enumerate(dataset.records, start=1)}
        self._truth = _federated_truth(dataset)
        self._verified = _verified(self._truth)
        self._found: list[dict[str, Any]] = []
        self._with_masks = False

    def process(self, batch: list[dict[str, Any]], detections: list[Detections]) -> None:
        """Take the detections of a batch; :class:`InputError` if they are not finite."""
        for image_id, found in checked(batch, detections, len(self._classes)):
            self._with_masks |= "masks" in found
            number = self._image_ids[image_id]
            best = found["scores"].argsort(descending=True, stable=True)[:_MOST]
            # the others would be passed over later; faster-coco-eval 1.8 fails on some of them
            counts = [int(label) + 1 in self._verified[number] for label in found["classes"][best]]
            kept = best[torch.tensor(counts, dtype=torch.bool)]
            self._found += as_results(number, {key: value[kept] for key, value in found.items()})

    def evaluate(self) -> Metrics:
        """AP, AP50, AP75, APs, APm, APl, APr, APc and APf in percent, of bbox and of segm."""
        results = {"bbox": self._score("bbox", drop="segmentation")}
        if self._with_masks:
            # without its box a detection is small or large by the area of its mask
            results["segm"] = self._score("segm", drop="bbox")
        return results

    def _score(self, task: str, drop: str) -> dict[str, float]:
        found = [{k: v for k, v in result.items() if k != drop} for result in self._found]
        # LVIS's code passes over what has no area
        precision = self._precision(task, [result for result in found if _area(result) > 0])
        scores = {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[0, ..., 0]),
            "AP75": _mean(precision[5, ..., 0]),
        }
        scores |= {name: _mean(precision[..., i]) for i, name in enumerate(_AREAS) if i}
        for i, letter in enumerate(FREQUENCIES):
            scores[f"AP{letter}"] = _mean(precision[:, :, self._frequency == i, 0])
        return scores

    def _precision(self, task: str, found: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
        """Precision at 10 IoUs x 101 recalls x classes x 4 area ranges; -1 where none is known."""
        truth, results = indexed(self._truth, found)
        numbers = range(1, len(self._classes) + 1)
        parts = [numbers[i : i + _AT_ONCE] for i in range(0, len(numbers), _AT_ONCE)]
        return np.concatenate([self._part(task, truth, results, part) for part in parts], axis=2)

    def _part(
        self, task: str, truth: COCO, results: COCO, classes: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """The precision of some classes, on the images where one of them was looked for."""
        images = [i for i, known in self._verified.items() if not known.isdisjoint(classes)]
        if not images:
            return np.full((10, 101, len(classes), 4), -1.0)
        run = COCOeval_faster(truth, results, task, print_function=silent, lvis_style=True)
        run.params.imgIds, run.params.catIds = images, list(classes)
        run.params.maxDets = [_MOST]
        run.evaluate()
        return run.eval["precision"][..., -1]


def _federated_truth(dataset: Dataset) -> dict[str, Any]:
    """The data set as the content of an LVIS file, all ids counted from 1."""
    truth = ground_truth(dataset)
    numbers = {category: i for i, category in enumerate(dataset.metadata["category_ids"], start=1)}
    for image, record in zip(truth["images"], dataset.records, strict=True):
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [numbers[category] for category in record[key]]
    for category, frequency in zip(truth["categories"], dataset.metadata["frequency"], strict=True):
        category["frequency"] = frequency
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] > 0]
    return truth


def _verified(truth: dict[str, Any]) -> dict[int, set[int]]:
    """Image -> the classes that were looked for in it."""
    verified = {image["id"]: set(image["neg_category_ids"]) for image in truth["images"]}
    for annotation in truth["annotations"]:
        verified[annotation["image_id"]].add(annotation["category_id"])
    return verified


def _area(result: dict[str, Any]) -> float:
    if "bbox" in result:
        return result["bbox"][2] * result["bbox"][3]
    return float(mask_util.area(result["segmentation"]))


def _mean(precision: npt.NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return percent(known.mean() if known.size else -1)
