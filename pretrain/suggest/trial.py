"""A few real steps of a recipe on this machine, to tell how long the whole run will take."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fvcore.common.config import CfgNode

from pretrain.source.images import ImageSource
from runtime.config import dump
from runtime.errors import InputError
from runtime.randomness import generator
from runtime.rundir import read_metrics

TOOL = Path(__file__).resolve().parents[2] / "tools" / "pretrain.py"
STEPS = 5  # the first one also prepares things and does not count


@dataclass(frozen=True)
class Trial:
    """Seconds of a step (median), the share of waiting for data, and how it was run."""

    seconds: float
    data_wait: float
    gpus: int
    accumulate: int


def run_trial(cfg: CfgNode, source: ImageSource, gpus: int) -> Trial:
    """Train a few steps of ``cfg`` on some of the images in a process of its own.

    Where the GPU's memory does not suffice, the batch is passed in two, four, ... parts. InputError
    where the recipe fails in another way.
    """
    parts = 1
    while True:
        with tempfile.TemporaryDirectory(prefix="moco-trial-") as folder:
            done = _run(cfg, source, gpus, parts, Path(folder))
            if not done.returncode:
                return _figures(Path(folder) / "run", gpus, parts)
        share = cfg.SOLVER.BATCH_SIZE // cfg.MODEL.BN_GROUP_SIZE // max(gpus, 1)
        if "out of memory" not in done.stderr or share % (2 * parts):
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise InputError(f"the suggested recipe was tried and failed: {last[0]}")
        parts *= 2


def _run(
    cfg: CfgNode, source: ImageSource, gpus: int, parts: int, folder: Path
) -> subprocess.CompletedProcess[str]:
    count = _copy_images(source, cfg.SOLVER.BATCH_SIZE * STEPS, folder)
    epochs = -(-STEPS // (count // cfg.SOLVER.BATCH_SIZE))
    trial = cfg.clone()
    trial.DATA.ROOT, trial.OUTPUT_DIR = str(folder / "images.txt"), str(folder / "run")
    trial.MODEL.QUEUE_SIZE = min(cfg.MODEL.QUEUE_SIZE, count - cfg.SOLVER.BATCH_SIZE)
    trial.SOLVER.EPOCHS = trial.CHECKPOINT_PERIOD = epochs
    trial.SOLVER.ACCUMULATE = parts
    trial.LOG_PERIOD = 1
    (folder / "recipe.yaml").write_text(dump(trial))
    command = [sys.executable, str(TOOL), "--config", str(folder / "recipe.yaml")]
    command += ["--num-gpus", str(gpus)] if gpus else []
    return subprocess.run(command, capture_output=True, text=True, cwd=os.getcwd())


def _copy_images(source: ImageSource, most: int, folder: Path) -> int:
    """Copies work for all sources, and leave the file system as much to read as it will have."""
    chosen = generator(0, "trial").permutation(len(source.files))[:most]
    for place, index in enumerate(chosen):
        (folder / str(place)).write_bytes(source.read(int(index)))
    (folder / "images.txt").write_text("".join(f"{place}\n" for place in range(len(chosen))))
    return len(chosen)


def _figures(output: Path, gpus: int, parts: int) -> Trial:
    rows = read_metrics(output)[1:]
    return Trial(
        seconds=float(np.median([row["time"] for row in rows])),
        data_wait=float(np.median([row["data_wait"] for row in rows])),
        gpus=gpus,
        accumulate=parts,
    )
