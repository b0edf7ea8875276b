"""Numbers of a run: JSON lines, TensorBoard, and one line of progress with the time left."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from runtime.files import write_text
from runtime.rundir import METRICS, read_metrics

log = logging.getLogger("moco")


class MetricsWriter:
    """Appends to ``metrics.json`` and TensorBoard; a context manager that closes both.

    TensorBoard is optional: without it the log says once what is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._stream: IO[str] = open(folder / METRICS, "a")  # noqa: SIM115
        self._board = _board(folder)
        if self._board is None:
            log.warning("no TensorBoard events: pip install 'moco-transfer[logging]'")

    def write(self, iteration: int, values: dict[str, float]) -> None:
        """Record ``values`` as those of ``iteration`` (0-based, as in Detectron2)."""
        self._stream.write(json.dumps({"iteration": iteration, **values}) + "\n")
        self._stream.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)

    def sync(self) -> None:
        """Bring the lines to the disk, where a power failure cannot take them back."""
        os.fsync(self._stream.fileno())

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()
        if self._board is not None:
            self._board.close()


def rewind_metrics(folder: Path, iteration: int) -> None:
    """Forget iterations >= ``iteration``, which a run will write (again).

    Lines of ``metrics.json`` are dropped; TensorBoard is told to ignore its events.
    """
    rows = [row for row in read_metrics(folder) if row["iteration"] < iteration]
    write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    if any(folder.glob("events.out.tfevents.*")) and (board := _board(folder, iteration)):
        board.close()


def write_images(folder: Path, images: Mapping[str, Any], iteration: int) -> None:
    """Images (name: uint8 array 3 x H x W, RGB) of ``iteration`` to TensorBoard, if it is there."""
    board = _board(folder)
    if board is None:
        return
    for name, image in images.items():
        board.add_image(name, image, iteration)
    board.close()


def _board(folder: Path, purge_step: int | None = None) -> Any:
    """A writer of TensorBoard events, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=purge_step)


class Progress:
    """Measures steps per second, the share of time spent waiting for data, and the time left."""

    def __init__(self, start: int, total: int) -> None:
        self._total = total
        self._mark(start)

    def _mark(self, step: int) -> None:
        self._step, self._time, self._wait = step, time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """Add time during which the step waited for its batch."""
        self._wait += seconds

    def report(self, done: int) -> dict[str, float]:
        """Figures since the last report, ``done`` steps being finished.

        ``time`` (seconds per step), ``data_wait`` (share, 0 to 1) and ``eta_seconds``.
        """
        elapsed = time.perf_counter() - self._time
        step_time = elapsed / max(done - self._step, 1)
        figures = {
            "time": step_time,
            "data_wait": self._wait / max(elapsed, 1e-9),
            "eta_seconds": step_time * (self._total - done),
        }
        self._mark(done)
        return figures


def eta(seconds: float) -> str:
    """``h:mm:ss`` of a duration."""
    return str(timedelta(seconds=round(seconds)))


def set_up_logging(folder: Path | None, main: bool) -> None:
    """Log to the terminal and to ``log.txt`` of the run folder; only the main process does."""
    handlers: list[logging.Handler] = []
    if main:
        handlers.append(logging.StreamHandler())
        if folder is not None:
            # names of files are any bytes, in any locale
            handlers.append(
                logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
            )
    logging.basicConfig(
        level=logging.INFO if main else logging.ERROR,
        format="%(asctime)s %(message)s",
        datefmt="%m/%d %H:%M:%S",
        handlers=handlers or [logging.NullHandler()],
        force=True,
    )
