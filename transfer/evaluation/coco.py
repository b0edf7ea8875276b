"""Average precision as COCO defines it, of boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as mask_util

from runtime.errors import InputError
from transfer.data.dataset import Dataset
from transfer.evaluation.evaluator import Detections, Metrics, checked

_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CocoEvaluator:
    """The numbers of Detectron2's ``COCOEvaluator`` (at most 100 detections an image).

    Masks are scored if the detections have them. Ids are numbered anew from 1, as COCO's code
    takes an annotation of id 0 for none. Without any detection AP is 0 (there: NaN); NaN means
    that the data set has no such object.
    """

    metric = "COCO AP (101-point), mean over IoU 0.50:0.95"

    def __init__(self, dataset: Dataset) -> None:
        self._classes = dataset.classes
        self._image_ids = {r["image_id"]: i for i, r in enumerate(dataset.records, start=1)}
        self._truth = ground_truth(dataset)
        self._found: list[dict[str, Any]] = []
        self._with_masks = False

    def process(self, batch: list[dict[str, Any]], detections: list[Detections]) -> None:
        """Take the detections of a batch; :class:`InputError` if they are not finite."""
        for image_id, found in checked(batch, detections, len(self._classes)):
            self._with_masks |= "masks" in found
            self._found += as_results(self._image_ids[image_id], found)

    def evaluate(self) -> Metrics:
        """AP, AP50, AP75, APs, APm, APl and ``AP-<class>`` in percent, of bbox and of segm."""
        results = {"bbox": self._score("bbox", drop="segmentation")}
        if self._with_masks:
            if any("segmentation" not in a for a in self._truth["annotations"]):
                raise InputError("mask AP needs a segmentation of each object in the test set")
            # without its box a detection is small or large by the area of its mask
            results["segm"] = self._score("segm", drop="bbox")
        return results

    def _score(self, task: str, drop: str) -> dict[str, float]:
        found = [{k: v for k, v in result.items() if k != drop} for result in self._found]
        run = COCOeval_faster(*indexed(self._truth, found), task, print_function=silent)
        run.run()
        scores = {name: percent(run.stats[i]) for i, name in enumerate(_NAMES)}
        return scores | class_scores(run, self._classes)


def class_scores(run: COCOeval_faster, classes: Sequence[str]) -> dict[str, float]:
    """``AP-<class>`` in percent, of objects of all sizes, after ``run.run()``."""
    # precision: IoU, recall, class, area range (0: all), detections an image (-1: the most)
    precision = run.eval["precision"][:, :, :, 0, -1]
    scores = {}
    for i, name in enumerate(classes):
        known = precision[:, :, i][precision[:, :, i] > -1]
        scores[f"AP-{name}"] = percent(known.mean() if known.size else -1)
    return scores


def as_results(image_id: int, found: Detections) -> list[dict[str, Any]]:
    """The detections of one image as COCO's results; category ids count from 1."""
    boxes = found["boxes"].numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(found["classes"].tolist(), found["scores"].tolist(), boxes.tolist(), strict=True)
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score}
        for label, score, box in rows
    ]
    if "masks" in found:
        for result, mask in zip(results, found["masks"].numpy(), strict=True):
            result["segmentation"] = mask_util.encode(np.asfortranarray(mask, np.uint8))
    return results


def ground_truth(dataset: Dataset) -> dict[str, Any]:
    """The data set as the content of a COCO file, all ids counted from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(dataset.records, start=1):
        images.append({"id": image_id, "height": record["height"], "width": record["width"]})
        for a in record["annotations"]:
            kept = {k: a[k] for k in ("bbox", "area", "iscrowd", "segmentation") if k in a}
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({**kept, **ids, "category_id": a["category_id"] + 1})
    categories = [{"id": i, "name": name} for i, name in enumerate(dataset.classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def indexed(truth: dict[str, Any], found: list[dict[str, Any]]) -> tuple[COCO, COCO]:
    """Objects and detections as the scoring takes them; it adds keys to the dicts of ``found``."""
    objects = COCO(truth, use_deepcopy=True)
    objects.use_deepcopy = False  # of the detections, which would take half of all time
    return objects, objects.loadRes(found)


def percent(value: Any) -> float:
    """100 times ``value``; NaN for -1, COCO's sign that there is no such object."""
    return float(value * 100) if value >= 0 else float("nan")


def silent(*_: Any) -> None:
    """Print nothing."""
