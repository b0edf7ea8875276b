"""Freed memory that is kept is not mapped anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
