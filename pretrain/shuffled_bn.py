"""Shuffling BN (MoCo, section 3.3): the keys of a batch are normalised in other company.

A query and its key in the same BN group share statistics, which betrays the positive pair. So the
key batch is permuted over the whole global batch before it is encoded, and restored afterwards.

Each image travels only to the rank that encodes it. The official code gathers all images on all
ranks: what a rank receives there grows with the number of ranks, here it does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from runtime.distributed import all_gather, all_to_all, rank, world_size
from runtime.randomness import torch_generator


def permutation(seed: int, step: int, size: int) -> torch.Tensor:
    """The permutation of the global batch at one step: int64, ``size`` entries, on the CPU.

    A pure function of (seed, step): every rank draws the same one, so nothing is broadcast.
    """
    return torch.randperm(size, generator=torch_generator(seed, "shuffled BN", step))


@torch.no_grad()
def encode_shuffled(
    encoder: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    order: torch.Tensor,
    parts: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode this rank's share of the permuted global batch and restore the order.

    Args:
        encoder: maps N/parts x 3 x H x W to N/parts x C.
        images: this rank's N images, of any dtype (uint8 travels in a quarter of float32's bytes);
            the ranks' batches in rank order are the global batch.
        order: the permutation of the W·N global samples, int64, on the CPU.
        parts: the share is encoded in that many consecutive parts of equal size.

    Returns:
        keys of this rank's own images N x C, and of the global batch W·N x C in sample order.
    """
    shuffled = exchange(images, order)
    keys = torch.cat([encoder(part) for part in shuffled.chunk(parts)])
    # The queue needs all keys on every rank; they are small, and the own ones are among them.
    restored = all_gather(keys)[_to(order.argsort(), keys)]
    return restored[rank() * len(images) :][: len(images)], restored


@torch.no_grad()
def exchange(images: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """This rank's share of the permuted global batch: N images in the order of ``order``.

    ``images`` and ``order`` as in :func:`encode_shuffled`. The permutation is known on the host,
    so who sends how much to whom is known without asking the device or another rank.
    """
    count, world = len(images), world_size()
    wanted = order.view(world, count)  # row r: the samples that rank r encodes
    owner = wanted // count
    mine = owner == rank()
    sent = wanted[mine] - rank() * count  # row by row: sorted by receiver, then by its order
    received = all_to_all(
        images[_to(sent, images)],
        to_each=mine.sum(1).tolist(),
        from_each=owner[rank()].bincount(minlength=world).tolist(),
    )
    # what arrives is sorted by owner; undo that sorting
    return received[_to(owner[rank()].argsort(stable=True).argsort(), images)]


def _to(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return index.to(like.device, non_blocking=True)
