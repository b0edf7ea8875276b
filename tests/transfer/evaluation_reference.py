"""What the tests of the evaluators share: scoring, and detections for the reference packages."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as mask_util

from transfer.evaluation import build_evaluator


def score(dataset, detections):
    evaluator = build_evaluator(dataset)
    for record, found in zip(dataset.records, detections, strict=True):
        evaluator.process([record], [found])
    return evaluator.evaluate()


def results_of(dataset, detections, task):
    """Detections as COCO's and LVIS's packages take them, with the ids of the data set's file."""
    results = []
    for record, found in zip(dataset.records, detections, strict=True):
        for i, box in enumerate(found["boxes"].numpy()):
            result = {
                "image_id": record["image_id"],
                "category_id": dataset.metadata["category_ids"][int(found["classes"][i])],
                "score": float(found["scores"][i]),
            }
            if task == "bbox":
                result["bbox"] = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
            else:
                mask = np.asfortranarray(found["masks"][i].numpy().astype(np.uint8))
                result["segmentation"] = mask_util.encode(mask)
            results.append(result)
    return results
