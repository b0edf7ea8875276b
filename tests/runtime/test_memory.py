"""Freed memory that is kept is not mapped anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ROUNDS, PAGES = 20, 16_384

SCRIPT = f"""
import resource, sys
import torch
from runtime.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory() and keep_freed_memory()
torch.zeros({PAGES} * 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    torch.zeros({PAGES} * 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_blocks_are_reused():
    """64 MB of zeros, allocated over and over: pages are faulted in each time, or hardly ever."""
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", SCRIPT, mode], text=True))
        for mode in ("keep", "default")
    }
    assert faults["keep"] < PAGES
    assert faults["default"] > 10 * max(faults["keep"], 1)
