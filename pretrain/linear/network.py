"""A classifier on top of a checkpoint's backbone, and the proof that the backbone stays."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from convert.architecture import Architecture, identify
from convert.conventions import IMAGENET_RGB, Conventions
from convert.seen_images import SeenImages
from convert.source import read_source
from pretrain.encoder import build_encoder, load_backbone
from pretrain.linear.config import RANDOM
from runtime.errors import InputError
from runtime.randomness import torch_generator

log = logging.getLogger("moco")

FC_STD = 0.01  # of the classifier's initial weights (official main_lincls.py)


@dataclass(frozen=True)
class Network:
    """Attributes:
    model: ends in the classifier ``fc``.
    architecture: of its backbone.
    conventions: how pixels must look, and where the weights come from.
    seen: the images of its pretraining, where the checkpoint says so.
    """

    model: ResNet
    architecture: Architecture
    conventions: Conventions
    seen: SeenImages | None = None

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 RGB N x 3 x H x W to the float32 input that the weights were trained with."""
        if self.conventions.channel_order == "BGR":
            images = images.flip(1)
        mean = torch.tensor(self.conventions.pixel_mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.conventions.pixel_std, device=images.device).view(1, 3, 1, 1)
        return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)

    def to_dict(self) -> dict[str, Any]:
        """Where the backbone comes from, for ``results.json``."""
        return {
            "weights_sha256": self.conventions.source_sha256 or None,
            "format": self.conventions.source_format,
            "branch": self.conventions.branch,
            "architecture": self.architecture.name,
        }


def build_network(cfg: CfgNode, num_classes: int) -> Network:
    """The network of WEIGHTS with a new classifier.

    Raises InputError where they are no complete ResNet of torchvision's kind, or not the one of
    MODEL.ARCH.
    """
    network = _random(cfg) if cfg.WEIGHTS == RANDOM else _from_checkpoint(cfg)
    model = network.model
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    generator = torch_generator(cfg.SEED, "linear classifier")
    with torch.no_grad():
        model.fc.weight.normal_(0, FC_STD, generator=generator)
        model.fc.bias.zero_()
    if cfg.MODE == "linear":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("fc."))
    return network


def _random(cfg: CfgNode) -> Network:
    if not cfg.MODEL.ARCH:
        raise InputError("random weights need an architecture: MODEL.ARCH resnet50")
    torch.manual_seed(cfg.SEED)
    model = build_encoder(cfg.MODEL.ARCH, 1)
    found = identify(model.state_dict(), RANDOM)
    conventions = Conventions(
        **IMAGENET_RGB,
        depth=found.depth,
        stem_channels=found.stem,
        planes=found.planes,
        source_format=RANDOM,
        branch="",
        source_sha256="",
    )
    return Network(model, found, conventions)


def _from_checkpoint(cfg: CfgNode) -> Network:
    source = read_source(cfg.WEIGHTS)
    found = source.architecture
    if cfg.MODEL.ARCH not in ("", found.name):
        raise InputError(
            f"MODEL.ARCH is {cfg.MODEL.ARCH!r}, but {cfg.WEIGHTS!r} holds a {found.name}: leave "
            "MODEL.ARCH out"
        )
    if found.groups != 1 or source.conventions.frozen_bn:
        what = "folded BN" if source.conventions.frozen_bn else "grouped convolutions"
        raise InputError(f"{cfg.WEIGHTS!r} has {what}, which the encoders here do not have")
    model = build_encoder(found.name, 1)
    load_backbone(model, source.backbone, cfg.WEIGHTS)
    if source.conventions.stride_in_1x1:
        stride_in_first_convolution_(model)
    return Network(model, found, source.conventions, source.seen)


def stride_in_first_convolution_(model: nn.Module) -> None:
    """Move the strides of bottlenecks from the 3x3 to the first 1x1 convolution, as MSRA has it."""
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


@contextlib.contextmanager
def without_classifier(model: ResNet) -> Iterator[ResNet]:
    """Inside the block ``model`` gives the pooled features, N x C."""
    classifier = model.fc
    model.fc = nn.Identity()
    try:
        yield model
    finally:
        model.fc = classifier


def backbone_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all backbone tensors, BN statistics included, on the CPU."""
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith("fc.")
    }


def check_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    """RuntimeError where a backbone tensor is not bit for bit what it was.

    On frozen features nothing of the pretrained model may change, running BN statistics included.
    """
    now = backbone_tensors(model)
    changed = [name for name in before if not torch.equal(before[name], now[name])]
    if changed:
        raise RuntimeError(
            f"the frozen backbone has changed ({len(changed)} tensors, {changed[0]} first): this "
            "is no linear evaluation"
        )
