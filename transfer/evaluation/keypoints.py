"""Average precision of keypoints as COCO defines it, beside that of boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from transfer.data.dataset import Dataset
from transfer.evaluation.coco import CocoEvaluator
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
        self._truth = _ground_truth(dataset)
        self._found: list[dict[str, Any]] = []
        self._with_keypoints = False

    def process(self, batch: list[dict[str, Any]], detections: list[Detections]) -> None:
        """Take the detections of a batch; :class:`InputError` if they are not finite."""
        self._others.process(batch, detections)
        for image_id, found in checked(batch, detections, len(self._classes)):
            if "keypoints" not in found:
                continue
            self._with_keypoints = True
            boxes = found["boxes"].clone()
            boxes[:, 2:] -= boxes[:, :2]
            points = as_coco(found["keypoints"])
            rows = zip(found["classes"], found["scores"], boxes, points, strict=True)
            self._found += [
                {
                    "image_id": self._image_ids[image_id],
                    "category_id": int(label) + 1,
                    "score": float(score),
                    "bbox": box.tolist(),  # its area is the detection's
                    "keypoints": values,
                }
                for label, score, box, values in rows
            ]

    def evaluate(self) -> Metrics:
        """Also AP, AP50, AP75, APm, APl and ``AP-<class>`` in percent, of keypoints."""
        results = self._others.evaluate()
        if self._with_keypoints:
            results["keypoints"] = self._score()
        return results

    def _score(self) -> dict[str, float]:
        truth = COCO(self._truth, use_deepcopy=True)
        run = COCOeval_faster(
            truth,
            truth.loadRes(self._found),
            "keypoints",
            print_function=_silent,
            kpt_oks_sigmas=self._sigmas,
        )
        run.run()
        scores = {name: _percent(run.stats[i]) for i, name in enumerate(_NAMES)}
        precision = run.eval["precision"][:, :, :, 0, -1]  # of objects of all sizes
        for i, name in enumerate(self._classes):
            known = precision[:, :, i][precision[:, :, i] > -1]
            scores[f"AP-{name}"] = _percent(known.mean() if known.size else -1)
        return scores


def as_coco(keypoints: Tensor) -> list[list[float]]:
    """Keypoints of an image, N x K x 3, as N lists x1, y1, score1, ... of COCO's results.

    COCO's name pixels from 0, ours measure from the image's edge: half a pixel less.
    """
    points = keypoints.clone()
    points[..., :2] -= 0.5
    return points.flatten(1).tolist()


def _ground_truth(dataset: Dataset) -> dict[str, Any]:
    """The data set as the content of a COCO file of keypoints."""
    nothing = [0.0] * 3 * len(dataset.metadata["keypoints"]["names"])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(dataset.records, start=1):
        images.append({"id": image_id, "height": record["height"], "width": record["width"]})
        for a in record["annotations"]:
            points = a.get("keypoints") or nothing
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": a["category_id"] + 1,
                    **{key: a[key] for key in ("bbox", "area", "iscrowd")},
                    "keypoints": [v if i % 3 == 2 else v - 0.5 for i, v in enumerate(points)],
                    "num_keypoints": sum(v > 0 for v in points[2::3]),
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(dataset.classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _percent(value: Any) -> float:
    return float(value * 100) if value >= 0 else float("nan")


def _silent(*_: Any) -> None:
    pass
