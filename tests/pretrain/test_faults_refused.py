"""What must not go on, does not: divergence, a full disk, a damaged file, a second run."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import disk_faults
import pytest
import torch
from conftest import write_images
from fault_runs import IMAGES, Job, differences, kill, steps_done

from runtime import rundir


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = Job(images, tmp_path_factory.mktemp("whole") / "run")
    assert job.finish() == [0, 0]
    return job.output


@contextlib.contextmanager
def poisoned_after(step: int) -> Iterator[None]:
    """The update of that step leaves a NaN in the weights."""
    real, taken = torch.optim.SGD.step, 0

    def update(self: torch.optim.SGD, *args: Any) -> None:
        nonlocal taken
        real(self, *args)
        taken += 1
        if taken == step:
            with torch.no_grad():
                self.param_groups[0]["params"][0][0] = math.nan

    with mock.patch.object(torch.optim.SGD, "step", update):
        yield


@pytest.mark.parametrize(
    ("poisoned", "done", "last", "line"),
    [
        # step 6 ends an epoch: its checkpoint is due, and the loss of step 6 was still good
        (6, 6, "checkpoint_step0000004.pth", "is not finite after step 6"),
        (6 + 1, 7, "checkpoint_0000.pth", "the loss is not finite at step 8"),
    ],
)
def test_a_diverged_run_stops_at_the_step(
    images: Path, whole: Path, tmp_path: Path, poisoned: int, done: int, last: str, line: str
) -> None:
    """On all processes, with exit code 1; nothing that is not finite is ever saved."""
    job = Job(images, tmp_path / "run")
    job.patches = dict.fromkeys(range(2), lambda: poisoned_after(poisoned))
    assert job.finish() == [1, 1]
    assert steps_done(job.output) == done
    assert rundir.pointed_at(job.output) == job.output / last
    for rank in range(2):
        printed = job.log(rank).splitlines()[-1]
        assert printed.startswith("error: ")
        assert f"{line}: the run has diverged; lower SOLVER.BASE_LR" in printed
        assert printed.endswith(f"Last good checkpoint: {job.output / last}")
    job.patches = {}
    assert job.finish() == [0, 0]
    assert differences(job.output, whole) == []


def test_a_full_disk_ends_the_run_with_one_line(images: Path, whole: Path, tmp_path: Path) -> None:
    def full(_n: int, name: str) -> None:
        if name == "write checkpoint_0001.pth":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    job = Job(images, tmp_path / "run")
    job.patches = {0: lambda: disk_faults.before_each_call(full)}
    codes = job.finish()
    assert codes[0] == 2
    assert codes[1] != 0
    assert job.log(0).splitlines()[-1] == (
        f"error: cannot write the checkpoint {str(job.output / 'checkpoint_0001.pth')!r} (No space "
        "left on device): the last checkpoint is 'checkpoint_step0000008.pth'; repair the disk or "
        "make room, then continue with --resume"
    )
    job.patches = {}
    assert job.finish() == [0, 0]
    assert differences(job.output, whole) == []


def test_the_checkpoint_before_a_damaged_one_is_taken(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    job = Job(images, tmp_path / "run")
    processes = job.start()
    while not (job.output / "checkpoint_0001.pth").exists():
        time.sleep(0.02)
    kill(processes)
    last = rundir.pointed_at(job.output)
    assert last is not None
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    assert job.finish() == [0, 0]
    lines = job.log(0)
    assert f"skipping a checkpoint: {str(last)!r} is damaged" in lines
    assert lines.count("resuming from") == 1
    assert f"resuming from {last}" not in lines
    assert differences(job.output, whole) == []


def test_a_second_run_in_the_folder_is_refused(images: Path, whole: Path, tmp_path: Path) -> None:
    job = Job(images, tmp_path / "run", more=("DATA.NUM_WORKERS", "1"))
    processes = job.start()
    while steps_done(job.output) < 2:
        time.sleep(0.02)
    second = Job(images, job.output, world=1)
    began = time.monotonic()
    assert second.finish() == [2]
    print(f"refused after {time.monotonic() - began:.1f} s")
    assert (
        f"error: another run is using {str(job.output)!r}: wait for it, or name another OUTPUT_DIR"
        in job.log(0)
    )
    kill(processes)  # its workers live on for some seconds and must not hold the folder
    assert job.finish() == [0, 0]
    assert differences(job.output, whole) == []
