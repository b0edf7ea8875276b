"""Processes that make views, part of a batch by part, and write them to a ring of batches."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Lock
from typing import Any, NamedTuple, Protocol

from pretrain.loading.batches import ViewDataset
from pretrain.loading.ring import Ring
from pretrain.source.flaws import Flaw
from runtime.device import START, use_one_thread
from runtime.errors import InputError
from runtime.memory import keep_freed_memory
from runtime.stopping import leave_to_main


class Part(NamedTuple):
    """Images ``first`` to ``stop`` of the batch in ``slot``."""

    slot: int
    first: int
    stop: int


class Report(NamedTuple):
    """A finished part; the flaws of its images, or else why it failed."""

    part: Part
    flaws: list[Flaw]
    problem: InputError | str | None = None


class Makers(Protocol):
    """Whoever makes the parts of batches."""

    def make(self, part: Part) -> None:
        """Take the order for a part, whose places are in its slot."""

    def reports(self, block: bool) -> Iterable[Report]:
        """Of parts finished since the last call; with ``block`` at least one."""

    def close(self) -> None:
        """Give up what is left."""


class InThisProcess:
    """Makes each part at once."""

    def __init__(self, dataset: ViewDataset, ring: Ring) -> None:
        self._dataset, self._ring = dataset, ring
        self._reports: deque[Report] = deque()

    def make(self, part: Part) -> None:
        """Make it."""
        self._reports.append(Report(part, make_part(self._dataset, self._ring, part)))

    def reports(self, block: bool) -> Iterable[Report]:
        """Of all parts not reported yet."""
        while self._reports:
            yield self._reports.popleft()

    def close(self) -> None:
        """Nothing is left."""


class Workers:
    """``number`` processes. Whichever is idle takes the next part.

    They end when this object is closed or its process ends, however it does.
    """

    def __init__(
        self, dataset: ViewDataset, ring: Ring, number: int, start_method: str = START
    ) -> None:
        context: Any = multiprocessing.get_context(start_method)
        orders, self._orders = context.Pipe(duplex=False)
        self._turn = context.Lock()  # kept until spawned processes have found it
        self._reports: list[Connection] = []
        self._processes: list[BaseProcess] = []
        try:
            for _ in range(number):
                reports, to_here = context.Pipe(duplex=False)
                arguments = (dataset, ring, (orders, self._orders), self._turn, to_here)
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                to_here.close()
                self._reports.append(reports)
                self._processes.append(process)
        except BaseException:
            self.close()
            raise
        orders.close()

    def make(self, part: Part) -> None:
        """Put the part into the line of those to be made."""
        self._orders.send(part)

    def reports(self, block: bool) -> Iterable[Report]:
        """Reports that are there. RuntimeError where a process has died."""
        sentinels = [process.sentinel for process in self._processes]
        ready = wait([*self._reports, *sentinels], None if block else 0)
        for process in self._processes:
            if process.sentinel in ready:
                raise RuntimeError(_death(process))
        for reports in self._reports:
            if reports in ready:
                yield reports.recv()

    def close(self) -> None:
        """End the processes; they have nothing to lose."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        for pipe in (self._orders, *self._reports):
            pipe.close()


def _work(
    dataset: ViewDataset,
    ring: Ring,
    orders: tuple[Connection, Connection],
    turn: Lock,
    reports: Connection,
) -> None:
    leave_to_main()
    use_one_thread()
    keep_freed_memory()
    mine, trainers = orders
    trainers.close()  # so that the trainer's end ends the pipe
    while True:
        try:
            with turn:
                part = mine.recv()
        except EOFError:
            return
        reports.send(_report(dataset, ring, part))


def _report(dataset: ViewDataset, ring: Ring, part: Part) -> Report:
    try:
        return Report(part, make_part(dataset, ring, part))
    except InputError as error:
        return Report(part, [], error)
    except Exception:
        return Report(part, [], f"in loader worker {os.getpid()}:\n{traceback.format_exc()}")


def make_part(dataset: ViewDataset, ring: Ring, part: Part) -> list[Flaw]:
    """Make the views; return the flaws of the images. InputError as the data set's."""
    slot, flaws = ring.arrays(part.slot), list[Flaw]()
    for place in range(part.first, part.stop):
        epoch, index = slot.places[place].tolist()
        views, rows = slot.views[:, place], slot.rows[:, place]
        found, more = dataset.write(epoch, index, views, rows)
        slot.indices[place], slot.labels[place] = found, dataset.label(found)
        flaws += more
    return flaws


def _death(process: BaseProcess) -> str:
    process.join()
    code, why = process.exitcode or 0, ""
    how = f"has ended with exit code {code}"
    if code < 0:
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        how = f"was killed by {name}"
        if -code == signal.SIGKILL:
            why = ": the system does that where memory runs out; try a smaller DATA.NUM_WORKERS"
    return f"loader worker {process.pid} {how}{why}"
