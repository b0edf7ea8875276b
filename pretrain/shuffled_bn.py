"""Shuffling BN (MoCo, section 3.3): the keys of a batch are normalised in other company.

A query and its key in the same BN group share statistics, which betrays the positive pair. So the
key batch is permuted over the whole global batch before it is encoded, and restored afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from runtime.distributed import all_gather, rank
from runtime.randomness import torch_generator


def permutation(seed: int, step: int, size: int) -> torch.Tensor:
    """The permutation of the global batch at one step: int64, ``size`` entries, on the CPU.

    A pure function of (seed, step): every rank draws the same one, so nothing is broadcast.
    """
    return torch.randperm(size, generator=torch_generator(seed, "shuffled BN", step))


@torch.no_grad()
def encode_shuffled(
    encoder: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode this rank's share of the permuted global batch and restore the order.

    Args:
        encoder: maps N x 3 x H x W to N x C.
        images: this rank's N images; the ranks' batches in rank order are the global batch.
        order: the permutation of the W·N global samples.

    Returns:
        keys of this rank's own images N x C, and of the global batch W·N x C in sample order.
    """
    count = len(images)
    mine = slice(rank() * count, (rank() + 1) * count)
    order = order.to(images.device)
    keys = encoder(all_gather(images)[order[mine]])
    restored = all_gather(keys)[order.argsort()]
    return restored[mine], restored
