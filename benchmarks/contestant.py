"""What is compared runs in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor

Prepare = Callable[..., dict[str, Callable[[], Any]]]


class Contestant:
    """A child process that has called ``prepare(*arguments)``, which returns named tasks.

    A process of its own for each side: neither finds memory that the other has left warm.
    """

    def __init__(self, prepare: Prepare, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, prepare, arguments))
        self._process.start()
        other.close()
        self.results: list[Any] = []

    def run(self, task: str) -> float:
        """CPU seconds of the child for ``task``; its result joins ``results``."""
        self._pipe.send(task)
        seconds, result = self._pipe.recv()
        self.results.append(result)
        return float(seconds)

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Connection, prepare: Prepare, arguments: tuple[Any, ...]) -> None:
    tasks = prepare(*arguments)
    with contextlib.suppress(EOFError):  # the main process has gone
        while (task := pipe.recv()) is not None:
            before = time.process_time()
            result = tasks[task]()
            pipe.send((time.process_time() - before, _plain(result)))


def _plain(result: Any) -> Any:
    """``result`` as text that is equal for equal bits, masks (N x H x W) by their areas."""
    if isinstance(result, dict):
        return {key: _plain(value) for key, value in result.items()}
    if isinstance(result, list):
        return [_plain(value) for value in result]
    if isinstance(result, Tensor):
        return (result.flatten(1).sum(dim=1) if result.dim() == 3 else result).tolist()
    return result
