"""ResNet-18 to -152 and ResNeXt as a detection backbone, in Detectron2's arrangement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from runtime.errors import InputError
from transfer.engines.embedded.layers import Conv2d
from transfer.engines.embedded.norms import freeze

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@dataclass(frozen=True)
class FeatureShape:
    """Channels of a feature map and its stride in input pixels."""

    channels: int
    stride: int


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str) -> None:
        super().__init__()
        # Detectron2 builds the shortcut first and initialises it last: both draw random numbers.
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride=stride, norm=norm, bias=False)
        self.conv2 = Conv2d(out_channels, out_channels, 3, norm=norm, bias=False)
        for layer in (self.conv1, self.conv2, self.shortcut):
            if layer is not None:
                c2_msra_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to N x out_channels x H/stride x W/stride."""
        out = self.conv2(F.relu_(self.conv1(x)))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a residual connection."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        norm: str,
        *,
        bottleneck_channels: int,
        groups: int,
        stride_in_1x1: bool,
        dilation: int,
    ) -> None:
        super().__init__()
        width = bottleneck_channels
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = Conv2d(in_channels, width, 1, stride=stride_1x1, norm=norm, bias=False)
        self.conv2 = Conv2d(
            width,
            width,
            3,
            stride=stride_3x3,
            groups=groups,
            dilation=dilation,
            norm=norm,
            bias=False,
        )
        self.conv3 = Conv2d(width, out_channels, 1, norm=norm, bias=False)
        for layer in (self.conv1, self.conv2, self.conv3, self.shortcut):
            if layer is not None:
                c2_msra_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to N x out_channels x H/stride x W/stride."""
        out = self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class Stem(nn.Module):
    """7x7 convolution and max pooling: stride 4."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 7, stride=2, norm=norm, bias=False)
        c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to N x out_channels x H/4 x W/4."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(nn.Module):
    """Stem and stages res2 .. res5; returns the feature maps that the recipe names."""

    size_divisibility = 0

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        resnet = cfg.MODEL.RESNETS
        self.out_features = tuple(resnet.OUT_FEATURES)
        self.stem = Stem(len(cfg.MODEL.PIXEL_MEAN), resnet.STEM_OUT_CHANNELS, resnet.NORM)
        # Detectron2 builds all four stages and drops those after the last output. Building fewer
        # would shift every random number that is drawn later.
        stages = [_make_stage(cfg, index) for index in (2, 3, 4, 5)]
        shapes = {"stem": FeatureShape(resnet.STEM_OUT_CHANNELS, 4)}
        shapes |= {f"res{index}": _stage_shape(cfg, index) for index in (2, 3, 4, 5)}
        self.shapes = select(shapes, self.out_features, "MODEL.RESNETS.OUT_FEATURES")
        last = max(list(shapes).index(name) for name in self.out_features)
        for index, stage in enumerate(stages[:last], start=2):
            self.add_module(f"res{index}", stage)
        for child in list(self.children())[: cfg.MODEL.BACKBONE.FREEZE_AT]:
            freeze(child)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised images, N x C x H x W float, to feature maps by name."""
        maps = {}
        for name, stage in self.named_children():
            x = stage(x)
            if name in self.out_features:
                maps[name] = x
        return maps


def select(
    shapes: Mapping[str, FeatureShape], names: Sequence[str], key: str
) -> dict[str, FeatureShape]:
    """The shapes of the maps that ``key`` of the recipe names; InputError for an unknown one."""
    unknown = [name for name in names if name not in shapes]
    if unknown or not names:
        raise InputError(
            f"{key} is {list(names)}; the feature maps that exist here are {list(shapes)}"
        )
    return {name: shapes[name] for name in names}


def bottleneck_stage(
    cfg: CfgNode, index: int, *, blocks: int, stride: int, dilation: int = 1
) -> nn.Sequential:
    """The stage res``index`` (2..5) out of bottleneck blocks, the first with ``stride``."""
    resnet = cfg.MODEL.RESNETS
    in_channels, out_channels = _stage_channels(cfg, index)
    return nn.Sequential(
        *(
            BottleneckBlock(
                out_channels if position else in_channels,
                out_channels,
                1 if position else stride,
                resnet.NORM,
                bottleneck_channels=resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP * 2 ** (index - 2),
                groups=resnet.NUM_GROUPS,
                stride_in_1x1=resnet.STRIDE_IN_1X1,
                dilation=dilation,
            )
            for position in range(blocks)
        )
    )


def basic_stage(cfg: CfgNode, index: int, *, blocks: int, stride: int) -> nn.Sequential:
    """The stage res``index`` (2..5) out of basic blocks, the first with ``stride``."""
    in_channels, out_channels = _stage_channels(cfg, index)
    return nn.Sequential(
        *(
            BasicBlock(
                out_channels if position else in_channels,
                out_channels,
                1 if position else stride,
                cfg.MODEL.RESNETS.NORM,
            )
            for position in range(blocks)
        )
    )


def _make_stage(cfg: CfgNode, index: int) -> nn.Sequential:
    depth = cfg.MODEL.RESNETS.DEPTH
    blocks = BLOCKS_PER_STAGE[depth][index - 2]
    dilation = cfg.MODEL.RESNETS.RES5_DILATION if index == 5 else 1
    stride = 1 if index == 2 or dilation == 2 else 2
    if depth < 50:
        return basic_stage(cfg, index, blocks=blocks, stride=stride)
    return bottleneck_stage(cfg, index, blocks=blocks, stride=stride, dilation=dilation)


def _stage_channels(cfg: CfgNode, index: int) -> tuple[int, int]:
    """Input and output channels of the stage res``index``: the width doubles with each stage."""
    res2 = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
    before = cfg.MODEL.RESNETS.STEM_OUT_CHANNELS if index == 2 else res2 * 2 ** (index - 3)
    return before, res2 * 2 ** (index - 2)


def _stage_shape(cfg: CfgNode, index: int) -> FeatureShape:
    dilated = index == 5 and cfg.MODEL.RESNETS.RES5_DILATION == 2
    return FeatureShape(_stage_channels(cfg, index)[1], 16 if dilated else 2**index)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> Conv2d | None:
    if in_channels == out_channels:
        return None
    return Conv2d(in_channels, out_channels, 1, stride=stride, norm=norm, bias=False)
