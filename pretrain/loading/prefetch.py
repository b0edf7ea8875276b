"""Shards on a server are fetched before their turn comes, by a process beside the workers.

Which ones is known: the order of an epoch is a function of the seed. All processes of a machine
want the same in the same order, and the cache has each fetched once.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing.sharedctypes import RawValue
from typing import Any, NamedTuple

import numpy as np

from pretrain.loading.batches import EpochBatches
from pretrain.loading.order import Window, permutation, window_of
from pretrain.source.images import ImageSource
from pretrain.source.remote_index import PARALLEL
from pretrain.source.remote_shards import RemoteShards
from pretrain.source.shard_cache import GIB, used_now
from runtime.device import use_one_thread
from runtime.errors import InputError
from runtime.stopping import leave_to_main

log = logging.getLogger("moco")

PERIOD = 0.05  # seconds between two looks at how far the trainer is
LOOK, PAUSE = 5.0, 3600.0  # seconds between two looks at the cache, and between two lines of it
IN_THE_MAKING = 2  # batches that are begun and not finished, as a rule


class Use(NamedTuple):
    """A shard is read from step ``first`` to step ``last``."""

    first: int
    last: int
    shard: int


class Prefetch:
    """Fetches the shards for ``batches``, as far ahead as the cache holds them.

    At most ``ahead`` batches are begun and not finished; :meth:`follow` notes which is the last.

    A shard that cannot be fetched is left to the worker that needs it, whose problem is told.
    """

    def __init__(
        self, source: RemoteShards, batches: EpochBatches, ahead: int, start_method: str
    ) -> None:
        context: Any = multiprocessing.get_context(start_method)
        self._step = RawValue("q", batches.start_step)
        arguments = (source, batches, ahead, self._step)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()

    def follow(self, batches: EpochBatches) -> Iterator[list[tuple[int, int]]]:
        """The batches, each noted when it is begun. An early end of the process is told once."""
        alive = True
        for step, places in enumerate(batches, start=batches.start_step):
            self._step.value = step
            if alive and self._process.exitcode is not None:
                alive = False
                log.warning(
                    "the process that fetches shards ahead has ended with exit code %d: from now "
                    "on each is fetched when it is needed, and waited for; --resume starts it anew",
                    self._process.exitcode,
                )
            yield places

    def close(self) -> None:
        """End the process. What it was fetching is fetched anew by whoever needs it."""
        self._process.kill()
        self._process.join()
        self._process.close()


def check_cache(source: ImageSource, images: int, batch: int) -> None:
    """InputError where the cache is too small for DATA.SHUFFLE_WINDOW ``images``.

    Shards would be fetched again and again in every epoch.
    """
    if not isinstance(source, RemoteShards) or source.total_bytes() <= source.cache.most:
        return
    window = window_of(source, images)
    if window is None:
        source.check_any_order(
            "DATA.SHUFFLE_WINDOW 0, a full shuffle,",
            "raise it, or shuffle in a window, e.g. DATA.SHUFFLE_WINDOW "
            f"{max(10 * batch, len(source.files) // len(source.remote))}",
        )
        return
    sizes = [file.size for file in source.remote]
    shards = at_once(window.shards, window.images + IN_THE_MAKING * batch)
    needed = sum(heapq.nlargest(shards + 1, sizes)) + max(sizes)  # the next one, and a stray one
    if needed > source.cache.most:
        raise InputError(
            f"DATA.SHUFFLE_WINDOW {images} reads from {shards} shards at a time, which needs "
            f"DATA.SHARD_CACHE_GIB {needed / GIB:.3g}, not {source.cache.most / GIB:.3g}: raise "
            "it, or make the window or the shards smaller"
        )


def at_once(shards: Sequence[int], images: int) -> int:
    """Of how many shards a row of ``images`` may be, at most; ``shards``: the images of each."""
    between = int(np.searchsorted(np.cumsum(sorted(shards)), images, side="right"))
    return min(between + 2, len(shards))


def uses(
    shard: np.ndarray, batch: int, seed: int, window: Window | None, start: int, stop: int
) -> Iterator[Use]:
    """Which shards the steps from ``start`` to ``stop`` read, epoch by epoch, in their order.

    ``shard`` is that of each image, int64 N.
    """
    steps = len(shard) // batch
    for epoch in range(start // steps, -(-stop // steps)):
        order = shard[permutation(len(shard), seed, epoch, window)]
        skipped = max(start - epoch * steps, 0)
        read = order[skipped * batch : min(stop - epoch * steps, steps) * batch]
        found, first = np.unique(read, return_index=True)
        last = len(read) - 1 - np.unique(read[::-1], return_index=True)[1]
        begin = epoch * steps + skipped
        for i in np.argsort(first):
            yield Use(begin + int(first[i]) // batch, begin + int(last[i]) // batch, int(found[i]))


def _work(source: RemoteShards, batches: EpochBatches, ahead: int, step: Any) -> None:
    leave_to_main()
    use_one_thread()
    plan = uses(
        *(source.shard, batches.batch_size, batches.seed, batches.window),
        *(batches.start_step, batches.total_steps),
    )
    fetching = _Fetching(source)
    for use in plan:
        while not fetching.begun(use, step.value - ahead):
            fetching.wait()
    while True:  # until the trainer ends this process
        fetching.wait()


class _Fetching:
    """The shards that are fetched, or being fetched, and still needed."""

    def __init__(self, source: RemoteShards) -> None:
        self._source, self._pool = source, ThreadPoolExecutor(PARALLEL)
        self._sizes = [file.size for file in source.remote]
        self._last: dict[int, int] = {}  # the step that reads the shard last
        self._running: dict[Future[bool], int] = {}
        self._look = time.monotonic() + LOOK
        most, largest = source.cache.most, max(self._sizes)
        # the shard of a single image may come in between, to take the place of an unreadable one
        self._room = most if source.total_bytes() <= most else max(most - largest, largest)

    def begun(self, use: Use, step: int) -> bool:
        """Whether the shard is fetched from now on, or else has to wait.

        What is read before ``step`` for the last time is needed no more.
        """
        self._last = {shard: last for shard, last in self._last.items() if last >= step}
        taken = sum(self._sizes[shard] for shard in self._last)
        fits = use.shard in self._last or taken + self._sizes[use.shard] <= self._room
        if not fits or len(self._running) == PARALLEL:
            return False
        self._keep()
        self._last[use.shard] = max(use.last, self._last.get(use.shard, 0))
        self._running[self._pool.submit(self._fetch, use.shard)] = use.shard
        return True

    def _keep(self) -> None:
        """Have all that are needed still stay longer than any that is not.

        Some of those fetched later were read to their ends sooner.
        """
        if self._source.total_bytes() > self._source.cache.most:
            for shard in self._last:
                with contextlib.suppress(OSError):  # not there yet
                    used_now(self._source.shards[shard])

    def wait(self) -> None:
        """Until one is there, or for a moment."""
        if self._running:
            done, _ = wait(self._running, PERIOD, FIRST_COMPLETED)
            for future in done:
                shard = self._running.pop(future)
                if not future.result():
                    self._last.pop(shard, None)
        else:
            time.sleep(PERIOD)
        if time.monotonic() > self._look:
            self._tell_of_removed()

    def _tell_of_removed(self) -> None:
        there = set(self._last) - set(self._running.values())
        removed = sum(not self._source.shards[shard].exists() for shard in there)
        self._look = time.monotonic() + (PAUSE if removed else LOOK)
        if removed:
            log.warning(
                "%d shards are no longer in DATA.SHARD_CACHE %s and still needed: they are fetched "
                "again and again where it is too small for all that share it; raise "
                "DATA.SHARD_CACHE_GIB",
                *(removed, self._source.cache.folder),
            )

    def _fetch(self, shard: int) -> bool:
        try:
            self._source.fetch(shard)
        except InputError as error:
            log.debug("%s", error)
            return False
        return True
