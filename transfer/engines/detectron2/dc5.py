"""The MoCo paper's dilated-C5 as a backbone of Detectron2; importing this module registers it."""

from __future__ import annotations

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from fvcore.common.config import CfgNode
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor

from transfer.recipe.choices import DC5_CHANNELS, DC5_NAME


class DilatedC5(Backbone):
    """A ResNet, then a 3x3 convolution with norm on res5; the map is called ``dc5``.

    MoCo paper, appendix A.1. Parameters are ``bottom_up.*`` and ``reduce.*``.
    """

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        bottom_up = build_resnet_backbone(cfg, input_shape)
        res5, norm = bottom_up.output_shape()["res5"], cfg.MODEL.RESNETS.NORM
        self.reduce = Conv2d(
            res5.channels,
            DC5_CHANNELS,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, DC5_CHANNELS),
        )
        c2_xavier_fill(self.reduce)
        self.bottom_up = bottom_up
        self._out_features = ["dc5"]
        self._out_feature_channels = {"dc5": DC5_CHANNELS}
        self._out_feature_strides = {"dc5": res5.stride}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images, N x C x H x W float, to ``dc5``, N x 512 x H/16 x W/16."""
        return {"dc5": self.reduce(self.bottom_up(x)["res5"])}


def register() -> None:
    """Make the backbone known to Detectron2 by its name; a second call changes nothing."""
    if DC5_NAME not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY._do_register(DC5_NAME, DilatedC5)


register()
