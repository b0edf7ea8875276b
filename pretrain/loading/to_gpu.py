"""Batches from the ring to a GPU, while it computes the step before."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from pretrain.loading.batches import Batch


@contextlib.contextmanager
def page_locked(memory: np.ndarray) -> Iterator[None]:
    """Memory that a GPU reads by itself, as long as the block runs."""
    cuda = torch.cuda.cudart()
    torch.cuda.check_error(cuda.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    try:
        yield
    finally:
        torch.cuda.check_error(cuda.cudaHostUnregister(memory.ctypes.data))


class ToGPU:
    """Moves batches on a stream of its own. The host does not wait, being a step ahead of the GPU.

    A batch in host memory is held, and its slot not free, until it has been copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._copying: deque[tuple[torch.cuda.Event, Batch]] = deque()

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, for use on the current stream."""
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device)
        copied = self._stream.record_event()
        self._copying.append((copied, batch))
        here = torch.cuda.current_stream(self._device)
        here.wait_event(copied)
        for tensor in (*moved.views, moved.labels, moved.indices):
            tensor.record_stream(here)
        return moved

    def close(self) -> None:
        """Wait until nothing is read from host memory any more."""
        self._stream.synchronize()
        self._copying.clear()
