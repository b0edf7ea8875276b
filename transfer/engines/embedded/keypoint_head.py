"""The keypoint head of Mask R-CNN: layers, loss and decoding of heat maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap

from transfer.engines.embedded.layers import Conv2d
from transfer.engines.embedded.regions import Regions


class KRCNNConvDeconvUpsampleHead(nn.Sequential):
    """3x3 convolutions, a transposed convolution and bilinear upsampling: one map a keypoint."""

    def __init__(self, channels: int, cfg: CfgNode) -> None:
        super().__init__()
        head, roi = cfg.MODEL.ROI_KEYPOINT_HEAD, cfg.MODEL.ROI_HEADS
        self.loss_weight = head.LOSS_WEIGHT
        self.regions_asked_for = roi.BATCH_SIZE_PER_IMAGE * roi.POSITIVE_FRACTION
        self.by_visible = head.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS
        self.keypoints = head.NUM_KEYPOINTS
        for index, width in enumerate(head.CONV_DIMS, start=1):
            self.add_module(f"conv_fcn{index}", Conv2d(channels, width, 3, relu=True))
            channels = width
        self.score_lowres = nn.ConvTranspose2d(
            channels, self.keypoints, kernel_size=4, stride=2, padding=1
        )
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Region features, R x channels x s x s, to logits, R x K x 4s x 4s."""
        return F.interpolate(
            super().forward(x), scale_factor=2.0, mode="bilinear", align_corners=False
        )

    def loss(self, x: Tensor, regions: Sequence[Regions]) -> dict[str, Tensor]:
        """Cross entropy over the pixels of each visible keypoint's map.

        ``regions`` are foreground regions with a visible keypoint. The sum is divided by the
        number of visible keypoints, or by the number of keypoints that a full sample would have.
        """
        logits = self(x)
        targets, visible = [], []
        for r in regions:
            if len(r):
                points = r.targets["keypoints"][r.matches]
                target, valid = keypoints_to_heatmap(points, r.boxes, logits.shape[-1])
                targets.append(target.flatten())
                visible.append(valid.flatten())
        if not any(valid.any() for valid in visible):
            return {"loss_keypoint": logits.sum() * 0 * self.loss_weight}
        index = torch.cat(visible).nonzero().squeeze(1)
        logits = logits.flatten(0, 1).flatten(1)
        loss = F.cross_entropy(logits[index], torch.cat(targets)[index], reduction="sum")
        normaliser = len(index)
        if not self.by_visible:
            normaliser = len(regions) * (self.keypoints * self.regions_asked_for)
        return {"loss_keypoint": loss / normaliser * self.loss_weight}

    def predict(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Keypoints of each box, float32 R x K x 3: x, y and a score in (0, 1]."""
        logits = self(x)
        if len(boxes) == 0:
            return logits.new_zeros(0, self.keypoints, 3)
        points, peaks = heatmaps_to_keypoints(logits, boxes)
        # The share of the peak in the map's exponentials, one region at a time as Detectron2.
        mass = [
            (m - p[:, None, None]).exp_().sum((1, 2)) for m, p in zip(logits, peaks, strict=True)
        ]
        return torch.cat([points[..., :2], (1 / torch.stack(mass))[..., None]], dim=2)


def with_visible_keypoint(regions: Regions) -> Regions:
    """Those regions that hold a visible keypoint of their object."""
    if len(regions) == 0:
        return regions
    points = regions.targets["keypoints"][regions.matches]
    low, high = regions.boxes[:, None, :2], regions.boxes[:, None, 2:]
    inside = ((points[..., :2] >= low) & (points[..., :2] <= high)).all(dim=2)
    return regions[(inside & (points[..., 2] >= 1)).any(dim=1)]
