"""Stop a run in good order: a signal asks for it, the loop obeys between two iterations.

Schedulers send SIGTERM or SIGUSR1 (Slurm's --signal) before they kill, and users press Ctrl-C. In
any case all processes finish the same iteration and save a checkpoint. Ctrl-C once more ends the
process at once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist

from runtime.distributed import world_size
from runtime.errors import SIGNALLED, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PARENT_CHECKED = 1.0  # seconds between two looks whether it lives
SAME_SIGNAL = 1.0  # seconds: torchrun passes on to its processes what the terminal has sent them


class StopRequest:
    """Remembers the first signal; the same answer on all processes."""

    def __init__(self) -> None:
        self.received = 0  # by this process
        self._time = 0.0

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._time = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._time > SAME_SIGNAL:
            raise KeyboardInterrupt

    def signal(self) -> int:
        """The signal that any of the processes received, 0 for none. Every process must ask."""
        if world_size() == 1:
            return self.received
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        number = torch.tensor(self.received, device=device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)


@contextlib.contextmanager
def stoppable() -> Iterator[StopRequest]:
    """SIGTERM, SIGINT and SIGUSR1 become a request, while the block runs (main thread only)."""
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
    """Ignore the signals in a process that loads data: they go to the whole group of a run.

    Only its parent's SIGTERM ends it: a parent that fails sends it, and then waits for the end.
    And its parent's death, however sudden.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(starter: int) -> None:
    """``starter`` is the parent itself, or the server that forks for it and ends with it."""
    parent = multiprocessing.parent_process()
    while os.getppid() == starter and (parent is None or parent.is_alive()):
        if _terminated_by(starter, parent.pid if parent else None):
            break
    os._exit(0)


def _terminated_by(*senders: int | None) -> bool:
    """Wait a moment for SIGTERM from one of them."""
    if not hasattr(signal, "sigtimedwait"):  # macOS, which does not say either who sends a signal
        time.sleep(PARENT_CHECKED)
        return signal.SIGTERM in signal.sigpending()
    received = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECKED)
    return received is not None and received.si_pid in senders


def stopped(number: int, done: int, unit: str = "iteration") -> Stopped:
    """What ends a run that was stopped by a signal after ``unit`` ``done``, its checkpoint saved.

    The exit code, 128 + the signal's number, asks a scheduler to put the job into the queue again.
    """
    name = signal.Signals(number).name
    return Stopped(
        f"stopped by {name} after {unit} {done}; continue with --resume", SIGNALLED + number
    )
