"""COCO evaluation: our evaluator against pycocotools on the same detections."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.timing import interleave, row, timed
from transfer.data.dataset import XYWH, Dataset, Record
from transfer.evaluation.coco import CocoEvaluator

HEIGHT, WIDTH, CLASSES = 480, 640, 80
OBJECTS, FOUND = 7, 100  # of an image; COCO has 7.3 objects an image
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
Detections = dict[str, torch.Tensor]


def measure(images: int, rounds: int) -> Iterator[str]:
    """Lines of the table: taking detections in (masks become run lengths), then scoring them."""
    rng = np.random.default_rng(0)
    records = [_record(number, rng) for number in range(images)]
    classes = tuple(f"class{i}" for i in range(CLASSES))
    dataset = Dataset("generated", records, classes, "coco", {})
    evaluators = {"box": CocoEvaluator(dataset), "box and mask": CocoEvaluator(dataset)}
    results: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        found = _detections(record, rng)
        if number == 0:
            yield _taking_in(dataset, found, rounds)
        results += _plainly(number, found)
        evaluators["box and mask"].process([record], [found])
        del found["masks"]
        evaluators["box"].process([record], [found])
    truth = _truth(records)
    for title, tasks in (("box", ("bbox",)), ("box and mask", ("bbox", "segm"))):
        yield _scoring(title, evaluators[title], truth, results, tasks, rounds)


def _taking_in(dataset: Dataset, found: Detections, rounds: int) -> str:
    sample = dataset.records[:1]
    measures = {
        "reference": lambda: timed(lambda: _plainly(0, found)),
        "ours": lambda: timed(lambda: CocoEvaluator(empty).process(sample, [found])),
    }
    empty = Dataset(dataset.name, list(sample), dataset.classes, dataset.evaluator, {})
    times = interleave(measures, rounds)
    title = f"{FOUND} masks of {HEIGHT} x {WIDTH} to run lengths (as Detectron2)"
    return row(title, "ms/image", times["reference"], times["ours"])


def _scoring(
    title: str,
    evaluator: CocoEvaluator,
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    tasks: tuple[str, ...],
    rounds: int,
) -> str:
    scores: dict[str, Any] = {}
    measures = {
        "reference": _keeping(scores, "reference", lambda: _pycocotools(truth, results, tasks)),
        "ours": _keeping(scores, "ours", evaluator.evaluate),
    }
    times = interleave(measures, rounds)
    reference, ours = (
        [scores[who][task][name] for task in tasks for name in NAMES] for who in measures
    )
    equal = np.allclose(reference, ours, rtol=0, atol=1e-10)
    images = len(truth["images"])
    title = f"COCO {title} AP, {images} images x {FOUND} (pycocotools)"
    title += ", equal numbers" if equal else ", **UNEQUAL NUMBERS**"
    return row(title, "ms/image", times["reference"], times["ours"], images)


def _keeping(store: dict[str, Any], name: str, work: Callable[[], Any]) -> Callable[[], float]:
    """``work`` timed; its result is put in ``store``."""

    def run() -> float:
        return timed(lambda: store.__setitem__(name, work()))

    return run


def _pycocotools(
    truth: dict[str, Any], results: list[dict[str, Any]], tasks: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    scores = {}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        for task in tasks:
            drop = "segmentation" if task == "bbox" else "bbox"
            found = [{k: v for k, v in result.items() if k != drop} for result in results]
            run = COCOeval(coco, coco.loadRes(found), task)
            run.evaluate()
            run.accumulate()
            run.summarize()
            scores[task] = {n: float(v) * 100 for n, v in zip(NAMES, run.stats, strict=False)}
    return scores


def _record(number: int, rng: np.random.Generator) -> Record:
    """An image with objects of COCO's sizes, as ellipses."""
    annotations = []
    for _ in range(OBJECTS):
        side = np.exp(rng.normal(4.0, 0.8, 2)).clip(8, 400)  # e^4 = 55 pixels
        corner = rng.uniform(0, np.array([WIDTH, HEIGHT]) - side)
        box = [*corner.tolist(), *side.tolist()]
        annotation = {"bbox": box, "bbox_mode": XYWH, "iscrowd": 0}
        annotation |= {"category_id": int(rng.integers(CLASSES)), "area": float(side.prod() * 0.78)}
        annotations.append(annotation | {"segmentation": [_ellipse(box)]})
    size = {"image_id": number, "height": HEIGHT, "width": WIDTH}
    return {"file_name": f"{number}.jpg", **size, "annotations": annotations}


def _ellipse(box: list[float]) -> list[float]:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x = box[0] + box[2] / 2 * (1 + np.cos(angle))
    y = box[1] + box[3] / 2 * (1 + np.sin(angle))
    return np.stack([x, y], axis=1).reshape(-1).round(2).tolist()


def _detections(record: Record, rng: np.random.Generator) -> Detections:
    """Most of them near an object, many of the right class: what a trained detector finds."""
    objects = record["annotations"]
    picked = rng.integers(len(objects), size=FOUND)
    boxes = np.array([objects[i]["bbox"] for i in picked])
    boxes += rng.normal(0, 0.12, boxes.shape) * boxes[:, [2, 3, 2, 3]]
    boxes[:, 2:] = boxes[:, :2] + np.abs(boxes[:, 2:]).clip(2)
    boxes = boxes.clip(0, [WIDTH - 2, HEIGHT - 2, WIDTH, HEIGHT])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    classes = np.array([objects[i]["category_id"] for i in picked])
    other = rng.random(FOUND) < 0.4
    classes[other] = rng.integers(CLASSES, size=int(other.sum()))
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    masks = [
        ((x - m[0]) / h[0]) ** 2 + ((y - m[1]) / h[1]) ** 2 < 1
        for m, h in zip(middle, half, strict=True)
    ]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "scores": torch.tensor(np.sort(rng.random(FOUND))[::-1].copy(), dtype=torch.float32),
        "classes": torch.tensor(classes),
        "masks": torch.from_numpy(np.array(masks)),
    }


def _plainly(number: int, found: Detections) -> list[dict[str, Any]]:
    """COCO results as Detectron2 makes them (``instances_to_coco_json``)."""
    boxes = found["boxes"].numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    results = []
    columns = (found["classes"].tolist(), found["scores"].tolist(), boxes.tolist())
    for label, score, box, mask in zip(*columns, found["masks"].numpy(), strict=True):
        runs = mask_util.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0]
        result = {"image_id": number + 1, "category_id": label + 1, "score": score, "bbox": box}
        results.append(result | {"segmentation": runs})
    return results


def _truth(records: list[Record]) -> dict[str, Any]:
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        images.append({"id": number, "height": HEIGHT, "width": WIDTH})
        for a in record["annotations"]:
            ids = {"id": len(annotations) + 1, "image_id": number}
            annotations.append({**a, **ids, "category_id": a["category_id"] + 1})
    categories = [{"id": i + 1, "name": f"class{i}"} for i in range(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}
