"""Make several shards at a time, each in one of several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.sharding.content import Content
from pretrain.source.shard_index import Shard
from runtime.device import START
from runtime.errors import InputError
from runtime.stopping import leave_to_main

PERIOD = 0.2  # seconds between two reports

_worker: dict[str, Any] = {}  # of a worker process: what it was started with


def written(
    content: Content,
    todo: Sequence[tuple[Path, np.ndarray]],
    workers: int,
    report: Callable[[int], object],
) -> Iterator[Shard]:
    """Write the shards ``todo`` (file, images) and yield each when it is finished, in any order.

    ``report`` is called with the number of images done so far. InputError of the first that fails;
    the others are then given up.
    """
    if not todo:
        return
    context: Any = multiprocessing.get_context(START)  # forks share the list of images
    count, stop = context.Value("q", 0), context.Value("b", 0)
    pool = ProcessPoolExecutor(
        min(max(workers, 1), len(todo)), context, _begin, (content, count, stop)
    )
    try:
        left = {pool.submit(_write, path, indices) for path, indices in todo}
        while left:
            ready, left = wait(left, PERIOD, FIRST_COMPLETED)
            report(count.value)
            for future in ready:
                yield future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed (too little memory?): take fewer with --workers; what is "
            "finished stays"
        ) from error
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


def _begin(content: Content, count: Any, stop: Any) -> None:
    leave_to_main()
    _worker.update(content=content, count=count, stop=stop)


def _write(path: Path, indices: np.ndarray) -> Shard:
    return _worker["content"].write(path, indices, _tick)


def _tick() -> None:
    if _worker["stop"].value:
        raise InputError("given up")
    with _worker["count"].get_lock():
        _worker["count"].value += 1
