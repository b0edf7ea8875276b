"""Batches for the trainer, in order, made ahead of it."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import chain

import torch

from pretrain.loading.batches import Batch, EpochBatches, ViewDataset
from pretrain.loading.memory_check import check_memory
from pretrain.loading.prefetch import Prefetch
from pretrain.loading.ring import BatchSize, Ring, Slot
from pretrain.loading.to_gpu import ToGPU, page_locked
from pretrain.loading.workers import InThisProcess, Makers, Part, Report, Workers
from pretrain.source.flaws import Flaw
from pretrain.source.remote_shards import RemoteShards
from runtime.device import START
from runtime.errors import InputError

log = logging.getLogger("moco")

# A batch is made in parts, by whichever worker is idle. With 2 workers the first batch of 256 is
# there after 0.6 of the time that one worker needs for all of it, and 8 workers are kept busy by 2
# batches ahead, not 16. Messages cost 50 microseconds a part: 0.2 % of the time its views need.
PART, MOST_PARTS = 16, 32  # images in a part, at least; parts of a batch
AHEAD = 2  # batches that are made ahead, and parts for each worker
LENT = 2  # batches that the trainer holds: the one it is done with, and the one it is given


class Loader:
    """Iterates over this rank's batches of a run.

    What it gives is a function of ``dataset`` and ``batches`` alone. Raises InputError where images
    cannot be read, and RuntimeError where a worker died or failed, in the place of that batch. They
    lie in the memory of a :class:`Ring`; who keeps more than two of them gets copies.

    To be made on all ranks together: InputError on all where memory for the batches is short.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        batches: EpochBatches,
        num_workers: int,
        device: torch.device | None = None,
        start_method: str = START,
    ) -> None:
        self.dataset, self.batches, self.num_workers = dataset, batches, num_workers
        self.device, self.start_method = device or torch.device("cpu"), start_method
        self._cuts = _cuts(batches.share)
        self._ahead = _ahead(len(self._cuts), num_workers)
        recipe, views = dataset.recipe, dataset.view_count
        self._size = BatchSize(batches.share, views, recipe.crop_size, dataset.row_width)
        check_memory(self._ahead + LENT, self._size, num_workers, AHEAD + LENT)

    def __iter__(self) -> Generator[Batch, None, None]:
        ring, source, ahead = Ring(self._ahead + LENT, self._size), self.dataset.source, self._ahead
        log.info(
            "views are made by %s, %d batches of %.3g MB in memory",
            f"{self.num_workers} process(es)" if self.num_workers else "the trainer itself",
            *(ring.count, self._size.bytes() / 1e6),
        )
        with contextlib.ExitStack() as stack:
            order = iter(self.batches)
            if isinstance(source, RemoteShards):
                prefetch = Prefetch(source, self.batches, ahead, self.start_method)
                order = stack.enter_context(contextlib.closing(prefetch)).follow(self.batches)
            makers = stack.enter_context(contextlib.closing(self._makers(ring)))
            made = _made(order, ring, makers, self._cuts, ahead)
            if self.device.type == "cuda":
                stack.enter_context(page_locked(ring.memory()))
                to_gpu = stack.enter_context(contextlib.closing(ToGPU(self.device)))
                made = map(to_gpu, made)
            yield from made

    def _makers(self, ring: Ring) -> Makers:
        if not self.num_workers:
            return InThisProcess(self.dataset, ring)
        return Workers(self.dataset, ring, self.num_workers, self.start_method)


@dataclass
class _Making:
    """A batch in the making."""

    slot: int
    left: int  # parts that are not finished
    reports: list[Report] = field(default_factory=list)

    def take(self, report: Report) -> None:
        self.left -= 1
        self.reports.append(report)

    def flaws(self) -> tuple[Flaw, ...]:
        """In the order of the batch. Raises the first problem."""
        self.reports.sort()
        for report in self.reports:
            if report.problem is not None:
                problem = report.problem
                raise problem if isinstance(problem, InputError) else RuntimeError(problem)
        return tuple(chain.from_iterable(report.flaws for report in self.reports))


def _made(
    order: Iterator[list[tuple[int, int]]],
    ring: Ring,
    makers: Makers,
    cuts: list[tuple[int, int]],
    ahead: int,
) -> Iterator[Batch]:
    """Have up to ``ahead`` batches made at a time, and give each when its turn has come."""
    making = deque[_Making]()
    while True:
        while len(making) < ahead and (places := next(order, None)) is not None:
            slot = ring.free.popleft()
            ring.arrays(slot).places[:] = places
            making.append(_Making(slot, len(cuts)))
            for first, stop in cuts:
                makers.make(Part(slot, first, stop))
        if not making:
            return
        _finish(making, makers)
        finished = making.popleft()
        flaws = finished.flaws()
        # not more than LENT are out when this one is given away, or else it is a copy
        kept = ring.count - len(ring.free) - len(making) > LENT
        yield _batch((ring.copy if kept else ring.lend)(finished.slot), flaws)


def _finish(making: deque[_Making], makers: Makers) -> None:
    """Take reports until the first batch is whole; at least once, to hear of deaths."""
    by_slot = {one.slot: one for one in making}
    while True:
        for report in makers.reports(block=making[0].left > 0):
            by_slot[report.part.slot].take(report)
        if not making[0].left:
            return


def _batch(slot: Slot, flaws: tuple[Flaw, ...]) -> Batch:
    return Batch(
        tuple(torch.from_numpy(view) for view in slot.views),
        torch.from_numpy(slot.labels),
        torch.from_numpy(slot.indices),
        flaws,
        # a copy: on its way to a GPU, a batch leaves its slot before its views are finished
        torch.from_numpy(slot.rows.copy()) if slot.rows.size else None,
    )


def _cuts(images: int) -> list[tuple[int, int]]:
    """The parts of a batch: (first, stop)."""
    length = max(PART, -(-images // MOST_PARTS))
    return [(first, min(first + length, images)) for first in range(0, images, length)]


def _ahead(parts: int, workers: int) -> int:
    """Batches in the making at a time, so that each worker always finds a next part."""
    return max(AHEAD, -(-AHEAD * workers // parts)) if workers else 1
