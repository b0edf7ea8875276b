"""Freed memory that is kept is not mapped anew; how much is free, also in a container."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.memory import free_memory

ROUNDS, PAGES = 10, 10_240  # 40 MB: more than glibc ever keeps by itself

SCRIPT = f"""
import resource, sys
from runtime.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory() and keep_freed_memory()
for _ in range(3):
    bytes([1]) * ({PAGES} * 4096)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    bytes([1]) * ({PAGES} * 4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_blocks_are_reused():
    """40 MB, over and over: their pages are faulted in each time, or hardly ever."""
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", SCRIPT, mode], text=True))
        for mode in ("keep", "default")
    }
    assert faults["keep"] < PAGES
    assert faults["default"] > 5 * PAGES


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def group(folder: Path, names: tuple[str, str, str], limit: object, use: int, files: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{use}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {files}\n")


def test_free_memory_is_the_least_of_machine_and_groups(tmp_path: Path) -> None:
    groups, proc = tmp_path / "cgroup", tmp_path / "proc"
    assert free_memory(groups, proc) == math.inf
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 90 kB\nMemAvailable:     50 kB\nHugePages_Total: 0\n")
    (proc / "self/cgroup").write_text("0::/job/step\n")
    assert free_memory(groups, proc) == 50 * 1024
    group(groups / "job/step", V2, "max", 10, 0)
    assert free_memory(groups, proc) == 50 * 1024
    group(groups / "job", V2, 20_000, 15_000, 3_000)
    assert free_memory(groups, proc) == 20_000 - 15_000 + 3_000
    group(groups / "job/step", V2, 9_000, 8_000, 1_000)
    assert free_memory(groups, proc) == 2_000
    (proc / "self/cgroup").write_text("3:cpu:/job\n2:hugetlb,memory:/docker/x\n")
    assert free_memory(groups, proc) == 50 * 1024
    group(groups / "memory", V1, 30_000, 10_000, 1_000)  # all that a container sees
    assert free_memory(groups, proc) == 21_000
    group(groups / "memory/docker/x", V1, 2**63 - 4096, 10_000, 1_000)
    assert free_memory(groups, proc) == 21_000


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")
def test_free_memory_here() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free_memory() < total
