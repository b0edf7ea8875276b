"""What a training step optimises: MoCo, and the supervised counterpart that it is compared with.

The two differ here and nowhere else: same trainer, encoder, optimiser, files and checkpoints.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models.resnet import ResNet

from pretrain.bn_groups import grouped_norm
from pretrain.dictionary import newest
from pretrain.encoder import build_encoder
from pretrain.loading.batches import Batch, normalise
from pretrain.moco import MoCo

Observer = Callable[[torch.Tensor, torch.Tensor], None]


class Method(ABC):
    """A model and its loss. ``view_count`` views of an image are made for each step."""

    name: str
    view_count: int
    chance_loss: float
    model: nn.Module
    encoder: ResNet  # what is transferred; a part of the model

    @abstractmethod
    def begin_step(self, batch: Batch, parts: int) -> tuple[torch.Tensor, ...]:
        """Begin an optimiser step; return what :meth:`logits` needs, one entry for each image.

        ``batch`` is this rank's, on its device; ``parts`` is how many parts of it fit at a time.
        """

    @abstractmethod
    def logits(self, model: nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits N x classes and the target class of each sample, of a part of the batch.

        ``model`` is ``self.model``, maybe wrapped by DDP.
        """

    def end_step(self) -> None:  # noqa: B027  most methods keep nothing from step to step
        """End an optimiser step, after all backward passes."""

    def set_step(self, step: int) -> None:  # noqa: B027  most methods do not depend on it
        """Tell the model which step comes next; called when a run starts or is resumed."""

    def watch(self, observer: Observer | None) -> None:  # noqa: B027  not all have such pairs
        """From now on give ``observer`` the unit queries and keys (N x C) of each part of a step.

        None: to nobody.
        """

    def keys_before(self, count: int) -> torch.Tensor | None:
        """After a step on ``count`` images: the keys of the batch before it, ``count`` x C.

        None for a method that does not keep them.
        """
        return None


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
            running_stats=cfg.MODEL.RUNNING_STATS,
            shuffle=cfg.MODEL.SHUFFLE_BN,
            seed=cfg.SEED,
        )
        self.model, self.encoder = self.moco, self.moco.encoder_q
        self.chance_loss = math.log(cfg.MODEL.QUEUE_SIZE + 1)

    def begin_step(self, batch: Batch, parts: int) -> tuple[torch.Tensor, ...]:
        """The query views, and the keys of the other views."""
        queries, others = batch.views
        keys, self._new_keys = self.moco.encode_keys(others, parts, normalise)
        return queries, keys

    def logits(self, model: nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of query views (uint8) and keys."""
        queries, keys = inputs
        return model(normalise(queries), keys)

    def end_step(self) -> None:
        """The keys of the global batch enter the queue."""
        self.moco.end_step(self._new_keys)

    def set_step(self, step: int) -> None:
        """The permutations of shuffled BN follow the step."""
        self.moco.step = step

    def watch(self, observer: Observer | None) -> None:
        """Queries and keys as they enter the loss."""
        self.moco.observer = observer

    def keys_before(self, count: int) -> torch.Tensor | None:
        """The queue still has them where it holds two batches."""
        return newest(self.moco.queue, self.moco.queue_ptr, count, skip=count)


class SupervisedMethod(Method):
    """Cross-entropy on the class folders: the supervised counterpart on the very same images."""

    name = "supervised"
    view_count = 1

    def __init__(self, cfg: CfgNode, num_classes: int) -> None:
        norm = grouped_norm(cfg.MODEL.BN_GROUP_SIZE, cfg.MODEL.RUNNING_STATS)
        self.model = self.encoder = build_encoder(cfg.MODEL.ARCH, num_classes, norm)
        self.chance_loss = math.log(num_classes)

    def begin_step(self, batch: Batch, parts: int) -> tuple[torch.Tensor, ...]:
        """The one view, and the class indices."""
        return batch.views[0], batch.labels

    def logits(self, model: nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a view (uint8), with the class index as target."""
        images, labels = inputs
        return model(normalise(images)), labels
