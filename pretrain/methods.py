"""What a training step optimises: MoCo, and the supervised counterpart that it is compared with.

The two differ here and nowhere else: same trainer, encoder, optimiser, files and checkpoints.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.bn_groups import GroupedBatchNorm2d
from pretrain.data import Batch, normalise
from pretrain.encoder import build_encoder
from pretrain.moco import MoCo


@dataclass(frozen=True)
class StepResult:
    """Loss to minimise (scalar, with gradient) and top-1 accuracy in percent (scalar)."""

    loss: torch.Tensor
    accuracy: torch.Tensor


class Method(ABC):
    """A model and its loss. ``view_count`` views of an image are made for each step."""

    name: str
    view_count: int
    chance_loss: float
    model: nn.Module

    def step(self, model: nn.Module, batch: Batch, device: torch.device) -> StepResult:
        """Loss and accuracy of a batch; ``model`` is ``self.model``, maybe wrapped by DDP."""
        views = [normalise(view.to(device, non_blocking=True)) for view in batch.views]
        logits, labels = self.logits(model, views, batch.labels.to(device))
        accuracy = (logits.argmax(1) == labels).float().mean() * 100
        return StepResult(F.cross_entropy(logits, labels), accuracy)

    @abstractmethod
    def logits(
        self, model: nn.Module, views: list[torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits N x classes and the target class of each sample."""

    def set_step(self, step: int) -> None:  # noqa: B027  most methods do not depend on it
        """Tell the model which step comes next; called when a run starts or is resumed."""


class MoCoMethod(Method):
    """Instance discrimination: which of 1 + K keys belongs to the query?"""

    name = "moco"
    view_count = 2

    def __init__(self, cfg: CfgNode) -> None:
        self.moco = MoCo(
            arch=cfg.MODEL.ARCH,
            dim=cfg.MODEL.DIM,
            queue_size=cfg.MODEL.QUEUE_SIZE,
            momentum=cfg.MODEL.MOMENTUM,
            temperature=cfg.MODEL.TEMPERATURE,
            mlp=cfg.MODEL.MLP,
            bn_group_size=cfg.MODEL.BN_GROUP_SIZE,
            seed=cfg.SEED,
        )
        self.model = self.moco
        self.chance_loss = math.log(cfg.MODEL.QUEUE_SIZE + 1)

    def logits(
        self, model: nn.Module, views: list[torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the two views as query and key."""
        return model(*views)

    def set_step(self, step: int) -> None:
        """The permutations of shuffled BN follow the step."""
        self.moco.step = step


class SupervisedMethod(Method):
    """Cross-entropy on the class folders: the supervised counterpart on the very same images."""

    name = "supervised"
    view_count = 1

    def __init__(self, cfg: CfgNode, num_classes: int) -> None:
        norm = partial(GroupedBatchNorm2d, group_size=cfg.MODEL.BN_GROUP_SIZE)
        self.model = build_encoder(cfg.MODEL.ARCH, num_classes, norm)
        self.chance_loss = math.log(num_classes)

    def logits(
        self, model: nn.Module, views: list[torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the one view, with the class index as target."""
        return model(views[0]), labels
