"""Reading images from files and from shards, decoding aside: CPU time, interleaved rounds.

    python benchmarks/shard_reading.py FOLDER [--rounds 11]

Both in random order and from the cache of the system; prints a table and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np

from benchmarks.timing import interleave, timed
from pretrain.images import ImageSource
from pretrain.make_shards import make_shards
from pretrain.order import permutation, window_of
from pretrain.shard_content import Options
from pretrain.sources import open_source
from runtime.randomness import generator

CROP = 160  # of raw pixels: what a view would look at
IMAGES = 1000
SHARD = 100  # images: several shards, as in a large set


def measure(folder: str, rounds: int) -> list[str]:
    """Lines of the table."""
    with tempfile.TemporaryDirectory(prefix="moco-shards-") as place:
        make_shards(folder, f"{place}/jpeg", Options(shard_size=SHARD))
        make_shards(folder, f"{place}/raw", Options(format="raw", shard_size=SHARD))
        files, jpeg, raw = map(open_source, (folder, f"{place}/jpeg", f"{place}/raw"))
        streamed = open_source(f"{place}/jpeg")
        count = len(files.files)
        shuffled = generator(0, "reading").permutation(count)[:IMAGES]
        window = permutation(count, 0, 0, window_of(streamed, 10 * SHARD))[:IMAGES]
        measures = {
            "files": reader(files, files.read, shuffled),
            "JPEG shards": reader(jpeg, jpeg.read, shuffled),
            "JPEG shards, window": reader(streamed, streamed.read, window),
            "raw shards, a crop": reader(raw, lambda i: crop(raw, i), shuffled),
            "files, decoded": reader(files, files.pixels, shuffled),
        }
        for work in measures.values():
            work()
        walls: dict[str, list[float]] = {name: [] for name in measures}
        times = interleave(
            {name: both(work, walls[name]) for name, work in measures.items()}, rounds
        )
    each = 1e6 / len(shuffled)
    head = f"| {len(shuffled)} images, us each | CPU | wall | files' CPU / this | wall / this |"
    lines = [head, "|---|---|---|---|---|"]
    for name, timing in times.items():
        cpu = ratio(times["files"].seconds, timing.seconds)
        wall = ratio(walls["files"], walls[name])
        figures = f"{timing.median * each:.1f} | {statistics.median(walls[name]) * each:.1f}"
        lines.append(f"| {name} | {figures} | {cpu} | {wall} |")
    return lines


def reader(source: ImageSource, read: Callable, order: np.ndarray) -> Callable[[], None]:
    indices = order.tolist()

    def work() -> None:
        for index in indices:
            read(index)

    return work


def crop(source: ImageSource, index: int) -> np.ndarray:
    pixels = source.pixels(index)
    return pixels[:CROP, :CROP].copy()


def both(work: Callable[[], None], walls: list[float]) -> Callable[[], float]:
    """CPU seconds of ``work``; its wall-clock seconds go to ``walls``."""

    def run() -> float:
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
