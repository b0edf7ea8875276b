"""Small recipes, images with ground truth, and weights under which random detectors detect."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

C4_MOCO = {
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.RESNETS.NORM": "naiveSyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
}
FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
R18 = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
NARROW = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
}
MASK = {"MODEL.MASK_ON": True}

RECIPES: dict[str, dict[str, Any]] = {
    "R50-C4-ExtraNorm-naiveSyncBN": C4_MOCO,
    "R50-C4-Mask-FrozenBN-bitmask": {**MASK, "INPUT.MASK_FORMAT": "bitmask"},
    "R50-FPN-Mask-SyncBN": {
        **FPN,
        **MASK,
        "MODEL.RESNETS.NORM": "SyncBN",
        "MODEL.FPN.NORM": "SyncBN",
        "MODEL.BACKBONE.FREEZE_AT": 0,
    },
    "R50-FPN-Mask-FrozenBN": {**FPN, **MASK},
    "R18-C4-ExtraNorm-BN": {**C4_MOCO, **R18, "MODEL.RESNETS.NORM": "BN"},
    "R18-FPN-BN-frozen-2": {**FPN, **R18, "MODEL.RESNETS.NORM": "BN"},
    "R50-DC5-narrow-Mask-FrozenBN": {
        **FPN,
        **MASK,
        **NARROW,
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res5"],
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
        "MODEL.RPN.IN_FEATURES": ["res5"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["res5"],
    },
    "R50-DC5-paper-narrow-BN": {
        **FPN,
        **NARROW,
        "MODEL.BACKBONE.NAME": "build_resnet_dc5_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.OUT_FEATURES": ["res5"],
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
        "MODEL.RPN.IN_FEATURES": ["dc5"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["dc5"],
    },
    "R18-FPN-Keypoint": {**FPN, **R18, "MODEL.KEYPOINT_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 1},
    "R18-C4-plain": {**R18, "MODEL.RESNETS.NORM": "BN"},
    "R18-FPN-GN-4conv1fc-giou-agnostic": {
        **FPN,
        **R18,
        **MASK,
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.FPN.NORM": "GN",
        "MODEL.FPN.FUSE_TYPE": "avg",
        "MODEL.ROI_BOX_HEAD.NORM": "GN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
        "MODEL.ROI_MASK_HEAD.NORM": "GN",
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.RPN.BOUNDARY_THRESH": 0,
        "MODEL.RPN.IOU_LABELS": [0, -1, 1],
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.3, 0.6],
        "MODEL.ROI_HEADS.IOU_LABELS": [0, -1, 1],
    },
    "R34-FPN-naiveSyncBN": {
        **FPN,
        **R18,
        "MODEL.RESNETS.DEPTH": 34,
        "MODEL.RESNETS.NORM": "naiveSyncBN",
        "MODEL.FPN.NORM": "naiveSyncBN",
        "MODEL.BACKBONE.FREEZE_AT": 1,
    },
    "R101-C4-ExtraNorm-narrow-BN": {
        **C4_MOCO,
        **NARROW,
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.RESNETS.NORM": "BN",
    },
    "R152-FPN-narrow-nnSyncBN-stride-in-1x1": {
        **FPN,
        **NARROW,
        "MODEL.RESNETS.DEPTH": 152,
        "MODEL.RESNETS.NORM": "nnSyncBN",
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
    },
    "R50-FPN-narrow-Mask-LN": {
        **FPN,
        **MASK,
        **NARROW,
        "MODEL.RESNETS.NORM": "LN",
        "MODEL.FPN.NORM": "LN",
        "MODEL.ROI_BOX_HEAD.NORM": "LN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
        "MODEL.ROI_MASK_HEAD.NORM": "LN",
    },
    "X50-FPN-8x4d-smooth-l1": {
        **FPN,
        **NARROW,
        "MODEL.RESNETS.NUM_GROUPS": 8,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        "MODEL.RPN.SMOOTH_L1_BETA": 0.11,
        "MODEL.RPN.LOSS_WEIGHT": 0.7,
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.3,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 2.0,
        "MODEL.RPN.CONV_DIMS": [64, -1],
    },
}

# Few boxes and narrow heads: the code paths are the same and a test takes seconds.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PIXEL_STD": [57.375, 57.120, 58.395],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 500,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 12,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 128,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 64,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [64, 64],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}


def recipe(name: str, base: CfgNode) -> CfgNode:
    """The recipe ``name`` over ``base``, our table of defaults or Detectron2's."""
    cfg = base.clone()
    for key, value in {**SMALL, **RECIPES[name]}.items():
        cfg.merge_from_list([key, value])
    return cfg


def batch(cfg: CfgNode, seed: int = 0, empty: int | None = None) -> list[dict[str, Any]]:
    """Two images of different sizes with three objects each; none in image ``empty``.

    An object is a polygon; its mask as a bitmap where the recipe says MASK_FORMAT bitmask.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for index, (height, width) in enumerate(((128, 171), (155, 112))):
        count = 0 if index == empty else 3
        low = rng.uniform(0, 0.45, (count, 2)) * (width, height)
        size = rng.uniform(0.2, 0.5, (count, 2)) * (width, height)
        boxes = np.concatenate([low, low + size], axis=1).astype(np.float32)
        sample = {
            "image": torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)),
            "height": height * 2 + 1,
            "width": width * 2 - 3,
            "targets": _targets(cfg, rng, boxes, height, width),
        }
        samples.append(sample)
    return samples


def _targets(
    cfg: CfgNode, rng: np.random.Generator, boxes: np.ndarray, height: int, width: int
) -> dict[str, Any]:
    classes = rng.integers(0, cfg.MODEL.ROI_HEADS.NUM_CLASSES, len(boxes))
    targets: dict[str, Any] = {
        "boxes": torch.from_numpy(boxes).reshape(-1, 4),
        "classes": torch.from_numpy(classes).to(torch.int64),
    }
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
        targets["polygons"] = [[_hexagon(box)] for box in boxes]
    elif cfg.MODEL.MASK_ON:
        y, x = np.mgrid[:height, :width] + 0.5
        centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        masks = [
            ((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 < 1
            for c, r in zip(centre, radius, strict=True)
        ]
        targets["bitmasks"] = torch.from_numpy(np.array(masks).reshape(-1, height, width))
    if cfg.MODEL.KEYPOINT_ON:
        share = rng.uniform(0, 1, (len(boxes), 17, 2))
        points = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
        visible = rng.integers(0, 3, (len(boxes), 17, 1))
        keypoints = np.concatenate([points, visible], axis=2).astype(np.float32)
        targets["keypoints"] = torch.from_numpy(keypoints)
    return targets


def _hexagon(box: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = box.astype(np.float64)
    middle = (y0 + y1) / 2
    quarter = (x1 - x0) / 4
    corners = [x0, middle, x0 + quarter, y0, x1 - quarter, y0]
    corners += [x1, middle, x1 - quarter, y1, x0 + quarter, y1]
    return np.array(corners)


# Standard deviations at which logits and deltas vary from box to box; initial ones are 0.001-0.01.
WIDE = {"cls_score": 0.08, "bbox_pred": 0.01, "rpn_head": 0.08, "mask_head.predictor": 0.5}


def spread_weights(model: nn.Module, seed: int = 0) -> None:
    """Weights of heads, norms and statistics away from their initial values; the same each time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            wide = [std for part, std in WIDE.items() if part in name and tensor.dim() > 1]
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("conv2.norm.weight", "conv3.norm.weight")):
                tensor.copy_(0.4 + 0.1 * noise)  # keeps sums over many residual blocks in range
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            elif name.endswith("running_var"):
                tensor.copy_((1 + 0.1 * noise).abs())
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(0.05 * noise)
            elif wide:
                tensor.copy_(wide[0] * noise)
