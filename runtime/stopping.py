"""Stop a run in good order: a signal asks for it, the loop obeys between two iterations.

Schedulers send SIGTERM before they kill, and users press Ctrl-C. Either way all processes finish
the same iteration and save a checkpoint. Ctrl-C once more ends the process at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist

from runtime.distributed import world_size
from runtime.errors import SIGNALLED, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_SIGNAL = 1.0  # seconds: torchrun passes on to its processes what the terminal has sent them


class StopRequest:
    """Remembers the first signal; the same answer on all processes."""

    def __init__(self) -> None:
        self._signal = 0
        self._time = 0.0

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if not self._signal:
            self._signal, self._time = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._time > SAME_SIGNAL:
            raise KeyboardInterrupt

    def signal(self) -> int:
        """The signal that any of the processes received, 0 for none. Every process must ask."""
        if world_size() == 1:
            return self._signal
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        number = torch.tensor(self._signal, device=device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)


@contextlib.contextmanager
def stoppable() -> Iterator[StopRequest]:
    """SIGTERM and SIGINT become a request, as long as the block runs (in the main thread)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._received) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_main(_worker: int = 0) -> None:
    """Ignore the signals in a process that loads data: they go to the whole group of a run."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stopped(number: int, iteration: int) -> Stopped:
    """What ends a run that was stopped by a signal after ``iteration``, its checkpoint saved."""
    name = signal.Signals(number).name
    return Stopped(
        f"stopped by {name} after iteration {iteration}; continue with --resume", SIGNALLED + number
    )
