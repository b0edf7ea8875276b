"""Second stage of the detector: regions are sampled, pooled, classified and refined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from runtime.errors import InputError
from transfer.engines.embedded.box_head import FastRCNNConvFCHead
from transfer.engines.embedded.boxes import pairwise_iou
from transfer.engines.embedded.fast_rcnn import Detections, FastRCNNOutputLayers, ImageSize
from transfer.engines.embedded.keypoint_head import (
    KRCNNConvDeconvUpsampleHead,
    with_visible_keypoint,
)
from transfer.engines.embedded.mask_head import MaskRCNNConvUpsampleHead
from transfer.engines.embedded.matching import Matcher, sample
from transfer.engines.embedded.norms import get_norm
from transfer.engines.embedded.pooling import ROIPooler
from transfer.engines.embedded.regions import Regions, Targets
from transfer.engines.embedded.resnet import (
    BLOCKS_PER_STAGE,
    FeatureShape,
    basic_stage,
    bottleneck_stage,
    select,
)

Losses = dict[str, Tensor]


class ROIHeads(nn.Module):
    """What all second stages share: ground truth joins the proposals, regions are sampled."""

    def __init__(self, shapes: dict[str, FeatureShape], cfg: CfgNode) -> None:
        super().__init__()
        heads = cfg.MODEL.ROI_HEADS
        inputs = select(shapes, heads.IN_FEATURES, "MODEL.ROI_HEADS.IN_FEATURES")
        self.in_features = tuple(inputs)
        self.strides = [shape.stride for shape in inputs.values()]
        self.in_channels = next(iter(inputs.values())).channels
        self.settings = heads
        self.matcher = Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, keep_best=False)

    def pooler(self, settings: CfgNode) -> ROIPooler:
        """The pooler of one head, from its POOLER_* keys."""
        return ROIPooler(
            settings.POOLER_TYPE,
            settings.POOLER_RESOLUTION,
            settings.POOLER_SAMPLING_RATIO,
            self.strides,
        )

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Targets]) -> list[Regions]:
        """Training regions of each image: foreground first, each part in random order."""
        return [self._sample_one(*image) for image in zip(proposals, targets, strict=True)]

    def _sample_one(self, boxes: Tensor, targets: Targets) -> Regions:
        background = self.settings.NUM_CLASSES
        truth = targets["boxes"]
        if self.settings.PROPOSAL_APPEND_GT:
            boxes = torch.cat([boxes, truth])
        matches, labels = self.matcher(pairwise_iou(truth, boxes))
        if len(truth):
            classes = targets["classes"][matches]
            classes[labels == 0] = background
            classes[labels == -1] = -1
        else:
            classes = torch.full_like(matches, background)
        foreground, rest = sample(
            classes,
            self.settings.BATCH_SIZE_PER_IMAGE,
            self.settings.POSITIVE_FRACTION,
            background,
        )
        chosen = torch.cat([foreground, rest])
        truth_boxes = truth[matches[chosen]] if len(truth) else boxes[chosen]
        return Regions(boxes[chosen], classes[chosen], truth_boxes, matches[chosen], targets)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[ImageSize],
        targets: Sequence[Targets] | None,
    ) -> tuple[list[Detections], Losses]:
        """Losses, given ``targets``; else detections in pixels of the model's input.

        Their ``masks`` are still probabilities, N x side x side.
        """
        maps = [features[name] for name in self.in_features]
        if targets is not None:
            return [], self.losses(maps, self.sample(proposals, targets))
        return self.detect(maps, proposals, sizes), {}

    def losses(self, maps: Sequence[Tensor], regions: Sequence[Regions]) -> Losses:
        """Losses of the sampled regions."""
        raise NotImplementedError

    def detect(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[ImageSize]
    ) -> list[Detections]:
        """Detections of each image."""
        raise NotImplementedError


class Res5ROIHeads(ROIHeads):
    """The C4 head: regions pass the ResNet's last stage once, for boxes and masks alike."""

    def __init__(self, shapes: dict[str, FeatureShape], cfg: CfgNode) -> None:
        super().__init__(shapes, cfg)
        if len(self.in_features) != 1:
            raise InputError(
                f"MODEL.ROI_HEADS.IN_FEATURES {list(self.in_features)}: {type(self).__name__} "
                "takes one feature map (usually res4)"
            )
        self.pool = self.pooler(cfg.MODEL.ROI_BOX_HEAD)
        self.res5 = self.build_res5(cfg)
        channels = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8
        self.box_predictor = FastRCNNOutputLayers(channels, cfg)
        self.mask_head = MaskRCNNConvUpsampleHead(channels, cfg) if cfg.MODEL.MASK_ON else None

    def build_res5(self, cfg: CfgNode) -> nn.Sequential:
        """Three bottleneck blocks, whatever the backbone's depth."""
        return bottleneck_stage(cfg, 5, blocks=3, stride=2)

    def losses(self, maps: Sequence[Tensor], regions: Sequence[Regions]) -> Losses:
        """Box losses and, of the foreground rows of the same features, the mask loss."""
        x = self.res5(self.pool(maps, [r.boxes for r in regions]))
        scores, deltas = self.box_predictor(x.mean(dim=[2, 3]))
        losses = self.box_predictor.losses(scores, deltas, regions)
        if self.mask_head is not None:
            masks = [r.is_foreground(self.settings.NUM_CLASSES) for r in regions]
            foreground = [r[mask] for r, mask in zip(regions, masks, strict=True)]
            losses |= self.mask_head.loss(x[torch.cat(masks)], foreground)
        return losses

    def detect(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[ImageSize]
    ) -> list[Detections]:
        """Detections of each image; masks are computed for the detected boxes."""
        x = self.res5(self.pool(maps, proposals))
        scores, deltas = self.box_predictor(x.mean(dim=[2, 3]))
        found = self.box_predictor.detect(scores, deltas, proposals, sizes)
        if self.mask_head is not None:
            x = self.res5(self.pool(maps, [image["boxes"] for image in found]))
            _add_masks(self.mask_head, x, found)
        return found


class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """MoCo's C4 head: one more norm after res5, so that a new classifier sees unit scale.

    Basic blocks replace the bottlenecks for ResNet-18 and -34, whose checkpoints have them.
    """

    def build_res5(self, cfg: CfgNode) -> nn.Sequential:
        """The backbone's own res5 with a norm (parameters ``res5.norm.*``) as last layer."""
        depth, norm = cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM
        if not norm:
            raise InputError(
                "MODEL.RESNETS.NORM is empty, so Res5ROIHeadsExtraNorm has no norm to add; "
                "name one (naiveSyncBN in MoCo's recipes) or use Res5ROIHeads"
            )
        if depth < 50:
            stage = basic_stage(cfg, 5, blocks=BLOCKS_PER_STAGE[depth][-1], stride=2)
        else:
            stage = super().build_res5(cfg)
        stage.add_module("norm", get_norm(norm, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8))
        return stage


class StandardROIHeads(ROIHeads):
    """The heads of FPN and DC5 detectors: each head pools its own regions."""

    def __init__(self, shapes: dict[str, FeatureShape], cfg: CfgNode) -> None:
        super().__init__(shapes, cfg)
        model = cfg.MODEL
        self.box_pooler = self.pooler(model.ROI_BOX_HEAD)
        self.box_head = FastRCNNConvFCHead(self.in_channels, cfg)
        self.box_predictor = FastRCNNOutputLayers(self.box_head.out_channels, cfg)
        self.mask_head = self.keypoint_head = None
        if model.MASK_ON:
            self.mask_pooler = self.pooler(model.ROI_MASK_HEAD)
            self.mask_head = MaskRCNNConvUpsampleHead(self.in_channels, cfg)
        if model.KEYPOINT_ON:
            self.keypoint_pooler = self.pooler(model.ROI_KEYPOINT_HEAD)
            self.keypoint_head = KRCNNConvDeconvUpsampleHead(self.in_channels, cfg)

    def losses(self, maps: Sequence[Tensor], regions: Sequence[Regions]) -> Losses:
        """Box losses of all regions, mask and keypoint losses of the foreground."""
        x = self.box_head(self.box_pooler(maps, [r.boxes for r in regions]))
        scores, deltas = self.box_predictor(x)
        losses = self.box_predictor.losses(scores, deltas, regions)
        foreground = [r[r.is_foreground(self.settings.NUM_CLASSES)] for r in regions]
        if self.mask_head is not None:
            x = self.mask_pooler(maps, [r.boxes for r in foreground])
            losses |= self.mask_head.loss(x, foreground)
        if self.keypoint_head is not None:
            visible = [with_visible_keypoint(r) for r in foreground]
            x = self.keypoint_pooler(maps, [r.boxes for r in visible])
            losses |= self.keypoint_head.loss(x, visible)
        return losses

    def detect(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[ImageSize]
    ) -> list[Detections]:
        """Detections of each image; masks and keypoints are computed for the detected boxes."""
        x = self.box_head(self.box_pooler(maps, proposals))
        scores, deltas = self.box_predictor(x)
        found = self.box_predictor.detect(scores, deltas, proposals, sizes)
        boxes = [image["boxes"] for image in found]
        if self.mask_head is not None:
            _add_masks(self.mask_head, self.mask_pooler(maps, boxes), found)
        if self.keypoint_head is not None:
            x = self.keypoint_pooler(maps, boxes)
            points = self.keypoint_head.predict(x, torch.cat(boxes))
            _share(points, found, "keypoints")
        return found


ROI_HEADS: dict[str, type[ROIHeads]] = {
    head.__name__: head for head in (Res5ROIHeads, Res5ROIHeadsExtraNorm, StandardROIHeads)
}


def _add_masks(head: MaskRCNNConvUpsampleHead, x: Tensor, found: Sequence[Detections]) -> None:
    classes = torch.cat([image["classes"] for image in found])
    _share(head.predict(x, classes), found, "masks")


def _share(values: Tensor, found: Sequence[Detections], key: str) -> None:
    """Give each image its rows of ``values``."""
    counts = [len(image["boxes"]) for image in found]
    for image, rows in zip(found, values.split(counts), strict=True):
        image[key] = rows
