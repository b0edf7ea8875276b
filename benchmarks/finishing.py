#!/usr/bin/env python
"""What the training device's half of DATA.PIPELINE split costs: by view, and beside a MoCo step.

Prints a Markdown table. The time is CPU time of one thread on a CPU, and wall time on a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.moco_steps import prepare
from benchmarks.pretrain_step import WORKLOADS, Workload
from benchmarks.timing import Timing, interleave
from pretrain.augment.on_device import finish
from pretrain.augment.rows import pack
from pretrain.config import load_cfg, view_recipe
from pretrain.views import ViewRecipe, draw
from runtime.randomness import generator

RECIPES = {name: f"configs/moco_{name}_R50_200ep.yaml" for name in ("v1", "v2")}


def finishing(recipe: ViewRecipe, count: int, device: str) -> Callable[[], float]:
    """Work to be timed: finishes ``count`` random crops, gives the seconds that it took."""
    size = (count, 3, recipe.crop_size, recipe.crop_size)
    crops = torch.randint(256, size, dtype=torch.uint8, device=device)
    views = [draw(recipe, 500, 375, generator(0, "test", i)) for i in range(count)]
    rows = torch.from_numpy(np.stack([pack(recipe, view) for view in views]))
    return lambda: seconds(lambda: finish(crops, rows), device)


def finishing_and_step(
    recipe: ViewRecipe, workload: Workload, device: str, rounds: int
) -> tuple[Timing, Timing]:
    """Seconds for both views of a batch, and for a training step without them, in turns."""
    recipe = ViewRecipe(**vars(recipe) | {"crop_size": workload.size})
    step = prepare("ours", workload, device)["step"]
    measures = {
        "views": finishing(recipe, 2 * workload.images, device),
        "step": lambda: seconds(step, device),
    }
    interleave(measures, 1)  # warm up
    times = interleave(measures, rounds)
    return times["views"], times["step"]


def seconds(work: Callable[[], object], device: str) -> float:
    """Of CPU time, or of wall time until a GPU has finished."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    before = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - before


def main(args: argparse.Namespace) -> None:
    """Print a row for each recipe and workload."""
    torch.set_num_threads(1)
    print(f"{args.device}, torch {torch.__version__}, {args.rounds} rounds\n")
    print("| recipe | training step | ms per view | ms per step | share of the step |")
    print("|---|---|---:|---:|---:|")
    for name, config in RECIPES.items():
        recipe = view_recipe(load_cfg(str(ROOT / config), []))
        for workload in (WORKLOADS[name] for name in args.workloads):
            views, step = finishing_and_step(recipe, workload, args.device, args.rounds)
            whole = views.median + step.median
            print(
                f"| {name} | {workload.arch}, {workload.size} px, {workload.images} images "
                f"| {1000 * views.median / (2 * workload.images):.3g} | {1000 * step.median:.4g} "
                f"| {100 * views.median / whole:.1f} % |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["small", "medium"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    main(parser.parse_args())
