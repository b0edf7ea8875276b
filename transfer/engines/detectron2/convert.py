"""Between this project's plain dictionaries and Detectron2's ``Instances``."""

from __future__ import annotations

from typing import Any

from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from torch import Tensor


def to_instances(sample: dict[str, Any]) -> dict[str, Any]:
    """A mapped sample with ``targets`` to what Detectron2's models take, with ``instances``.

    The tensors are shared, not copied. A sample without targets (for evaluation) stays as it is.
    """
    if "targets" not in sample:
        return dict(sample)
    targets = sample["targets"]
    height, width = sample["image"].shape[1:]
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(targets["boxes"])
    instances.gt_classes = targets["classes"]
    if "polygons" in targets:
        instances.gt_masks = PolygonMasks(targets["polygons"])
    if "bitmasks" in targets:
        instances.gt_masks = BitMasks(targets["bitmasks"])
    if "keypoints" in targets:
        instances.gt_keypoints = Keypoints(targets["keypoints"])
    rest = {key: value for key, value in sample.items() if key != "targets"}
    return {**rest, "instances": instances}


def from_instances(instances: Instances) -> dict[str, Tensor]:
    """Detections of one image, as Detectron2's model returns them, to plain tensors.

    ``boxes`` float32 N x 4 XYXY, ``scores`` float32 N, ``classes`` int64 N and, where the model
    has the heads, ``masks`` bool N x H x W and ``keypoints`` float32 N x K x 3.
    """
    found = {
        "boxes": instances.pred_boxes.tensor,
        "scores": instances.scores,
        "classes": instances.pred_classes,
    }
    if instances.has("pred_masks"):
        found["masks"] = instances.pred_masks.bool()
    if instances.has("pred_keypoints"):
        found["keypoints"] = instances.pred_keypoints
    return found
