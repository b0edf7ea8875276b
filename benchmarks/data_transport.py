"""Views end to end: from files through one worker process to batches in the trainer, CPU time.

    python benchmarks/data_transport.py [FOLDER] [--rounds 11] [--json FILE]

All processes count. The reference is what the official MoCo code does: torch's DataLoader over
torchvision's transforms, float32. Below it the transport alone, with views that cost nothing.
FOLDER holds the images; without it, 100 are generated. Everything is read from the system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.data_pipeline import as_jpeg, generated, official, recipe
from benchmarks.timing import Timing, interleave
from pretrain.augment import PIPELINES
from pretrain.loading.batches import EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.source.images import ImageFolder

BATCH, BATCHES = 32, 4  # images, batches a round
RECIPES = ("v1", "v2")
ENDLESS = 10**6  # steps


class Contestant:
    """A loader that is running; ``round`` gives the CPU seconds of a few more batches."""

    def __init__(self, batches: Callable[[], Iterator[Any]], count: int = BATCHES) -> None:
        before = set(children())
        self._batches, self._count = batches(), count
        next(self._batches)
        self._workers = set(children()) - before

    def round(self) -> float:
        """All batches that may be made ahead are there when it begins and when it ends."""
        before = self._settled()
        here = time.process_time()
        for _ in range(self._count):
            next(self._batches)
        here = time.process_time() - here
        return here + self._settled() - before

    def _settled(self) -> float:
        used = -1.0
        while (now := sum(map(cpu_seconds, self._workers))) > used + 1e-3:
            used = now
            time.sleep(0.1)
        return now


def children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


class Official(Dataset):
    """Two views of an image as main_moco.py and moco/loader.py make them."""

    def __init__(self, folder: ImageFolder, version: str, size: int = 224) -> None:
        self.folder = folder
        self.transform = official(version, size)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> tuple[list[torch.Tensor], int]:
        index = number % len(self.folder.files)
        with open(self.folder.root / self.folder.files[index], "rb") as stream:
            image = Image.open(stream).convert("RGB")
        return [self.transform(image), self.transform(image)], 0


class Constant(Dataset):
    """Two views that are there already."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.views = [torch.ones(3, 224, 224, dtype=dtype) for _ in range(2)]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> tuple[list[torch.Tensor], int]:
        return self.views, 0


class ConstantViews(ViewDataset):
    """The same for the ring."""

    ready = np.ones((2, 3, 224, 224), dtype=np.uint8)

    def write(
        self, epoch: int, index: int, views: np.ndarray, rows: np.ndarray
    ) -> tuple[int, list[tuple[str, str]]]:
        """Copy them."""
        views[:] = self.ready
        return index, []


def theirs(dataset: Dataset, batch: int = BATCH) -> Callable[[], Iterator[Any]]:
    return lambda: iter(DataLoader(dataset, batch, num_workers=1))


def ours(
    folder: ImageFolder,
    version: str,
    pipeline: str,
    kind: type[ViewDataset] = ViewDataset,
    batch: int = BATCH,
) -> Callable[[], Iterator[Any]]:
    dataset = kind(folder, recipe(version), 2, 0, None, pipeline)
    batches = EpochBatches(len(folder.files), batch, ENDLESS, 0)
    return lambda: iter(Loader(dataset, batches, 1))


def measure(folder: ImageFolder, rounds: int) -> Iterator[tuple[str, int, dict[str, Timing]]]:
    """Title, images a round and CPU seconds of the sides, the reference first."""
    for version in RECIPES:
        sides = {f"DataLoader, torchvision {version}, float32": theirs(Official(folder, version))}
        for name in PIPELINES:
            sides[f"ring, {name} {version}"] = ours(folder, version, name)
        yield f"end to end, {version}", BATCH * BATCHES, compare(sides, BATCHES, rounds)
    batch, count = min(64, len(folder.files)), 20
    sides = {
        "DataLoader, float32": theirs(Constant(torch.float32), batch),
        "DataLoader, uint8": theirs(Constant(torch.uint8), batch),
        "ring": ours(folder, "v2", "reference", ConstantViews, batch),
    }
    yield "transport alone", batch * count, compare(sides, count, rounds)


def compare(
    sides: dict[str, Callable[[], Iterator[Any]]], count: int, rounds: int
) -> dict[str, Timing]:
    contestants = {name: Contestant(side, count) for name, side in sides.items()}
    for contestant in contestants.values():
        contestant.round()  # caches, and memory that is touched for the first time
    return interleave({name: one.round for name, one in contestants.items()}, rounds)


def write_photos(place: Path, count: int = 100) -> None:
    for number in range(count):
        (place / f"{number:03d}.jpg").write_bytes(as_jpeg(generated(number)))


def main(folder: str | None, rounds: int, target: str | None) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        if folder is None:
            write_photos(Path(place))
        images = ImageFolder.scan(folder or place)
        size = statistics.mean(images.file_sizes()) / 1024
        print(f"{len(images.files)} images of {size:.0f} KiB, {rounds} rounds\n", flush=True)
        found = {}
        for title, count, times in measure(images, rounds):
            reference = next(iter(times.values()))
            print(f"| {title} | CPU ms per image | ratio | range |\n|---|---|---|---|")
            for name, timing in times.items():
                ratios = [a / b for a, b in zip(reference.seconds, timing.seconds, strict=True)]
                each, ratio = timing.median * 1000 / count, statistics.median(ratios)
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                print(f"| {name} | {each:.2f} | **{ratio:.2f}** | {spread} |", flush=True)
                found[f"{title}: {name}"] = {"ms": each, "ratios": ratios}
            print(flush=True)
    if target:
        Path(target).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    main(args.folder, args.rounds, args.json)
