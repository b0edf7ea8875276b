"""MoCo's C4 head as a ROI head of Detectron2; importing this module registers it."""

from __future__ import annotations

import logging

from detectron2.layers import get_norm
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from fvcore.common.config import CfgNode
from torch import nn

from runtime.errors import InputError

NAME = "Res5ROIHeadsExtraNorm"
logger = logging.getLogger(__name__)


class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """res5 followed by one more norm, whose parameters are called ``res5.norm.*``.

    The same as in the official MoCo code for ResNet-50 and deeper. For ResNet-18 and -34
    Detectron2's head would build bottlenecks, which no checkpoint fits: here it has the basic
    blocks of those nets.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        """The stage and its number of output channels."""
        resnet = cfg.MODEL.RESNETS
        if not resnet.NORM:
            raise InputError(
                f"MODEL.RESNETS.NORM is empty, so {NAME} has no norm to add; "
                "name one (naiveSyncBN in MoCo's recipes) or use Res5ROIHeads"
            )
        if resnet.DEPTH < 50:
            channels = resnet.RES2_OUT_CHANNELS * 8
            blocks = {18: 2, 34: 3}[resnet.DEPTH]
            stage = nn.Sequential(
                *ResNet.make_stage(
                    BasicBlock,
                    blocks,
                    stride_per_block=[2] + [1] * (blocks - 1),
                    in_channels=channels // 2,
                    out_channels=channels,
                    norm=resnet.NORM,
                )
            )
        else:
            stage, channels = super()._build_res5_block(cfg)
        stage.add_module("norm", get_norm(resnet.NORM, channels))
        return stage, channels


def register() -> None:
    """Make the head known to Detectron2 by its name; a second call changes nothing."""
    if NAME not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)
    elif ROI_HEADS_REGISTRY.get(NAME).__module__ != __name__:
        logger.warning(
            "%s of %s is registered with Detectron2 and is used instead of ours",
            NAME,
            ROI_HEADS_REGISTRY.get(NAME).__module__,
        )


register()
