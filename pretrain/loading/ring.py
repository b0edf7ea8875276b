"""Buffers for a few batches, in memory that all processes share.

Workers write their views straight to their place in a batch, and the trainer computes with the same
bytes: nothing is collated, sent or mapped anew. A fresh piece of shared memory for each batch, as
torch's DataLoader takes it, costs as much as all the colours of its views.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from dataclasses import dataclass
from math import prod
from multiprocessing.heap import Arena
from typing import NamedTuple

import numpy as np


class Slot(NamedTuple):
    """The arrays of one batch of N images.

    Attributes:
        views: uint8 V x N x 3 x S x S.
        rows: float32 V x N x P, what is left to do with the views (``pretrain/augment/rows.py``).
        places: int64 N x 2, (epoch, index) of the views to make.
        labels, indices: int64 N.
    """

    views: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


@dataclass(frozen=True)
class BatchSize:
    """N images in V views of S x S pixels, P numbers with each."""

    images: int
    views: int
    crop: int
    row: int

    def arrays(self, memory: np.ndarray) -> Slot:
        """The arrays of a batch in ``memory``, uint8, of :meth:`bytes`."""
        found, start = [], 0
        for dtype, shape in self._fields():
            stop = start + dtype.itemsize * prod(shape)
            found.append(memory[start:stop].view(dtype).reshape(shape))
            start = stop
        return Slot._make(reversed(found))

    def bytes(self) -> int:
        """Memory that a batch needs, a multiple of 8."""
        total = sum(dtype.itemsize * prod(shape) for dtype, shape in self._fields())
        return -(-total // 8) * 8

    def _fields(self) -> list[tuple[np.dtype, tuple[int, ...]]]:
        """Those of :class:`Slot`, the last first: wide numbers lie where their width demands it."""
        n, numbers = self.images, np.dtype(np.int64)
        return [
            (numbers, (n,)),
            (numbers, (n,)),
            (numbers, (n, 2)),
            (np.dtype(np.float32), (self.views, n, self.row)),
            (np.dtype(np.uint8), (self.views, n, 3, self.crop, self.crop)),
        ]


class Ring:
    """``count`` slots, each either free, in the making or lent.

    A slot is never written to while anybody can still read it: it is free again when the last array
    or tensor that shares its memory is gone. The ring can be given to a process that is started,
    forked or spawned; only its maker gives slots away.
    """

    def __init__(self, count: int, size: BatchSize) -> None:
        self.count, self.size = count, size
        self.free = deque(range(count))
        self._memory = shared_memory(count * size.bytes())

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"free": None}

    def memory(self) -> np.ndarray:
        """All bytes, uint8."""
        return np.frombuffer(self._memory.buffer, dtype=np.uint8)

    def arrays(self, slot: int) -> Slot:
        """For writing to a slot that is in the making."""
        return self.size.arrays(self._bytes(slot))

    def lend(self, slot: int) -> Slot:
        """For reading a finished slot, which is free when nothing refers to its memory any more."""
        memory = self._bytes(slot)
        # every array and tensor made from it keeps it alive
        weakref.finalize(memory, self.free.append, slot).atexit = False
        return self.size.arrays(memory)

    def copy(self, slot: int) -> Slot:
        """A copy of a finished slot, which is free at once."""
        copied = self.size.arrays(self._bytes(slot).copy())
        self.free.append(slot)
        return copied

    def _bytes(self, slot: int) -> np.ndarray:
        length = self.size.bytes()
        return np.frombuffer(self._memory.buffer, np.uint8, length, slot * length)


def shared_memory(size: int) -> Arena:
    """``size`` bytes for this process and those it starts; its ``buffer`` has them.

    On Linux without a file in /dev/shm, of which Docker gives 64 MB. It has no name, so nothing is
    left behind however the processes end.
    """
    if not hasattr(os, "memfd_create"):
        return Arena(size)
    descriptor = os.memfd_create("batches")
    os.ftruncate(descriptor, size)
    arena = Arena(size, descriptor)
    weakref.finalize(arena, os.close, descriptor)
    return arena
