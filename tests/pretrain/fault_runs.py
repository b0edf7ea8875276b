"""Pretraining runs of real processes on Gloo that can be killed, and what makes two runs equal.

The processes are forked: each would need seconds to import torch anew.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.tensorboard
from conftest import ROOT

from pretrain.config import load_cfg
from pretrain.trainer import pretrain
from runtime import rundir
from runtime.errors import exit_code

RECIPE = """
MODEL.ARCH resnet18w0.125x MODEL.DIM 8 MODEL.MLP True MODEL.QUEUE_SIZE 32 MODEL.BN_GROUP_SIZE 4
VIEWS.CROP_SIZE 16 SOLVER.BATCH_SIZE 8 SOLVER.SCHEDULE cosine SOLVER.EPOCHS 4
CHECKPOINT_STEPS 4 LOG_PERIOD 1 DATA.NUM_WORKERS 0 DEVICE cpu
""".split()
IMAGES = 48  # 6 steps an epoch
STEPS = 24
THOROUGH = "FAULTS_KILLS" in os.environ  # make faults
TIMING = ("time", "data_wait", "eta_seconds")  # the fields of metrics.json that may differ
PATIENCE = 600.0  # seconds until a process that should have ended is a failure
Patch = Callable[[], AbstractContextManager[Any]]
_numbers = itertools.count()


@dataclass
class Job:
    """A run in ``output`` on ``world`` processes; ``patches`` are entered in the rank's process."""

    images: Path
    output: Path
    more: tuple[str, ...] = ()
    world: int = 2
    patches: dict[int, Patch] = field(default_factory=dict)

    def start(self) -> list[BaseProcess]:
        """All processes, started; they continue what is in the folder."""
        self.output.parent.mkdir(exist_ok=True, parents=True)
        meeting = self.output.parent / f"{self.output.name}.store{next(_numbers)}"
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(target=self._rank, args=(r, meeting)) for r in range(self.world)
        ]
        for process in processes:
            process.start()
        return processes

    def finish(self) -> list[int | None]:
        """Run to the end; the exit codes of all processes."""
        return wait(self.start())

    def log(self, rank: int) -> str:
        """What a process printed, in all starts."""
        return self._log(rank).read_text()

    def _log(self, rank: int) -> Path:
        return self.output.with_suffix(f".{rank}.log")

    def _rank(self, rank: int, meeting: Path) -> None:
        sys.stdout = sys.stderr = log = open(self._log(rank), "a", buffering=1)  # noqa: SIM115
        os.dup2(log.fileno(), 2)  # what C++ code says
        keys = [*RECIPE, "DATA.ROOT", str(self.images), "OUTPUT_DIR", str(self.output), *self.more]
        cfg = load_cfg(str(ROOT / "configs/moco_v2_R50_200ep.yaml"), keys)
        with self.patches.get(rank, nullcontext)():
            if self.world > 1:
                store = f"file://{meeting}"
                dist.init_process_group("gloo", store, rank=rank, world_size=self.world)
            code = exit_code(lambda: pretrain(cfg, resume=True))
        sys.exit(code)


def wait(processes: list[BaseProcess]) -> list[int | None]:
    """Their exit codes. What has not ended in time is killed, with exit code -9."""
    until = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(until - time.monotonic(), 0))
    kill(processes)
    return [process.exitcode for process in processes]


def kill(processes: list[BaseProcess]) -> None:
    """SIGKILL; returns when they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def steps_done(output: Path) -> int:
    """How many steps ``metrics.json`` has."""
    return len(rundir.read_metrics(output))


def continued_at(step: int, source: Path, output: Path) -> None:
    """Make ``output`` a copy of the run ``source`` as it was after ``step`` steps."""
    output.mkdir()
    epoch, rest = divmod(step, IMAGES // 8)
    name = f"checkpoint_step{step:07d}.pth" if rest else f"checkpoint_{epoch - 1:04d}.pth"
    for file in (name, "metrics.json", "checkpoints.sha256"):
        shutil.copy(source / file, output / file)
    rundir.set_last_checkpoint(output / name)


def final(output: Path) -> dict[str, Any]:
    """The content of the final checkpoint, without what says where it was written."""
    state = torch.load(output / "checkpoint_final.pth", weights_only=True)
    return {name: value for name, value in state.items() if name != "config"}


def metrics(output: Path) -> list[dict[str, Any]]:
    """All lines of ``metrics.json`` without times."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def differences(output: Path, whole: Path) -> list[str]:
    """Where two finished runs differ in a single bit: weights, optimiser, queue, statistics,
    ``metrics.json``; empty for equal runs."""
    found = list(_differences(final(output), final(whole), ""))
    if metrics(output) != metrics(whole):
        found.append("metrics.json")
    return found


def _differences(a: Any, b: Any, name: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        for key in a:
            yield from _differences(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        if not same or a.numpy().tobytes() != b.numpy().tobytes():
            yield name
    elif a != b:
        yield name
