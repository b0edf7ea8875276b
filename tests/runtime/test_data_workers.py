"""Batches from workers arrive, whole and in order, also where /dev/shm is smaller than one."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import torch
from torch.utils.data import DataLoader
from runtime.data_workers import start_worker

def item(i):
    wide = torch.full((3, 1000, 700), i, dtype=torch.uint8)
    return {"image": wide.transpose(1, 2), "boxes": torch.full((i, 4), float(i)), "none": []}

items = [item(i) for i in range(8)]
made = {"num_workers": 2, "collate_fn": list, "worker_init_fn": start_worker, "timeout": 60}
loader = DataLoader(items, 1, **made)
for (found,), wanted in zip(loader, items, strict=True):
    for name in ("image", "boxes"):
        assert torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype
        found[name].add_(1)  # it is the trainer's own
    assert found["none"] == []
print("all there")
"""


def in_small_shm(program: str) -> subprocess.CompletedProcess:
    """Run it with a /dev/shm of 1 MB, seen by no other process."""
    command = 'mount -t tmpfs -o size=1m tmpfs /dev/shm || exit 99; exec "$0" -c "$1"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, sys.executable, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_no_shared_memory_is_needed() -> None:
    done = in_small_shm(PROGRAM)
    if done.returncode in (1, 99) and "Traceback" not in done.stderr:
        pytest.skip(f"needs root: {done.stderr.strip()}")
    assert (done.returncode, done.stdout) == (0, "all there\n"), done.stderr
