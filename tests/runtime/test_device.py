"""How many processes load data: affinity, quotas, other processes of the machine."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from runtime import device
from runtime.device import core_quota, core_share, loader_workers

ALL = frozenset(range(12))


@pytest.mark.parametrize(
    ("everybody", "rank", "share"),
    [
        ([("a", ALL, math.inf)], 0, 12),
        ([("a", ALL, 2.5)], 0, 2.5),
        ([("a", ALL, math.inf)] * 4, 1, 3),  # torchrun: all may use all cores
        ([("a", frozenset(range(6 * r, 6 * r + 6)), math.inf) for r in (0, 1)], 1, 6),  # bound
        ([("a", ALL, math.inf)] * 2 + [("b", ALL, math.inf)] * 3, 4, 4),  # two machines
        ([("a", ALL, 8.0)] * 2, 0, 4),  # one container
    ],
)
def test_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, everybody: list[Any], rank: int, share: float
) -> None:
    monkeypatch.setattr(device, "all_gather_objects", lambda _mine: everybody)
    monkeypatch.setattr(device.socket, "gethostname", lambda: everybody[rank][0])
    monkeypatch.setattr(device, "rank", lambda: rank)
    assert core_share() == pytest.approx(share)
    assert loader_workers(-1) == max(int(share), 1)
    assert loader_workers(0) == 0
    assert loader_workers(99) == 99


def test_a_big_machine_has_no_hundreds_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "core_share", lambda: 256.0)
    assert loader_workers(-1) == device.MAX_WORKERS


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux")
def test_affinity_counts() -> None:
    assert device.usable_cores() == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_quota_of_a_container(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_quota(tmp_path) == quota


def test_one_thread() -> None:
    """Of OpenCV, too, whether it is loaded before or after."""
    script = """
import torch, cv2
torch.set_num_threads(3); cv2.setNumThreads(3)
from runtime.device import use_one_thread
use_one_thread()
assert torch.get_num_threads() == 1 and cv2.getNumThreads() == 1
"""
    later = "from runtime.device import use_one_thread; use_one_thread()\nimport cv2\n"
    later += "assert cv2.getNumThreads() == 1, cv2.getNumThreads()"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    for code in (script, later):
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
