"""Average precision of keypoints as COCO defines it, beside that of boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from faster_coco_eval import COCOeval_faster
from torch import Tensor

from transfer.data.dataset import Dataset
from transfer.evaluation.coco import (
    CocoEvaluator,
    as_results,
    class_scores,
    ground_truth,
    indexed,
    percent,
    silent,
)
from transfer.evaluation.evaluator import Detections, Metrics, checked

_NAMES = ("AP", "AP50", "AP75", "APm", "APl")


class KeypointEvaluator:
    """:class:`CocoEvaluator`, and the numbers of Detectron2's ``COCOEvaluator`` for keypoints.

    At most 20 detections an image count. ``sigmas`` is TEST.KEYPOINT_OKS_SIGMAS, one number for
    each keypoint; empty for COCO's own (17 points of a person).
    """

    metric = f"{CocoEvaluator.metric}; of keypoints over OKS 0.50:0.95"

    def __init__(self, dataset: Dataset, sigmas: Sequence[float] = ()) -> None:
        self._others = CocoEvaluator(dataset)
        self._classes = dataset.classes
        self._sigmas = list(sigmas) or None
        self._image_ids = {r["image_id"]: i for i, r in enumerate(dataset.records, start=1)}
        self._truth = _keypoint_truth(dataset)
        self._found: list[dict[str, Any]] = []
        self._with_keypoints = False

    def process(self, batch: list[dict[str, Any]], detections: list[Detections]) -> None:
        """Take the detections of a batch; :class:`InputError` if they are not finite."""
        self._others.process(batch, detections)
        for image_id, found in checked(batch, detections, len(self._classes)):
            if "keypoints" not in found:
                continue
            self._with_keypoints = True
            boxes = {name: found[name] for name in ("boxes", "scores", "classes")}
            results = as_results(
                self._image_ids[image_id], boxes
            )  # a box's area is the detection's
            for result, points in zip(results, as_coco(found["keypoints"]), strict=True):
                result["keypoints"] = points
            self._found += results

    def evaluate(self) -> Metrics:
        """Also AP, AP50, AP75, APm, APl and ``AP-<class>`` in percent, of keypoints."""
        results = self._others.evaluate()
        if self._with_keypoints:
            results["keypoints"] = self._score()
        return results

    def _score(self) -> dict[str, float]:
        run = COCOeval_faster(
            *indexed(self._truth, [dict(result) for result in self._found]),
            "keypoints",
            print_function=silent,
            kpt_oks_sigmas=self._sigmas,
        )
        run.run()
        scores = {name: percent(run.stats[i]) for i, name in enumerate(_NAMES)}
        return scores | class_scores(run, self._classes)


def as_coco(keypoints: Tensor) -> list[list[float]]:
    """Keypoints of an image, N x K x 3, as N lists x1, y1, score1, ... of COCO's results.

    COCO's name pixels from 0, ours measure from the image's edge: half a pixel less.
    """
    points = keypoints.clone()
    points[..., :2] -= 0.5
    return points.flatten(1).tolist()


def _keypoint_truth(dataset: Dataset) -> dict[str, Any]:
    """The data set as the content of a COCO file of keypoints."""
    nothing = [0.0] * 3 * len(dataset.metadata["keypoints"]["names"])
    truth = ground_truth(dataset)
    objects = [a for record in dataset.records for a in record["annotations"]]
    for annotation, read in zip(truth["annotations"], objects, strict=True):
        points = read.get("keypoints") or nothing
        annotation["keypoints"] = [v if i % 3 == 2 else v - 0.5 for i, v in enumerate(points)]
        annotation["num_keypoints"] = sum(v > 0 for v in points[2::3])
    return truth
