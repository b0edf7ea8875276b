"""What each worker process of torch's DataLoader does first."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from runtime.memory import keep_freed_memory
from runtime.stopping import leave_to_main


def start_worker(number: int) -> None:
    """To be its ``worker_init_fn``.

    From then on tensors go through the worker's pipe. torch would put them into /dev/shm, which has
    64 MB in a container as a rule: where that is full, the batch is lost, and the trainer waits
    for it for ever.
    """
    leave_to_main(number)
    keep_freed_memory()
    ForkingPickler.register(torch.Tensor, _by_value)


def _by_value(tensor: torch.Tensor) -> tuple[Callable, tuple[Any, ...]]:
    return torch.from_numpy, (tensor.numpy(),)
