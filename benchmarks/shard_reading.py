"""Reading images from files and from shards, decoding aside: CPU time, interleaved rounds.

    python benchmarks/shard_reading.py FOLDER [--rounds 11]

In random order, and with DATA.SHUFFLE_WINDOW; prints a table and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np

from benchmarks.timing import interleave, timed
from pretrain.loading.order import permutation, window_of
from pretrain.sharding.content import Options
from pretrain.sharding.make_shards import make_shards
from pretrain.source.images import ImageSource
from pretrain.source.open_source import open_source

CROP = 160  # of raw pixels: what a view would look at
IMAGES = 1000
SHARD = 100  # images: several shards, as in a large set
WINDOW = 200  # images


def measure(folder: str, rounds: int) -> list[str]:
    """Lines of the table."""
    with tempfile.TemporaryDirectory(prefix="moco-shards-") as place:
        make_shards(folder, f"{place}/jpeg", Options(shard_size=SHARD))
        make_shards(folder, f"{place}/raw", Options(format="raw", shard_size=SHARD))
        files, jpeg, raw = map(open_source, (folder, f"{place}/jpeg", f"{place}/raw"))
        ahead = open_source(f"{place}/jpeg")
        count = len(files.files)
        shuffled = permutation(count, 0, 0)[:IMAGES]
        streamed = permutation(count, 0, 0, window_of(ahead, WINDOW))[:IMAGES]
        memory = {
            "files": reader(files.read, shuffled),
            "JPEG shards": reader(jpeg.read, shuffled),
            "JPEG shards, window": reader(ahead.read, streamed),
            "raw shards, a crop": reader(lambda i: crop(raw, i), shuffled),
        }
        paths = [files.root / name for name in files.files]
        disk = {
            "files": (reader(files.read, shuffled), paths),
            "JPEG shards": (reader(jpeg.read, shuffled), jpeg.shards),
            "JPEG shards, window": (reader(ahead.read, streamed), ahead.shards),
        }
        return [
            *table("from memory", {name: (work, []) for name, work in memory.items()}, rounds),
            *table("from the disk", disk, rounds),
        ]


def table(
    where: str, tasks: dict[str, tuple[Callable[[], None], Sequence[Path]]], rounds: int
) -> list[str]:
    """Of each task, after the files beside it have been dropped from memory."""
    walls: dict[str, list[float]] = {name: [] for name in tasks}
    measures = {name: both(*task, walls[name]) for name, task in tasks.items()}
    interleave(measures, 1)
    for wall in walls.values():
        wall.clear()
    times = interleave(measures, rounds)
    lines = [f"| us per image, {where} | CPU | wall | files' CPU / this | files' wall / this |"]
    lines.append("|---|---|---|---|---|")
    for name, timing in times.items():
        cpu = ratio(times["files"].seconds, timing.seconds)
        wall = ratio(walls["files"], walls[name])
        each = 1e6 / IMAGES
        figures = f"{timing.median * each:.1f} | {statistics.median(walls[name]) * each:.1f}"
        lines.append(f"| {name} | {figures} | {cpu} | {wall} |")
    return lines


def reader(read: Callable[[int], object], order: np.ndarray) -> Callable[[], None]:
    """Reads ``IMAGES`` images, again and again the same where there are fewer."""
    indices = np.resize(order, IMAGES).tolist()

    def work() -> None:
        for index in indices:
            read(index)

    return work


def crop(source: ImageSource, index: int) -> np.ndarray:
    """What a view looks at."""
    pixels = source.pixels(index)
    return pixels[:CROP, :CROP].copy()


def both(work: Callable[[], None], cold: Sequence[Path], walls: list[float]) -> Callable[[], float]:
    """CPU seconds of ``work``; its wall-clock seconds go to ``walls``."""

    def run() -> float:
        for path in cold:
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = time.perf_counter()
        seconds = timed(work)
        walls.append(time.perf_counter() - before)
        return seconds

    return run


def ratio(files: tuple[float, ...] | list[float], own: tuple[float, ...] | list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(files, own, strict=True)):.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    print("\n".join(measure(args.folder, args.rounds)))
