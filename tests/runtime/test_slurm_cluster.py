"""Runs on a real Slurm of two nodes: jobs that lose their machines continue as if they had not.

Skipped where there is none. As root on Debian, 6 minutes:
    apt-get install slurm-wlm && echo "127.0.0.1 n1 n2" >> /etc/hosts
    python -m pytest tests/runtime/test_slurm_cluster.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
import torch
from conftest import ROOT, write_images
from slurm_cluster import slurm, wait_until

pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")
if not slurm_cluster.available():
    pytest.skip("no Slurm here, or not root, or no hosts n1 and n2", allow_module_level=True)

EPOCHS = 100
RECIPE = f"""
MODEL.ARCH resnet18w0.125x MODEL.DIM 8 MODEL.MLP True MODEL.QUEUE_SIZE 32 MODEL.BN_GROUP_SIZE 4
VIEWS.CROP_SIZE 16 SOLVER.BATCH_SIZE 8 SOLVER.SCHEDULE cosine SOLVER.EPOCHS {EPOCHS}
CHECKPOINT_STEPS 10 LOG_PERIOD 1 DATA.NUM_WORKERS 0 DEVICE cpu
""".split()
STEPS = 6 * EPOCHS


@pytest.fixture(scope="module")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_images(tmp_path_factory.mktemp("images"), 48)
    return tmp_path_factory.getbasetemp() / "images0"


@pytest.fixture(scope="module")
def whole(_cluster: None, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    submit(images, run)
    wait_until(lambda: finished(run))
    return run


def submit(images: Path, run: Path) -> str:
    """The number of a job of two nodes, one process each."""
    command = [sys.executable, "tools/pretrain.py", "--config", "configs/moco_v2_R50_200ep.yaml"]
    command += [*RECIPE, "DATA.ROOT", str(images), "OUTPUT_DIR", str(run)]
    command += ["--slurm", "nodes=2,gpus=0,cpus=1,hours=0.5,partition=low"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return re.findall(r"Slurm job (\d+)", done.stdout)[0]


def steps(run: Path) -> int:
    path = run / "metrics.json"
    return path.read_text().count("\n") if path.exists() else 0


def finished(run: Path) -> bool:
    return (run / "neighbours.txt").exists()


def same_weights(run: Path, whole: Path) -> bool:
    states = [torch.load(r / "checkpoint_final.pth", weights_only=True) for r in (run, whole)]
    mine, theirs = (state["state_dict"] for state in states)
    return list(mine) == list(theirs) and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_preempted(images: Path, whole: Path, tmp_path: Path) -> None:
    """SIGTERM: a checkpoint at that very step, and Slurm queues the job again."""
    run = tmp_path / "run"
    submit(images, run)
    wait_until(lambda: steps(run) >= 30)
    sleeper = tmp_path / "sleep.sh"
    sleeper.write_text("#!/bin/sh\nsleep 10\n")
    options = ["--partition=high", "--nodes=2", "--exclusive", f"--output={tmp_path}/out"]
    slurm("sbatch", *options, str(sleeper))
    wait_until(lambda: finished(run))
    log = (run / "log.txt").read_text()
    assert len(re.findall(r"resuming from \S+ at step \d+", log)) == 1
    assert "stopped by SIGTERM after step" in "".join(map(Path.read_text, errors(run)))
    assert same_weights(run, whole)


def test_warned_before_the_end_of_its_time(images: Path, whole: Path, tmp_path: Path) -> None:
    """SIGUSR1, as Slurm sends it before a job's time is over: submitit queues the job again."""
    run = tmp_path / "run"
    job = submit(images, run)
    wait_until(lambda: steps(run) >= 30)
    slurm("scancel", "--signal=USR1", job)
    wait_until(lambda: finished(run))
    assert "stopped by SIGUSR1 after step" in "".join(map(Path.read_text, errors(run)))
    assert same_weights(run, whole)


def test_a_machine_fails(images: Path, whole: Path, tmp_path: Path) -> None:
    """No warning: the run goes on from its last checkpoint."""
    run = tmp_path / "run"
    submit(images, run)
    wait_until(lambda: steps(run) >= 35)
    slurm("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    slurm("scontrol", "update", "nodename=n2", "state=resume")
    wait_until(lambda: finished(run))
    found = re.findall(r"resuming from \S+ at step (\d+) of", (run / "log.txt").read_text())
    assert [int(step) >= 30 for step in found] == [True]
    assert same_weights(run, whole)


def errors(run: Path) -> list[Path]:
    return sorted((run / "slurm").glob("*.err"))
