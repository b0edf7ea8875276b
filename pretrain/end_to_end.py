"""The dictionary as the batch itself (MoCo, figure 2a): gradients flow through queries and keys.

All keys are consistent, of one encoder, but their number is bound to the batch. Queries and keys
share one encoder ("the two encoders can be different", figure 2). BN is shuffled here as well: the
paper needs it for this mechanism too (section 3.3).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.encoder import encoder_of
from pretrain.loading.batches import Batch, normalise
from pretrain.methods import Method, Observer
from pretrain.shuffled_bn import exchange, permutation
from runtime.distributed import all_gather_with_gradient, rank, world_size


class EndToEnd(nn.Module):
    """One encoder of queries and keys. State dict: ``encoder_q.*``.

    Args:
        encoder: ends in unnormalised representations.
        temperature: τ of the softmax.
        shuffle: whether keys are normalised in other company (shuffling BN).
        seed: of the permutations.
    """

    def __init__(
        self, encoder: nn.Module, temperature: float, shuffle: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        self.encoder_q = encoder
        self.temperature = temperature
        self.shuffle = shuffle
        self.seed = seed
        self.observer: Observer | None = None  # told of queries and keys
        self.step = 0  # training steps taken; the trainer sets it when a run is resumed

    def begin_step(self, images: torch.Tensor) -> torch.Tensor:
        """This rank's share N of the permuted global batch of key views ``images`` (any dtype)."""
        size = world_size() * len(images)
        order = permutation(self.seed, self.step, size) if self.shuffle else torch.arange(size)
        self._restore = order.argsort().to(images.device, non_blocking=True)
        return exchange(images, order)

    def forward(self, im_q: torch.Tensor, im_k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits N x W·N and labels (zeros, int64, N).

        Both normalised, N x 3 x H x W: ``im_q`` this rank's queries in sample order, ``im_k`` what
        :meth:`begin_step` gave.
        """
        q = F.normalize(self.encoder_q(im_q), dim=1)
        shuffled = F.normalize(self.encoder_q(im_k), dim=1)
        keys = all_gather_with_gradient(shuffled)[self._restore]
        first = rank() * len(q)
        if self.observer is not None:
            self.observer(q, keys[first : first + len(q)])
        return batch_logits(q, keys, first, self.temperature)


def batch_logits(
    q: torch.Tensor, keys: torch.Tensor, first: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE within the batch: each query against its key and the B − 1 others.

    Args:
        q: queries N x C, unit length; they are the samples ``first``, ``first`` + 1, ...
        keys: of the global batch, B x C, unit length, in sample order.
        first: place of the first query among the keys.
        temperature: τ.

    Returns:
        logits N x B, the positive first, divided by τ; labels int64 N, all zero.
    """
    similarity = q @ keys.T
    own = (first + torch.arange(len(q), device=q.device)).unsqueeze(1)
    others = torch.arange(len(keys) - 1, device=q.device).expand(len(q), -1)
    columns = torch.cat([own, others + (others >= own)], dim=1)  # skips the own key
    labels = torch.zeros(len(q), dtype=torch.long, device=q.device)
    return similarity.gather(1, columns) / temperature, labels


class EndToEndMethod(Method):
    """Instance discrimination against the keys of the same global batch."""

    name = "moco"
    view_count = 2

    def __init__(self, cfg: CfgNode) -> None:
        model = cfg.MODEL
        encoder = encoder_of(model)
        self.model = self.end_to_end = EndToEnd(
            encoder, model.TEMPERATURE, model.SHUFFLE_BN, cfg.SEED
        )
        self.encoder = encoder
        self.chance_loss = math.log(cfg.SOLVER.BATCH_SIZE)

    def begin_step(self, batch: Batch, parts: int) -> tuple[torch.Tensor, ...]:
        """The query views, and the key views that this rank encodes."""
        queries, others = batch.views
        return queries, self.end_to_end.begin_step(others)

    def logits(self, model: nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of query views and permuted key views (uint8)."""
        queries, others = inputs
        return model(normalise(queries), normalise(others))

    def end_step(self) -> None:
        """The next step permutes anew."""
        self.end_to_end.step += 1

    def set_step(self, step: int) -> None:
        """The permutations of shuffled BN follow the step."""
        self.end_to_end.step = step

    def watch(self, observer: Observer | None) -> None:
        """Queries and keys as they enter the loss."""
        self.end_to_end.observer = observer
