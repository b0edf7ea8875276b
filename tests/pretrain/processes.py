"""Real processes of a Gloo group, started from a server that has torch loaded already."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(["torch", "torchvision", "torch.distributed"])


def run_processes(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """``function(*arguments)`` on each of ``world`` ranks; what they return, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _in_group, (function, world, folder, arguments), world, start_method="forkserver"
        )
        return [torch.load(f"{folder}/{rank}.pth", weights_only=False) for rank in range(world)]


def _in_group(
    rank: int, function: Callable[..., Any], world: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    try:
        torch.save(function(*arguments), f"{folder}/{rank}.pth")
        dist.barrier()
    finally:
        dist.destroy_process_group()
