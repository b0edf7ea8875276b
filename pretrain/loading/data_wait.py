"""What to change where the training waits for its images."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("moco")

TOO_MUCH = 0.1  # of the time
PAUSE = 3600.0  # seconds between two lines
SMALLER = (
    "shards of smaller images, tools/make_shards.py --short-side 256 (another recipe: crops of "
    "small areas lose detail)"
)


def advice(wait: float, pipeline: str, gpu: bool, workers: int, cores: float) -> str:
    """Which option would help, the one that costs least first; empty where none is needed.

    ``wait`` is the share of the time, ``cores`` this process's share of the machine, with its
    ``workers``. One core is the trainer's own, which on a CPU is the one that must not wait.
    """
    if wait <= TOO_MUCH:
        return ""
    if pipeline == "reference":
        return "DATA.PIPELINE fast makes the same views several times as fast"
    idle = int(cores) - 1 - workers
    if idle > 0 and (gpu or not workers):
        return f"DATA.NUM_WORKERS {workers + idle} would use {idle} more core(s)"
    if gpu and pipeline != "split":
        return f"DATA.PIPELINE split leaves the colours to the GPU; or {SMALLER}"
    return SMALLER


class WaitingNoted:
    """Says it in the log, but not at each report, and not at the first, when all begins."""

    def __init__(self, pipeline: str, gpu: bool, workers: int, cores: float) -> None:
        self._setting = (pipeline, gpu, workers, cores)
        self._first, self._next = True, 0.0

    def report(self, wait: float) -> None:
        """Look at the share of the time since the last report."""
        first, self._first, now = self._first, False, time.monotonic()
        text = advice(wait, *self._setting)
        if text and not first and now >= self._next:
            self._next = now + PAUSE
            log.warning("%.0f %% of the time went on waiting for images: %s", wait * 100, text)
