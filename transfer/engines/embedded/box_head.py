"""The box head of FPN and DC5 detectors: convolutions, then fully connected layers."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn

from runtime.errors import InputError
from transfer.engines.embedded.layers import Conv2d


class FastRCNNConvFCHead(nn.Sequential):
    """NUM_CONV 3x3 convolutions and NUM_FC linear layers, each followed by ReLU.

    Takes R x channels x size x size and gives R x ``out_channels``.
    """

    def __init__(self, channels: int, cfg: CfgNode) -> None:
        super().__init__()
        head = cfg.MODEL.ROI_BOX_HEAD
        if head.NUM_CONV + head.NUM_FC == 0:
            raise InputError(
                "MODEL.ROI_BOX_HEAD has no layers: set NUM_FC (2 in the FPN recipes) or NUM_CONV"
            )
        for index in range(1, head.NUM_CONV + 1):
            conv = Conv2d(channels, head.CONV_DIM, 3, norm=head.NORM, relu=True)
            self.add_module(f"conv{index}", conv)
            channels = head.CONV_DIM
        features = channels * head.POOLER_RESOLUTION**2
        self.add_module("flatten", nn.Flatten())
        for index in range(1, head.NUM_FC + 1):
            self.add_module(f"fc{index}", nn.Linear(features, head.FC_DIM))
            self.add_module(f"fc_relu{index}", nn.ReLU())
            features = head.FC_DIM
        self.out_channels = features
        # After all layers exist, as in Detectron2: construction draws random numbers as well.
        for layer in self:
            if isinstance(layer, Conv2d):
                c2_msra_fill(layer)
            elif isinstance(layer, nn.Linear):
                c2_xavier_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Region features, R x channels x size x size, to R x ``out_channels``."""
        return super().forward(x)
