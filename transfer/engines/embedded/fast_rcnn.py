"""The last layers of Fast R-CNN: classes and boxes of regions, losses and detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from transfer.engines.embedded.boxes import BoxCoder
from transfer.engines.embedded.regions import Regions

Detections = dict[str, Tensor]
ImageSize = tuple[int, int]  # height, width


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers: K + 1 class scores (background last) and 4 deltas for each class."""

    def __init__(self, channels: int, cfg: CfgNode) -> None:
        super().__init__()
        self.settings = cfg.MODEL.ROI_BOX_HEAD
        self.classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        self.score_threshold = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
        self.nms_threshold = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
        self.limit = cfg.TEST.DETECTIONS_PER_IMAGE
        self.coder = BoxCoder(self.settings.BBOX_REG_WEIGHTS)
        self.agnostic = self.settings.CLS_AGNOSTIC_BBOX_REG
        self.cls_score = nn.Linear(channels, self.classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * (1 if self.agnostic else self.classes))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Region features, R x channels, to scores, R x (K + 1), and deltas, R x (4 or 4 K)."""
        return self.cls_score(x), self.bbox_pred(x)

    def losses(
        self, scores: Tensor, deltas: Tensor, regions: Sequence[Regions]
    ) -> dict[str, Tensor]:
        """Mean cross entropy, and the box loss summed over foreground / number of regions."""
        classes = torch.cat([r.classes for r in regions])
        sources = torch.cat([r.boxes for r in regions])
        targets = torch.cat([r.truth_boxes for r in regions])
        # Without any region the mean would be undefined; zero keeps the graph connected.
        class_loss = F.cross_entropy(scores, classes) if len(classes) else scores.sum() * 0.0
        foreground = torch.nonzero((classes >= 0) & (classes < self.classes)).squeeze(1)
        if self.agnostic:
            deltas = deltas[foreground]
        else:
            deltas = deltas.view(-1, self.classes, 4)[foreground, classes[foreground]]
        box_loss = self.coder.loss(
            self.settings.BBOX_REG_LOSS_TYPE,
            self.settings.SMOOTH_L1_BETA,
            deltas,
            sources[foreground],
            targets[foreground],
        )
        box_loss = box_loss / max(len(classes), 1.0)
        return {
            "loss_cls": class_loss,
            "loss_box_reg": box_loss * self.settings.BBOX_REG_LOSS_WEIGHT,
        }

    def detect(
        self,
        scores: Tensor,
        deltas: Tensor,
        proposals: Sequence[Tensor],
        sizes: Sequence[ImageSize],
    ) -> list[Detections]:
        """Detections of each image, best first, in pixels of the model's input."""
        counts = [len(boxes) for boxes in proposals]
        boxes = self.coder.decode(deltas, torch.cat(list(proposals))).split(counts)
        probabilities = F.softmax(scores, dim=-1).split(counts)
        return [self._detect_one(*image) for image in zip(boxes, probabilities, sizes, strict=True)]

    def _detect_one(self, boxes: Tensor, scores: Tensor, size: ImageSize) -> Detections:
        finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        scores = scores[finite, :-1]
        boxes = clip_boxes_to_image(boxes[finite].unflatten(1, (-1, 4)), size)
        region, classes = torch.nonzero(scores > self.score_threshold, as_tuple=True)
        boxes = boxes[region, 0 if self.agnostic else classes]
        scores = scores[region, classes]
        keep = batched_nms(boxes.float(), scores, classes, self.nms_threshold)
        if self.limit >= 0:
            keep = keep[: self.limit]
        return {"boxes": boxes[keep], "scores": scores[keep], "classes": classes[keep]}
