"""What to change where the training waits for its images."""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from pretrain.source import raw
from pretrain.source.images import ImageSource
from runtime.errors import InputError

log = logging.getLogger("moco")

TOO_MUCH = 0.1  # of the time
PAUSE = 3600.0  # seconds between two lines
SIDE = 256  # pixels that the shorter side of images may have
SMALLER = (
    f"shards of smaller images, tools/make_shards.py --short-side {SIDE} (another recipe: crops of "
    "small areas lose detail)"
)
RAW = "shards of pixels, which need no decoding: tools/make_shards.py --format raw"
STREAMED = (
    "if the shards come too slowly, a shorter way to their server, or a larger DATA.SHARD_CACHE_GIB"
)
NOTHING = "all cores are busy, and no option makes these images cheaper"
LOOKED_AT = 9  # images


class Images(NamedTuple):
    """What the images are: the median of their shorter sides in pixels, and whether decoded.

    ``streamed``: they come from a server in every epoch, and nothing else is known.
    """

    side: int
    raw: bool
    streamed: bool = False


def look_at(source: ImageSource) -> Images:
    """Some images of ``source``; unreadable ones count as large."""
    if source.at_hand() < len(source.files):
        return Images(0, False, streamed=True)
    sides = []
    for index in np.unique(np.linspace(0, len(source.files) - 1, LOOKED_AT).astype(int)):
        try:
            sides.append(min(source.pixels(int(index)).shape[:2]))
        except InputError:
            sides.append(sys.maxsize)
    return Images(statistics.median_low(sides), source.files[0].endswith(raw.SUFFIX))


def advice(
    wait: float, pipeline: str, gpu: bool, workers: int, cores: float, images: Callable[[], Images]
) -> str:
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
    cheaper = _cheaper(images())
    if gpu and pipeline != "split":
        return f"DATA.PIPELINE split leaves the colours to the GPU; or {cheaper}"
    return cheaper


def _cheaper(images: Images) -> str:
    if images.streamed:
        return STREAMED
    if images.side > SIDE:
        return SMALLER
    return NOTHING if images.raw else RAW


class WaitingNoted:
    """Says it in the log, but not at each report, and not at the first, when all begins."""

    def __init__(
        self, source: ImageSource, pipeline: str, gpu: bool, workers: int, cores: float
    ) -> None:
        self._setting = (pipeline, gpu, workers, cores, cache(partial(look_at, source)))
        self._first, self._next = True, 0.0

    def report(self, wait: float) -> None:
        """Look at the share of the time since the last report."""
        first, self._first, now = self._first, False, time.monotonic()
        text = advice(wait, *self._setting)
        if text and not first and now >= self._next:
            self._next = now + PAUSE
            log.warning("%.0f %% of the time went on waiting for images: %s", wait * 100, text)
