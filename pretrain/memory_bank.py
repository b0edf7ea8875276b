"""The dictionary as a memory bank (MoCo, figure 2b and section 4.1; Wu et al., CVPR 2018).

One representation of every image. The positive key of a query is its own image's entry, negatives
are a random sample of the others. No key encoder; the momentum is on the representation of the same
image, which changes only when that image is seen: so the keys of a step come from encoders of the
whole past epoch, which is what the paper holds against it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.encoder import encoder_of
from pretrain.info_nce import info_nce_logits
from pretrain.loading.batches import Batch, normalise
from pretrain.methods import Method, Observer
from runtime.distributed import all_gather
from runtime.randomness import generator


class MemoryBank(nn.Module):
    """A query encoder and a bank. State dict: ``encoder_q.*``, ``bank`` (images x dim).

    A training step is :meth:`begin_step`, then ``forward`` and the backward pass (once or in
    several parts of the batch), then :meth:`end_step`. Every rank holds the whole bank, and all
    hold the same.

    Args:
        encoder: ends in unnormalised representations of ``dim``.
        num_images: entries of the bank.
        dim: C.
        dictionary_size: K, entries drawn as negatives at each step.
        momentum: m of an entry's update, 0.5 in Wu et al.
        temperature: τ of the softmax.
        seed: of the draws.
    """

    bank: torch.Tensor

    def __init__(
        self,
        encoder: nn.Module,
        num_images: int,
        dim: int,
        dictionary_size: int,
        momentum: float,
        temperature: float,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder_q = encoder
        self.dictionary_size = dictionary_size
        self.momentum = momentum
        self.temperature = temperature
        self.seed = seed
        self.observer: Observer | None = None  # told of queries and keys
        self.step = 0  # training steps taken; the trainer sets it when a run is resumed
        self.register_buffer("bank", F.normalize(torch.randn(num_images, dim), dim=1))

    @torch.no_grad()
    def begin_step(self, indices: torch.Tensor) -> torch.Tensor:
        """Draw the step's negatives; return the positive keys, N x C, of this rank's images.

        ``indices`` (int64, N) say which images of the data set they are.
        """
        self._indices = all_gather(indices)
        chosen = draw_negatives(
            *(self.seed, self.step, len(self.bank), self.dictionary_size, self._indices)
        )
        self._negatives = self.bank[chosen].T
        self._queries: list[torch.Tensor] = []
        return self.bank[indices]

    def forward(self, im_q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits N x (1+K) and labels (zeros, int64, N) of queries and their keys.

        ``im_q`` are normalised images N x 3 x H x W, ``k`` their entries of the bank, N x C.
        """
        q = F.normalize(self.encoder_q(im_q), dim=1)
        self._queries.append(q.detach())
        if self.observer is not None:
            self.observer(q, k)
        return info_nce_logits(q, k, self._negatives, self.temperature)

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the entries of the global batch towards its queries: k ← |m·k + (1 − m)·q|.

        An image that stands twice in the batch, because it replaces an unreadable one, moves once,
        towards its first query: so all ranks keep the same bank.
        """
        q = all_gather(torch.cat(self._queries)).to(self.bank.dtype)
        moved = self.momentum * self.bank[self._indices] + (1 - self.momentum) * q
        first = (self._indices[:, None] == self._indices).to(torch.uint8).argmax(1)
        self.bank[self._indices] = F.normalize(moved, dim=1)[first]
        self.step += 1


def draw_negatives(
    seed: int, step: int, num_images: int, size: int, batch: torch.Tensor
) -> torch.Tensor:
    """``size`` different images, none of them in ``batch`` (int64): int64, on its device.

    The draw is a pure function of (seed, step) and the batch, the same on every rank; the host does
    not wait for the device. Needs ``size`` <= ``num_images`` - len(``batch``).
    """
    rng = generator(seed, "memory bank", step)
    drawn = torch.from_numpy(rng.choice(num_images, size + len(batch), replace=False))
    drawn = drawn.to(batch.device, non_blocking=True)
    in_batch = torch.isin(drawn, batch).to(torch.uint8)
    return drawn[in_batch.argsort(stable=True)[:size]]


class MemoryBankMethod(Method):
    """Instance discrimination against a memory bank of ``num_images``."""

    name = "moco"
    view_count = 1

    def __init__(self, cfg: CfgNode, num_images: int) -> None:
        model = cfg.MODEL
        encoder = encoder_of(model)
        self.model = self.memory_bank = MemoryBank(
            *(encoder, num_images, model.DIM, model.QUEUE_SIZE, model.MOMENTUM, model.TEMPERATURE),
            seed=cfg.SEED,
        )
        self.encoder = encoder
        self.chance_loss = math.log(model.QUEUE_SIZE + 1)

    def begin_step(self, batch: Batch, parts: int) -> tuple[torch.Tensor, ...]:
        """The one view, and the entries of the same images."""
        return batch.views[0], self.memory_bank.begin_step(batch.indices)

    def logits(self, model: nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of query views (uint8) and their entries."""
        queries, keys = inputs
        return model(normalise(queries), keys)

    def end_step(self) -> None:
        """The queries of the global batch enter the bank."""
        self.memory_bank.end_step()

    def set_step(self, step: int) -> None:
        """The draws follow the step."""
        self.memory_bank.step = step

    def watch(self, observer: Observer | None) -> None:
        """Queries and keys as they enter the loss."""
        self.memory_bank.observer = observer
