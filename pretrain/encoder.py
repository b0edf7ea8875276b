"""The encoders: torchvision's ResNets, in any width, ending in a linear layer ``fc``.

Width follows the paper's names (Table 1): ``resnet50w2x`` has twice the channels in every layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from pretrain.bn_groups import grouped_norm
from runtime.errors import InputError

LAYERS = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}
_NAME = re.compile(r"resnet(\d+)(?:w(\d+(?:\.\d+)?)x)?")


class _ScaledResNet(ResNet):
    """ResNet with all channels multiplied by ``width``; at width 1 torchvision's own."""

    def __init__(self, block: Any, layers: list[int], width: float, **kwargs: Any) -> None:
        self.width = width
        super().__init__(block, layers, **kwargs)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # res2 is built right after the stem, with the stem's unscaled channels
            self.inplanes = round(64 * self.width)
            self.conv1 = nn.Conv2d(3, self.inplanes, 7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.inplanes)
        return super()._make_layer(block, round(planes * self.width), *args, **kwargs)


def build_encoder(
    arch: str, num_classes: int, norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> ResNet:
    """Build ``resnet18``, ``34``, ``50``, ``101`` or ``152``, or a width such as ``resnet50w2x``.

    Images N x 3 x H x W float32 go in, N x num_classes come out. Initialised as torchvision does.
    Raises :class:`InputError` for another name.
    """
    match = _NAME.fullmatch(arch)
    if match is None or int(match[1]) not in LAYERS:
        known = ", ".join(f"resnet{depth}" for depth in LAYERS)
        raise InputError(f"MODEL.ARCH {arch!r} is not one of {known}, or a width like resnet50w2x")
    block, layers = LAYERS[int(match[1])]
    width = float(match[2] or 1)
    if width == 1:
        return ResNet(block, layers, num_classes=num_classes, norm_layer=norm_layer)
    encoder = _ScaledResNet(block, layers, width, num_classes=num_classes, norm_layer=norm_layer)
    encoder.fc = nn.Linear(encoder.inplanes, num_classes)
    return encoder


def add_mlp_head(encoder: ResNet) -> None:
    """Put MoCo v2's hidden layer with ReLU before ``fc`` (Chen et al. 2020, section 2)."""
    hidden = encoder.fc.in_features
    encoder.fc = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), encoder.fc)


def encoder_of(model: CfgNode) -> ResNet:
    """The encoder of a recipe's section MODEL, with its head and its BN groups."""
    norm = grouped_norm(model.BN_GROUP_SIZE, model.RUNNING_STATS)
    encoder = build_encoder(model.ARCH, model.DIM, norm)
    if model.MLP:
        add_mlp_head(encoder)
    return encoder


def load_backbone(model: nn.Module, backbone: dict[str, torch.Tensor], source: str) -> None:
    """Load all backbone tensors into ``model``; its ``fc`` stays. InputError where they differ."""
    own = {n: tuple(t.shape) for n, t in model.state_dict().items() if not n.startswith("fc.")}
    given = {name: tuple(tensor.shape) for name, tensor in backbone.items()}
    if own != given:
        name = next(n for n in {**own, **given} if own.get(n) != given.get(n))
        raise InputError(
            f"{source}: {name} is {given.get(name)}, but {own.get(name)} in the encoder"
        )
    model.load_state_dict(backbone, strict=False)
