#!/usr/bin/env python
"""Speed of a MoCo training step against the official code, side by side in one run.

Prints a Markdown table: images a second, the median of the rounds' ratios, the share of the
machine's matrix product rate that the step reaches, peak memory, and the share of the time that a
step waits where one worker makes the views of generated photographs. Both sides take turns, in
processes of their own. The time is CPU time of one thread on a CPU, so that a busy machine does
less harm, and wall time on a GPU. Needs the official code for its side (OFFICIAL_MOCO).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.contestant import Contestant
from benchmarks.data_transport import write_photos
from benchmarks.moco_steps import DEFAULT, Options, prepare
from benchmarks.official_moco import BUILDER, MISSING
from benchmarks.timing import Timing, interleave


class Workload(NamedTuple):
    """What is trained: encoder, side in pixels, images a step, keys in the queue."""

    arch: str
    size: int
    images: int
    queue: int


WORKLOADS = {
    "small": Workload("resnet18", 64, 32, 4096),
    "medium": Workload("resnet18", 112, 64, 16384),
    "paper": Workload("resnet50", 224, 32, 65536),
}
OURS = {
    "ours, one BN group": DEFAULT,
    "ours, 4 BN groups": Options(groups=4),
    "ours, 4 BN groups, SOLVER.ACCUMULATE 4": Options(groups=4, parts=4),
    "ours, 4 BN groups, SOLVER.AMP bf16": Options(groups=4, amp="bf16"),
    "ours, 4 BN groups, SOLVER.COMPILE": Options(groups=4, compiled=True),
}
HEADER = """| step | images/s | official / ours | range | of matrix products | memory | data wait |
|---|---:|---:|---:|---:|---:|---:|"""


def main(args: argparse.Namespace) -> None:
    """Print a table for each workload."""
    official = BUILDER.exists()
    if not official:
        print(f"{MISSING}; ours alone")
    peak = matrix_product_rate(args.device)
    print(f"{args.device}, torch {torch.__version__}; matrix products {peak / 1e9:.0f} GFLOP/s\n")
    with tempfile.TemporaryDirectory() as photos:
        write_photos(Path(photos))
        for name in args.workloads:
            workload = WORKLOADS[name]
            print(
                f"{workload.arch}, {workload.size} px, {workload.images} images, queue of "
                f"{workload.queue}; {args.rounds} rounds\n\n{HEADER}",
                flush=True,
            )
            _compare(workload, args, peak, official, photos)
            print(flush=True)


def _compare(
    workload: Workload, args: argparse.Namespace, peak: float, official: bool, photos: str
) -> None:
    contestants = {"official": ("official", DEFAULT)} if official else {}
    contestants |= {name: ("ours", options) for name, options in OURS.items()}
    sides = {
        name: Contestant(prepare, whose, workload, args.device, options, photos)
        for name, (whose, options) in contestants.items()
    }
    for side in sides.values():
        side.run("step")  # warm up
    rounds = {name: partial(_seconds, side, args.device) for name, side in sides.items()}
    times = interleave(rounds, args.rounds)
    sides[next(iter(OURS))].run("flops")
    flops = sides[next(iter(OURS))].results[-1]
    for name, side in sides.items():
        side.run("memory")
        memory = side.results[-1]
        side.run("wait")
        used = flops / times[name].median / peak * 100
        print(
            f"| {name} | {workload.images / times[name].median:.2f} "
            f"| {_ratio(times.get('official'), times[name])} | {used:.0f} % "
            f"| {memory / 2**20:.0f} MiB | {side.results[-1]:.0%} |",
            flush=True,
        )
        side.close()


def _seconds(side: Contestant, device: str) -> float:
    cpu_seconds = side.run("step")
    return cpu_seconds if device == "cpu" else float(side.results[-1])


def _ratio(official: Timing | None, ours: Timing) -> str:
    if official is None:
        return "not measured | "
    ratios = [a / b for a, b in zip(official.seconds, ours.seconds, strict=True)]
    return f"**{statistics.median(ratios):.2f}** | {min(ratios):.2f} to {max(ratios):.2f}"


def matrix_product_rate(device: str, size: int = 2048) -> float:
    """FLOP/s of the fastest of 20 float32 matrix products: what a step could reach at best."""
    a, b = torch.randn(2, size, size, device=device)
    best = float("inf")
    for _ in range(20):
        wall, cpu = time.perf_counter(), time.process_time()
        a @ b
        if device == "cpu":
            best = min(best, time.process_time() - cpu)
        else:
            torch.cuda.synchronize()
            best = min(best, time.perf_counter() - wall)
    return 2 * size**3 / best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["small", "medium"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    main(parser.parse_args())
