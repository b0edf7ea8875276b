"""The mask head of Mask R-CNN (He et al. 2017): layers, loss and ground-truth crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from fvcore.nn.weight_init import c2_msra_fill
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.ops import roi_align

from transfer.engines.embedded.layers import Conv2d
from transfer.engines.embedded.regions import Regions


class MaskRCNNConvUpsampleHead(nn.Sequential):
    """NUM_CONV 3x3 convolutions, upsampling by 2, and one map of logits for each class."""

    def __init__(self, channels: int, cfg: CfgNode) -> None:
        super().__init__()
        head = cfg.MODEL.ROI_MASK_HEAD
        classes = 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES
        convs = []
        for index in range(1, head.NUM_CONV + 1):
            convs.append(Conv2d(channels, head.CONV_DIM, 3, norm=head.NORM, relu=True))
            self.add_module(f"mask_fcn{index}", convs[-1])
            channels = head.CONV_DIM
        self.deconv = nn.ConvTranspose2d(channels, head.CONV_DIM, kernel_size=2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = nn.Conv2d(head.CONV_DIM, classes, kernel_size=1)
        for layer in (*convs, self.deconv):
            c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.get_parameter("bias"))

    def loss(self, x: Tensor, regions: Sequence[Regions]) -> dict[str, Tensor]:
        """Mean binary cross entropy of the matched class's map; ``regions`` are foreground."""
        logits = self(x)
        filled = [r for r in regions if len(r)]
        if not filled:
            return {"loss_mask": logits.sum() * 0}
        side = logits.shape[-1]
        targets = torch.cat([crop_masks(r, side).to(logits.device) for r in filled])
        classes = torch.cat([r.classes for r in filled])
        return {
            "loss_mask": F.binary_cross_entropy_with_logits(
                _of_class(logits, classes), targets.to(torch.float32)
            )
        }

    def predict(self, x: Tensor, classes: Tensor) -> Tensor:
        """Foreground probabilities of the given class of each region, R x side x side."""
        return _of_class(self(x), classes).sigmoid()


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[torch.arange(len(logits), device=logits.device), classes]


def crop_masks(regions: Regions, side: int) -> Tensor:
    """The matched object's mask within each region, bool R x side x side.

    Polygons are rasterised in the region's own coordinates; bitmaps are resampled with RoIAlign
    and cut at 0.5. The two differ at the borders, in Detectron2 as well.
    """
    if "bitmasks" in regions.targets:
        return _crop_bitmasks(regions, side)
    polygons = regions.targets["polygons"]
    boxes = regions.boxes.cpu().numpy()
    crops = [
        rasterise(polygons[match], box, side)
        for match, box in zip(regions.matches.tolist(), boxes, strict=True)
    ]
    return torch.from_numpy(np.stack(crops))


def _crop_bitmasks(regions: Regions, side: int) -> Tensor:
    masks = regions.targets["bitmasks"][regions.matches].to(torch.float32)
    index = torch.arange(len(regions), dtype=regions.boxes.dtype, device=regions.boxes.device)
    rois = torch.cat([index[:, None], regions.boxes], dim=1)
    crops = roi_align(masks[:, None], rois, side, 1.0, sampling_ratio=0, aligned=True)
    return crops.squeeze(1) >= 0.5


def rasterise(
    polygons: Sequence[npt.NDArray[np.float64]], box: npt.NDArray[np.float32], side: int
) -> npt.NDArray[np.bool_]:
    """The part of an object within ``box`` (XYXY), scaled to side x side; an object may have
    several polygons, each x0, y0, x1, y1, ... in image pixels."""
    if not polygons:
        return np.zeros((side, side), dtype=bool)
    corner = box[:2]
    # Sides in float32 and 0.1 px at least: Detectron2's rounding.
    scale = [side / max(length, 0.1) for length in (box[2] - box[0], box[3] - box[1])]
    moved = []
    for polygon in polygons:
        points = polygon.copy()
        for axis in (0, 1):
            points[axis::2] = (points[axis::2] - corner[axis]) * scale[axis]
        moved.append(points)
    parts = coco_mask.frPyObjects(moved, side, side)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)
