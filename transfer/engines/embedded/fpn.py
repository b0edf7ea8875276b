"""Feature pyramid network (Lin et al. 2017) on a ResNet, levels p2 .. p6."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from runtime.errors import InputError
from transfer.engines.embedded.layers import Conv2d
from transfer.engines.embedded.resnet import FeatureShape, ResNet, select


class FPN(nn.Module):
    """Top-down pathway over the ResNet's maps, plus one level that subsamples the coarsest."""

    def __init__(self, bottom_up: ResNet, cfg: CfgNode) -> None:
        super().__init__()
        fpn = cfg.MODEL.FPN
        self.in_features = tuple(fpn.IN_FEATURES)
        shapes = select(bottom_up.shapes, self.in_features, "MODEL.FPN.IN_FEATURES")
        inputs = list(shapes.values())
        _check_pyramid(self.in_features, inputs)
        self.average = fpn.FUSE_TYPE == "avg"
        channels = fpn.OUT_CHANNELS
        self.levels = [shape.stride.bit_length() - 1 for shape in inputs]
        for level, shape in zip(self.levels, inputs, strict=True):
            lateral = Conv2d(shape.channels, channels, 1, norm=fpn.NORM)
            output = Conv2d(channels, channels, 3, norm=fpn.NORM)
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self.bottom_up = bottom_up  # after the pyramid: the order of the state dict
        self.size_divisibility = inputs[-1].stride
        self.shapes = {
            f"p{level}": FeatureShape(channels, 2**level)
            for level in (*self.levels, self.levels[-1] + 1)
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images, N x C x H x W float, to maps p2 .. p6, each N x channels x h x w.

        H and W must be multiples of ``size_divisibility``.
        """
        bottom_up = self.bottom_up(x)
        merged: Tensor | None = None
        results: list[Tensor] = []
        for level, name in zip(reversed(self.levels), reversed(self.in_features), strict=True):
            above = merged
            # Detectron2 upsamples before the lateral convolution; autograd adds gradients in
            # the reverse of the order of creation, so the order is part of parity.
            if above is not None:
                above = F.interpolate(above, scale_factor=2.0, mode="nearest")
            merged = self.get_submodule(f"fpn_lateral{level}")(bottom_up[name])
            if above is not None:
                merged = merged + above
                if self.average:
                    merged /= 2
            results.insert(0, self.get_submodule(f"fpn_output{level}")(merged))
        results.append(F.max_pool2d(results[-1], kernel_size=1, stride=2))
        return dict(zip(self.shapes, results, strict=True))


def _check_pyramid(names: tuple[str, ...], shapes: list[FeatureShape]) -> None:
    strides = [shape.stride for shape in shapes]
    if any(fine * 2 != coarse for fine, coarse in itertools.pairwise(strides)):
        raise InputError(
            f"MODEL.FPN.IN_FEATURES {list(names)} have strides {strides}: each must be twice the "
            "one before; name neighbouring stages and leave MODEL.RESNETS.RES5_DILATION at 1"
        )
