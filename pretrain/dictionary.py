"""The dictionary as a queue of encoded keys (MoCo, section 3.2: "Dictionary as a queue")."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def new_queue(dim: int, size: int) -> torch.Tensor:
    """Queue of ``size`` random unit vectors, dim x K float32, to start from."""
    return F.normalize(torch.randn(dim, size), dim=0)


@torch.no_grad()
def enqueue_(queue: torch.Tensor, pointer: torch.Tensor, keys: torch.Tensor) -> None:
    """Replace the oldest keys by the newest, in place.

    ``queue`` is dim x K, ``pointer`` (int64, 1 element) the column to write next, ``keys`` N x dim
    of the whole global batch in sample order. The queue wraps around, so K need not be a multiple
    of N. Only the last K keys of a batch larger than the queue can stay.
    """
    size = queue.shape[1]
    count = keys.shape[0]
    kept = keys[-size:]
    # torch.arange on the queue's device: the pointer is never read back to the host
    columns = (
        pointer + count - kept.shape[0] + torch.arange(len(kept), device=queue.device)
    ) % size
    queue[:, columns] = kept.T.to(queue.dtype)
    pointer.copy_((pointer + count) % size)


def newest(
    queue: torch.Tensor, pointer: torch.Tensor, count: int, skip: int
) -> torch.Tensor | None:
    """The ``count`` keys, count x dim, that came before the newest ``skip`` ones; None if gone.

    ``queue`` and ``pointer`` as of :func:`enqueue_`.
    """
    size = queue.shape[1]
    if count + skip > size:
        return None
    columns = (pointer - skip - count + torch.arange(count, device=queue.device)) % size
    return queue[:, columns].T
