"""The MoCo paper's dilated-C5 backbone: a ResNet, then one convolution on res5."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from transfer.engines.embedded.layers import Conv2d
from transfer.engines.embedded.resnet import FeatureShape, ResNet
from transfer.recipe.choices import DC5_CHANNELS


class DilatedC5(nn.Module):
    """A 3x3 convolution with norm reduces res5 to 512 channels; the map is called ``dc5``.

    MoCo paper, appendix A.1. It names no activation after the convolution, so there is none, and
    it is initialised like those of an FPN. With MODEL.RESNETS.RES5_DILATION 2 the stride is 16.
    """

    size_divisibility = 0

    def __init__(self, bottom_up: ResNet, cfg: CfgNode) -> None:
        super().__init__()
        res5 = bottom_up.shapes["res5"]
        self.reduce = Conv2d(res5.channels, DC5_CHANNELS, 3, norm=cfg.MODEL.RESNETS.NORM)
        c2_xavier_fill(self.reduce)
        self.bottom_up = bottom_up
        self.shapes = {"dc5": FeatureShape(DC5_CHANNELS, res5.stride)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images, N x C x H x W float, to ``dc5``, N x 512 x H/16 x W/16."""
        return {"dc5": self.reduce(self.bottom_up(x)["res5"])}
