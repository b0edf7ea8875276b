"""The kill matrix: a run that is killed anywhere ends as the unbroken one, byte for byte.

``make faults`` runs the whole of it (FAULTS_KILLS random kills), ``make test`` a small part.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import disk_faults
import numpy as np
import pytest
from conftest import write_images
from fault_runs import (
    IMAGES,
    STEPS,
    THOROUGH,
    Job,
    continued_at,
    differences,
    kill,
    steps_done,
    wait,
)

KILLS = int(os.environ.get("FAULTS_KILLS", "1"))
CHAIN = 20 if THOROUGH else 2
SAVE = "checkpoint_step0000016.pth"  # in the save of this one, an older one is deleted
FIRST = "checkpoint_step0000004.pth"  # before this one there is nothing to go on from


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run with a checkpoint after every step, and the calls of a save beside it."""
    job = Job(images, tmp_path_factory.mktemp("whole") / "run")
    job.more = ("CHECKPOINT_STEPS", "1", "CHECKPOINT_KEEP", "0")
    assert job.finish() == [0, 0]
    return job.output


def wait_for_step(processes: list[BaseProcess], output: Path, step: int) -> None:
    """Until so many steps are done, or a process has ended."""
    while steps_done(output) < step and all(p.is_alive() for p in processes):
        time.sleep(0.02)


def wait_for_instant(processes: list[BaseProcess], output: Path, rng: np.random.Generator) -> None:
    """Until a random moment: in the start, in a step, in a save, behind the last step."""
    wait_for_step(processes, output, int(rng.integers(STEPS + 1)))
    time.sleep(rng.uniform(0, 0.3))


def finish_and_compare(job: Job, whole: Path) -> None:
    assert job.finish() == [0] * job.world
    assert differences(job.output, whole) == []


@pytest.mark.parametrize("first", range(0, KILLS, 5))
def test_killed_at_random_instants(images: Path, whole: Path, tmp_path: Path, first: int) -> None:
    rng = np.random.default_rng(first)
    for number in range(first, min(first + 5, KILLS)):
        job = Job(images, tmp_path / f"run{number}", more=("DATA.NUM_WORKERS", str(number % 2)))
        while True:
            processes = job.start()
            wait_for_instant(processes, job.output, rng)
            hit = any(process.is_alive() for process in processes)
            kill(processes)
            if hit:
                break
            shutil.rmtree(job.output)  # it had ended before
        print(f"kill {number} after {steps_done(job.output)} steps", flush=True)
        finish_and_compare(job, whole)


def test_a_chain_of_kills_in_one_run(images: Path, whole: Path, tmp_path: Path) -> None:
    rng, job = np.random.default_rng(1), Job(images, tmp_path / "run")
    job.more = ("CHECKPOINT_STEPS", "1")
    for link in range(CHAIN):
        processes = job.start()
        wait_for_step(processes, job.output, steps_done(job.output) + int(rng.integers(2)))
        time.sleep(rng.uniform(0, 0.3))
        kill(processes)
        print(f"kill {link + 1} of the chain after {steps_done(job.output)} steps", flush=True)
    finish_and_compare(job, whole)


@pytest.fixture(scope="module")
def calls(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All calls of an unbroken run's main process that write files."""
    folder = tmp_path_factory.mktemp("recorded")
    record = folder / "calls.txt"

    def write_down(_n: int, name: str) -> None:
        with open(record, "a") as stream:
            stream.write(name + "\n")

    job = Job(images, folder / "run")
    job.patches = {0: lambda: disk_faults.before_each_call(write_down)}
    assert job.finish() == [0, 0]
    return record.read_text().splitlines()


def calls_of_save(calls: list[str], save: str) -> list[str]:
    """The calls of one save, up to the next one."""
    calls = calls[calls.index(f"open {save}") :]
    later = [i for i, call in enumerate(calls) if call.startswith("open checkpoint_")]
    return calls[: later[1] + 1]


def killed_in_save(save: str, number: int) -> disk_faults.Act:
    """SIGKILL at that call since the save began."""
    began = 0

    def act(n: int, name: str) -> None:
        nonlocal began
        began = began or (n if name == f"open {save}" else 0)
        if began and n == began + number:
            disk_faults.kill_this_process()

    return act


@pytest.mark.parametrize("save", [FIRST, SAVE])
def test_killed_at_every_point_of_a_save(
    images: Path, whole: Path, tmp_path: Path, calls: list[str], save: str
) -> None:
    calls = calls_of_save(calls, save)
    writes = [i for i, name in enumerate(calls) if name == f"write {save}"]
    points = [i for i, name in enumerate(calls) if not name.startswith("write")]
    points.append(writes[len(writes) // 2])  # half of the file is there
    assert len(points) > (18 if save == SAVE else 12)
    for point in sorted(points) if THOROUGH else [calls.index(f"replace {save}")]:
        job = Job(images, tmp_path / f"run{point}")
        job.patches = {0: lambda n=point: disk_faults.before_each_call(killed_in_save(save, n))}
        assert job.finish()[0] == -signal.SIGKILL
        print(f"killed before: {calls[point]}", flush=True)
        job.patches = {}
        finish_and_compare(job, whole)


@pytest.mark.parametrize("victim", [0, 1] if THOROUGH else [1])
def test_one_process_only(images: Path, whole: Path, tmp_path: Path, victim: int) -> None:
    """The others end as well, with an error, and never with a wrong checkpoint."""
    rng, job = np.random.default_rng(victim), Job(images, tmp_path / "run")
    processes = job.start()
    wait_for_step(processes, job.output, int(rng.integers(1, STEPS - 1)))
    kill([processes[victim]])
    codes = wait(processes)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    finish_and_compare(job, whole)


def test_one_loader_worker_only(images: Path, whole: Path, tmp_path: Path) -> None:
    job = Job(images, tmp_path / "run", more=("DATA.NUM_WORKERS", "1"))
    processes = job.start()
    wait_for_step(processes, job.output, 3)
    (worker,) = children(processes[1])
    os.kill(worker, signal.SIGKILL)
    assert wait(processes) == [1, 1]
    finish_and_compare(job, whole)


def children(process: BaseProcess) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.parametrize("step", range(6, 13) if THOROUGH else [8])
def test_continued_at_any_step_with_any_workers(
    images: Path, whole: Path, tmp_path: Path, step: int
) -> None:
    for workers in (0, 1, 2) if THOROUGH else (2,):
        job = Job(images, tmp_path / f"run{workers}", more=("DATA.NUM_WORKERS", str(workers)))
        continued_at(step, whole, job.output)
        finish_and_compare(job, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_one_process_stops_all(
    images: Path, whole: Path, tmp_path: Path, number: int
) -> None:
    """At the same step, with a checkpoint that the unbroken run did not write."""
    if number != signal.SIGUSR1 and not THOROUGH:
        pytest.skip("make faults")
    job = Job(images, tmp_path / "run", more=("CHECKPOINT_STEPS", "0", "CHECKPOINT_PERIOD", "9"))
    processes = job.start()
    wait_for_step(processes, job.output, 5)
    os.kill(processes[1].pid or 0, number)
    assert wait(processes) == [128 + number] * 2
    (stopped,) = job.output.glob("checkpoint_*.pth")
    step = steps_done(job.output)
    name = f"checkpoint_step{step:07d}.pth" if step % 6 else f"checkpoint_{step // 6 - 1:04d}.pth"
    assert stopped.name == name
    line = f"stopped by {signal.Signals(number).name} after step {step}; continue with --resume"
    assert line in job.log(0)
    finish_and_compare(job, whole)
