"""Where a run computes, and how many processes load its data."""

from __future__ import annotations

import math
import os
import socket
import sys
from pathlib import Path

import torch

from runtime.distributed import all_gather_objects, rank

MAX_WORKERS = 16
# A forked worker starts at once and shares what is loaded, also where the trainer uses a GPU: it
# never touches the GPU. Only Linux forks safely; elsewhere a worker is a new process.
START = "fork" if sys.platform == "linux" else "spawn"
CGROUPS = Path("/sys/fs/cgroup")


def run_device(name: str) -> torch.device:
    """The device of the key DEVICE, which has been checked: auto, cpu or cuda."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def loader_workers(number: int) -> int:
    """Loading processes of this process; for -1 its share of the cores, at most 16.

    Every process of the run must ask.
    """
    return number if number >= 0 else min(max(int(core_share()), 1), MAX_WORKERS)


def core_share() -> float:
    """Cores for this process and its workers. Every process of the run must ask.

    Cores that several processes of the run may use are shared by them; so it does not matter
    whether a launcher binds each process to cores of its own.
    """
    machine = socket.gethostname()
    everybody = all_gather_objects((machine, usable_cores(), core_quota()))
    here = [(cores, quota) for name, cores, quota in everybody if name == machine]
    _, cores, quota = everybody[rank()]
    share = sum(1 / sum(core in others for others, _ in here) for core in cores)
    return min(share, quota / len(here))


def usable_cores() -> set[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def core_quota(root: Path = CGROUPS) -> float:
    """Cores that a container may keep busy (cgroups v2 or v1); infinite without a limit."""
    try:
        if (root / "cpu.max").exists():
            limit, period = (root / "cpu.max").read_text().split()
        else:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        quota = int(limit) / int(period)
    except (OSError, ValueError):  # none; "max"
        return math.inf
    return quota if quota > 0 else math.inf


def use_one_thread() -> None:
    """Keep this process, one of many that load data, to one core."""
    # of libraries that are loaded later
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OPENCV_FOR_THREADS_NUM="1")
    torch.set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
