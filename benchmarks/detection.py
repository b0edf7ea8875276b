#!/usr/bin/env python
"""Speed of detection transfer against Detectron2 and pycocotools, side by side in one run.

Prints a Markdown table: medians of CPU time (all threads and workers; not wall time, so that a
busy machine does no harm), of rounds in which the two take turns.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import loading, models, photos, scoring
from benchmarks.contestant import Contestant
from benchmarks.timing import interleave, row

PARTS = ("models", "loading", "scoring")
HEADER = """| what | unit | reference | ours | reference / ours | range |
|---|---|---:|---:|---:|---|"""


def main(args: argparse.Namespace) -> None:
    reference = _has_detectron2()
    print(_environment(reference, args.rounds), flush=True)
    print(f"\n{HEADER}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or photos.write_photos(Path(folder), 16)
        for line in _lines(args, data, reference):
            print(line, flush=True)


def _lines(args: argparse.Namespace, data: str, reference: bool) -> Iterator[str]:
    if "models" in args.parts:
        for workload in models.QUICK if args.quick else models.WORKLOADS:
            yield from _models(workload, data, args.rounds, reference)
    if "loading" in args.parts:
        yield from loading.measure(data, args.rounds, reference)
    if "scoring" in args.parts:
        images = 50 if args.quick else 500
        yield from scoring.measure(images, args.rounds)


def _models(workload: models.Workload, data: str, rounds: int, reference: bool) -> Iterator[str]:
    names = ("detectron2", "embedded") if reference else ("embedded",)
    contestants = {n: Contestant(models.prepare, n, workload, data) for n in names}
    for task, unit in (("training", "ms/step"), ("inference", "ms/image")):
        measures = {name: partial(c.run, task) for name, c in contestants.items()}
        times = interleave(measures, rounds)
        same = len({str(c.results) for c in contestants.values()}) == 1
        title = f"{workload.title}: {task}"
        title += "" if not reference else ", equal bits" if same else ", **UNEQUAL RESULTS**"
        yield row(title, unit, times.get("detectron2"), times["embedded"])
    for contestant in contestants.values():
        contestant.close()


def _has_detectron2() -> bool:
    try:
        import detectron2.modeling  # noqa: F401
    except ImportError:
        return False
    return True


def _environment(reference: bool, rounds: int) -> str:
    libraries = ["torch", "torchvision", "Pillow", "faster-coco-eval", "pycocotools"]
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    d2 = f"Detectron2 {version('detectron2')}" if reference else "Detectron2 absent: ours alone"
    return (
        f"{_cpu()}, Python {platform.python_version()}, {versions}, {d2}; "
        f"one thread, CPU time, medians of {rounds} interleaved rounds"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: a minute or two")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", help="coco:JSON:IMAGE_DIR with masks; default: generated photos")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    main(parser.parse_args())
