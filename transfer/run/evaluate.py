"""Evaluate a predictor on the test sets, the same for both engines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from pycocotools import mask as mask_util

from runtime.distributed import is_main, rank, world_size
from runtime.files import write_text
from transfer.data.catalog import Dataset
from transfer.data.loader import build_test_loader
from transfer.engines.base import Batch, Detections, Metrics, Predictor
from transfer.evaluation import build_evaluator
from transfer.evaluation.keypoints import as_coco

log = logging.getLogger("moco")

DETECTIONS = "inference/coco_instances_results.json"


def evaluate(
    cfg: CfgNode,
    datasets: Sequence[Dataset],
    predict: Predictor,
    output: Path,
    voc_metric: str = "auto",
) -> tuple[Metrics, str]:
    """Metrics of ``predict`` on all test sets, and what they are, in words.

    With several sets each task is ``NAME/task``.

    The images are divided over the processes and gathered in their order. The detections of the
    first set are written to ``inference/coco_instances_results.json`` of the run folder. Other
    processes than the main one return no metrics. ``voc_metric`` as in
    :func:`~transfer.evaluation.build_evaluator`.
    """
    results: Metrics = {}
    kinds: list[str] = []
    for position, dataset in enumerate(datasets):
        evaluator = build_evaluator(dataset, voc_metric, cfg.TEST.KEYPOINT_OKS_SIGMAS)
        kinds.append(evaluator.metric)
        rows = []
        for batch, detections in _gathered(_predicted(cfg, dataset, predict)):
            evaluator.process(batch, detections)
            rows += [
                row for pair in zip(batch, detections, strict=True) for row in result_rows(*pair)
            ]
        if not is_main():
            continue
        if position == 0:
            _write(rows, output / DETECTIONS)
        for task, values in evaluator.evaluate().items():
            results[task if len(datasets) == 1 else f"{dataset.name}/{task}"] = values
            shown = "  ".join(f"{k} {values[k]:.2f}" for k in ("AP", "AP50", "AP75") if k in values)
            log.info("%s %s: %s  (%s)", dataset.name, task, shown, evaluator.metric)
    return results, "; ".join(dict.fromkeys(kinds))


def _predicted(
    cfg: CfgNode, dataset: Dataset, predict: Predictor
) -> Iterator[tuple[Batch, Detections]]:
    """This process's share of the images, each world-th one, with their detections."""
    share = Dataset(
        dataset.name,
        dataset.records[rank() :: world_size()],
        dataset.classes,
        dataset.evaluator,
        dataset.metadata,
    )
    for batch in build_test_loader(cfg, share):
        found = [{k: v.cpu() for k, v in one.items()} for one in predict(batch)]
        # without the pixels, which the evaluator does not need and the gathering would carry
        yield [{k: v for k, v in sample.items() if k != "image"} for sample in batch], found


def _gathered(
    pairs: Iterator[tuple[Batch, Detections]],
) -> Iterator[tuple[Batch, Detections]]:
    """All processes' pairs in the order of the images, on the main process."""
    if world_size() == 1:
        yield from pairs
        return
    parts: list[Any] = [None] * world_size()
    small = [(batch, [_masks_as_runs(one) for one in found]) for batch, found in pairs]
    dist.gather_object(small, parts if is_main() else None)
    if is_main():
        longest = max(len(part) for part in parts)
        for i in range(longest):
            for batch, found in (part[i] for part in parts if i < len(part)):
                yield batch, [_masks_as_pixels(one) for one in found]


def _masks_as_runs(found: dict[str, Any]) -> dict[str, Any]:
    """Masks run-length encoded: as pixels, those of a whole test set would not fit into memory."""
    if "masks" not in found:
        return found
    pixels = np.asfortranarray(found["masks"].permute(1, 2, 0).numpy(), np.uint8)
    return found | {"masks": (found["masks"].shape, mask_util.encode(pixels))}


def _masks_as_pixels(found: dict[str, Any]) -> dict[str, Any]:
    if "masks" not in found:
        return found
    shape, runs = found["masks"]
    masks = torch.zeros(shape, dtype=torch.bool)
    for mask, run in zip(masks, runs, strict=True):
        mask.copy_(torch.from_numpy(mask_util.decode(run)))
    return found | {"masks": masks}


def result_rows(sample: dict[str, Any], found: dict[str, Any]) -> list[dict[str, Any]]:
    """The detections of one image (on the CPU) as rows of a COCO results file.

    Boxes are x, y, width, height in pixels of the image; ``category_id`` counts classes from 0;
    ``keypoints``, where the detector has them, are x, y, score of each.
    """
    rows: list[dict[str, Any]] = [
        {
            "image_id": sample["image_id"],
            "file_name": str(sample["file_name"]),
            "category_id": int(label),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(score),
        }
        for (x1, y1, x2, y2), score, label in zip(
            found["boxes"].tolist(), found["scores"], found["classes"], strict=True
        )
    ]
    if "keypoints" in found:
        for row, points in zip(rows, as_coco(found["keypoints"]), strict=True):
            row["keypoints"] = points
    return rows


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(rows))
