#!/usr/bin/env python
"""Do the three ways of making views train alike? The same small run on each, for several seeds.

    python benchmarks/path_losses.py FOLDER [--seeds 5]

Prints a Markdown table of the mean loss of the last 100 of 600 steps (MoCo v2, ResNet-18 at a
quarter of its width, 48 px, batch 64), and how far paths and seeds lie apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = ("reference", "fast", "split")
STEPS, LAST = 600, 100
RECIPE = f"""
MODEL.ARCH resnet18w0.25x MODEL.QUEUE_SIZE 512 MODEL.BN_GROUP_SIZE 16 VIEWS.CROP_SIZE 48
SOLVER.BATCH_SIZE 64 SOLVER.BASE_LR 0.06 SOLVER.MAX_STEPS {STEPS} LOG_PERIOD 1
DATA.NUM_WORKERS 1 DEVICE cpu
""".split()


def loss(folder: str, pipeline: str, seed: int) -> float:
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "tools/pretrain.py"]
        command += ["--config", "configs/moco_v2_R50_200ep.yaml", *RECIPE, "SEED", str(seed)]
        command += ["DATA.ROOT", folder, "DATA.PIPELINE", pipeline, "OUTPUT_DIR", f"{output}/run"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        lines = Path(output, "run", "metrics.json").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    return statistics.mean(losses[-LAST:])


def main(folder: str, seeds: int) -> None:
    found: dict[str, list[float]] = {pipeline: [] for pipeline in PIPELINES}
    print(f"| seed | {' | '.join(PIPELINES)} |\n|---|---:|---:|---:|", flush=True)
    for seed in range(seeds):
        for pipeline in PIPELINES:
            found[pipeline].append(loss(folder, pipeline, seed))
        row = " | ".join(f"{found[pipeline][-1]:.3f}" for pipeline in PIPELINES)
        print(f"| {seed} | {row} |", flush=True)
    for pipeline in PIPELINES[1:]:
        gaps = [a - b for a, b in zip(found["reference"], found[pipeline], strict=True)]
        print(
            f"reference - {pipeline}: {statistics.mean(gaps):+.3f}, sd {statistics.stdev(gaps):.3f}"
        )
    squares = [(a - b) ** 2 for values in found.values() for a, b in combinations(values, 2)]
    print(f"two seeds of one path: {statistics.mean(squares) ** 0.5:.3f} apart (root mean square)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    main(str(Path(args.folder).resolve()), args.seeds)
