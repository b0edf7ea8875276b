"""The whole detector: images in, losses or detections out (Detectron2's GeneralizedRCNN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from transfer.engines.embedded.boxes import nonempty
from transfer.engines.embedded.dc5 import DilatedC5
from transfer.engines.embedded.fast_rcnn import Detections, ImageSize
from transfer.engines.embedded.fpn import FPN
from transfer.engines.embedded.paste import paste_masks
from transfer.engines.embedded.regions import Targets
from transfer.engines.embedded.resnet import ResNet
from transfer.engines.embedded.roi_heads import ROI_HEADS
from transfer.engines.embedded.rpn import RPN
from transfer.recipe.choices import DC5_NAME
from transfer.recipe.load import check_honoured

Sample = dict[str, Any]

NECKS: dict[str, type[FPN] | type[DilatedC5]] = {
    "build_resnet_fpn_backbone": FPN,
    DC5_NAME: DilatedC5,
}


def build_model(cfg: CfgNode) -> nn.Module:
    """The detector of a recipe, on MODEL.DEVICE, with random weights.

    Parameter names, their order and, for one seed, their values and the random state afterwards
    are Detectron2's. InputError names the first key that this engine cannot honour.
    """
    check_honoured(cfg)
    # A copy: the layers keep their settings, and the caller may change the recipe afterwards.
    return GeneralizedRCNN(cfg.clone()).to(torch.device(cfg.MODEL.DEVICE))


class GeneralizedRCNN(nn.Module):
    """Backbone, region proposal network and second stage."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        resnet = ResNet(cfg)
        neck = NECKS.get(cfg.MODEL.BACKBONE.NAME)
        self.backbone: ResNet | FPN | DilatedC5 = neck(resnet, cfg) if neck else resnet
        self.proposal_generator = RPN(self.backbone.shapes, cfg)
        self.roi_heads = ROI_HEADS[cfg.MODEL.ROI_HEADS.NAME](self.backbone.shapes, cfg)
        for name, values in (
            ("pixel_mean", cfg.MODEL.PIXEL_MEAN),
            ("pixel_std", cfg.MODEL.PIXEL_STD),
        ):
            buffer = torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, batch: Sequence[Sample]) -> dict[str, Tensor] | list[Detections]:
        """Losses by name in training mode; in evaluation mode detections of each image.

        Samples hold ``image`` (uint8 C x H x W in INPUT.FORMAT order) and in training ``targets``;
        detections are in pixels of the original image (``height``, ``width`` of the sample).
        """
        images, sizes = self._normalise([sample["image"] for sample in batch])
        features = self.backbone(images)
        if self.training:
            return self._losses(features, sizes, batch)
        proposals, _ = self.proposal_generator(features, sizes, None)
        found, _ = self.roi_heads(features, proposals, sizes, None)
        return [
            rescale(image, size, sample.get("height", size[0]), sample.get("width", size[1]))
            for image, size, sample in zip(found, sizes, batch, strict=True)
        ]

    def _losses(
        self, features: dict[str, Tensor], sizes: Sequence[ImageSize], batch: Sequence[Sample]
    ) -> dict[str, Tensor]:
        targets = [self._to_device(sample["targets"]) for sample in batch]
        truth = [target["boxes"] for target in targets]
        proposals, rpn_losses = self.proposal_generator(features, sizes, truth)
        _, losses = self.roi_heads(features, proposals, sizes, targets)
        return losses | rpn_losses  # in this order: training adds them up one by one

    def _normalise(self, images: Sequence[Tensor]) -> tuple[Tensor, list[ImageSize]]:
        """Subtract the mean, divide by the deviation, pad with zeros on the right and below.

        All images of a batch get the largest height and width, rounded up to what the backbone
        divides by.
        """
        images = [(x.to(self.pixel_mean.device) - self.pixel_mean) / self.pixel_std for x in images]
        sizes = [(x.shape[1], x.shape[2]) for x in images]
        multiple = self.backbone.size_divisibility or 1
        height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
        batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for target, image in zip(batch, images, strict=True):
            target[:, : image.shape[1], : image.shape[2]].copy_(image)
        return batch, sizes

    def _to_device(self, targets: Targets) -> Targets:
        device = self.pixel_mean.device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in targets.items()}


def rescale(found: Detections, size: ImageSize, height: int, width: int) -> Detections:
    """Detections in an input of ``size`` to those in the original image, boxes clipped.

    Boxes without area are dropped; masks become bool N x height x width.
    """
    scale_x, scale_y = width / size[1], height / size[0]
    found = {name: values.clone() for name, values in found.items()}
    found["boxes"][:, 0::2] *= scale_x
    found["boxes"][:, 1::2] *= scale_y
    found["boxes"] = clip_boxes_to_image(found["boxes"], (height, width))
    keep = nonempty(found["boxes"])
    found = {name: values[keep] for name, values in found.items()}
    if "masks" in found:
        found["masks"] = paste_masks(found["masks"], found["boxes"], height, width)
    if "keypoints" in found:
        found["keypoints"][:, :, 0] *= scale_x
        found["keypoints"][:, :, 1] *= scale_y
    return found
