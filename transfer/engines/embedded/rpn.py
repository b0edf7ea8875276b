"""Region proposal network (Ren et al. 2015): anchors to scored proposals, and its losses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from runtime.errors import InputError
from transfer.engines.embedded.anchors import AnchorGenerator
from transfer.engines.embedded.boxes import BoxCoder, nonempty, pairwise_iou
from transfer.engines.embedded.layers import Conv2d
from transfer.engines.embedded.matching import Matcher, sample
from transfer.engines.embedded.resnet import FeatureShape, select

ImageSize = tuple[int, int]  # height, width


class RPNHead(nn.Module):
    """3x3 convolutions, then objectness logits and box deltas of every anchor."""

    def __init__(self, channels: int, anchors: int, conv_dims: Sequence[int]) -> None:
        super().__init__()
        widths = [channels]
        for width in conv_dims:  # -1 keeps the width
            widths.append(widths[-1] if width == -1 else width)
        convs = [Conv2d(i, o, 3, relu=True) for i, o in itertools.pairwise(widths)]
        if len(convs) == 1:
            self.conv: nn.Module = convs[0]
        else:
            self.conv = nn.Sequential()
            for index, conv in enumerate(convs):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = nn.Conv2d(widths[-1], anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(widths[-1], anchors * 4, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per map: logits, N x (H * W * A), and deltas, N x (H * W * A) x 4."""
        logits, deltas = [], []
        for x in maps:
            hidden = self.conv(x)
            logits.append(self.objectness_logits(hidden))
            deltas.append(self.anchor_deltas(hidden))
        return (
            [x.permute(0, 2, 3, 1).flatten(1) for x in logits],
            [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, -2) for x in deltas],
        )


class RPN(nn.Module):
    """Proposes boxes; in training it also returns its two losses."""

    def __init__(self, shapes: dict[str, FeatureShape], cfg: CfgNode) -> None:
        super().__init__()
        rpn, anchor = cfg.MODEL.RPN, cfg.MODEL.ANCHOR_GENERATOR
        inputs = select(shapes, rpn.IN_FEATURES, "MODEL.RPN.IN_FEATURES")
        widths = {shape.channels for shape in inputs.values()}
        if len(widths) != 1:
            raise InputError(
                f"MODEL.RPN.IN_FEATURES {list(inputs)} have {sorted(widths)} channels; one head "
                "serves all maps, so that all need the same number (use FPN)"
            )
        strides = [shape.stride for shape in inputs.values()]
        self.in_features = tuple(inputs)
        self.settings = rpn
        self.min_size = float(cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE)
        self.coder = BoxCoder(rpn.BBOX_REG_WEIGHTS)
        self.matcher = Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, keep_best=True)
        anchors = AnchorGenerator(anchor.SIZES, anchor.ASPECT_RATIOS, strides, anchor.OFFSET)
        self.rpn_head = RPNHead(widths.pop(), anchors.anchors_per_cell, rpn.CONV_DIMS)
        self.anchor_generator = anchors

    def forward(
        self,
        features: dict[str, Tensor],
        sizes: Sequence[ImageSize],
        truth: Sequence[Tensor] | None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals of each image (float32 R x 4, best first) and, given ``truth``, losses.

        ``truth`` holds the ground-truth boxes of each image, float32 M x 4.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        losses = {} if truth is None else self._losses(anchors, logits, deltas, sizes, truth)
        with torch.no_grad():
            boxes = [self._decode(*level) for level in zip(deltas, anchors, strict=True)]
            return self._select(boxes, logits, sizes), losses

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """The boxes of one level, N x A x 4."""
        boxes = self.coder.decode(deltas.flatten(0, 1), anchors.expand_as(deltas).flatten(0, 1))
        return boxes.view(deltas.shape)

    @torch.no_grad()
    def _label(self, anchors: Tensor, size: ImageSize, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Label (int8 N; sampled: 1 or 0, others -1) and ground-truth box (N x 4) of anchors."""
        matches, labels = self.matcher(pairwise_iou(truth, anchors))
        border = self.settings.BOUNDARY_THRESH
        if border >= 0:
            far = anchors.new_tensor([size[1] + border, size[0] + border])
            inside = (anchors[:, :2] >= -border).all(dim=1) & (anchors[:, 2:] < far).all(dim=1)
            labels[~inside] = -1
        positive, negative = sample(
            labels, self.settings.BATCH_SIZE_PER_IMAGE, self.settings.POSITIVE_FRACTION, 0
        )
        labels.fill_(-1)
        labels[positive] = 1
        labels[negative] = 0
        return labels, truth[matches] if len(truth) else torch.zeros_like(anchors)

    def _losses(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        sizes: Sequence[ImageSize],
        truth: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Both losses are sums over the sampled anchors, divided by the number asked for."""
        rpn = self.settings
        every = torch.cat(list(anchors))
        pairs = [self._label(every, size, boxes) for size, boxes in zip(sizes, truth, strict=True)]
        labels = torch.stack([label for label, _ in pairs])
        targets = torch.stack([target for _, target in pairs])
        positive = labels == 1
        sources = every.expand_as(targets)[positive]
        box_loss = self.coder.loss(
            rpn.BBOX_REG_LOSS_TYPE,
            rpn.SMOOTH_L1_BETA,
            torch.cat(list(deltas), dim=1)[positive],
            sources,
            targets[positive],
        )
        sampled = labels >= 0
        objectness_loss = F.binary_cross_entropy_with_logits(
            torch.cat(list(logits), dim=1)[sampled],
            labels[sampled].to(torch.float32),
            reduction="sum",
        )
        normaliser = rpn.BATCH_SIZE_PER_IMAGE * len(truth)
        return {
            "loss_rpn_cls": objectness_loss / normaliser * rpn.LOSS_WEIGHT,
            "loss_rpn_loc": box_loss / normaliser * (rpn.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT),
        }

    def _select(
        self, boxes: Sequence[Tensor], logits: Sequence[Tensor], sizes: Sequence[ImageSize]
    ) -> list[Tensor]:
        """The best boxes of each level, then the best of each image after suppression."""
        rpn = self.settings
        limit = rpn.PRE_NMS_TOPK_TRAIN if self.training else rpn.PRE_NMS_TOPK_TEST
        scores, kept, levels = [], [], []
        for level, (level_boxes, level_logits) in enumerate(zip(boxes, logits, strict=True)):
            best, order = level_logits.topk(min(limit, level_logits.shape[1]), dim=1)
            scores.append(best)
            kept.append(level_boxes.gather(1, order[:, :, None].expand(-1, -1, 4)))
            levels.append(torch.full_like(order[0], level))
        return [
            self._suppress(image_boxes, image_scores, torch.cat(levels), size)
            for image_boxes, image_scores, size in zip(
                torch.cat(kept, dim=1), torch.cat(scores, dim=1), sizes, strict=True
            )
        ]

    def _suppress(self, boxes: Tensor, scores: Tensor, levels: Tensor, size: ImageSize) -> Tensor:
        rpn = self.settings
        finite = boxes.isfinite().all(dim=1) & scores.isfinite()
        if self.training and not finite.all():
            raise FloatingPointError("the region proposals hold infinite or undefined numbers")
        boxes = clip_boxes_to_image(boxes[finite], size)
        keep = nonempty(boxes, self.min_size)
        boxes, scores, levels = boxes[keep], scores[finite][keep], levels[finite][keep]
        keep = batched_nms(boxes.float(), scores, levels, rpn.NMS_THRESH)
        limit = rpn.POST_NMS_TOPK_TRAIN if self.training else rpn.POST_NMS_TOPK_TEST
        return boxes[keep[:limit]]
