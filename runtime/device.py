"""Where a run computes, and how many processes load its data."""

from __future__ import annotations

import os

import torch

from runtime.distributed import world_size

MAX_WORKERS = 8


def run_device(name: str) -> torch.device:
    """The device of the key DEVICE, which has been checked: auto, cpu or cuda."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def loader_workers(number: int) -> int:
    """Loading processes of this process; for -1 its share of the cores, at most 8."""
    if number >= 0:
        return number
    return min(max((os.cpu_count() or 1) // world_size(), 1), MAX_WORKERS)
