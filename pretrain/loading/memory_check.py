"""Whether the memory for the batches is there: the system kills who takes more than there is."""

from __future__ import annotations

import socket

from pretrain.loading.ring import BatchSize
from runtime.distributed import all_gather_objects
from runtime.errors import InputError
from runtime.memory import free_memory
from runtime.wording import counted


def check_memory(count: int, size: BatchSize, workers: int, least: int) -> None:
    """InputError, on all ranks, where a machine has too little for its processes' batches.

    ``count`` of ``size`` is what this process takes, with its ``workers``; ``least`` would do for
    few of them. Every process of the run must ask.
    """
    mine = socket.gethostname(), count * size.bytes(), free_memory()
    everybody = all_gather_objects(mine)
    for machine in sorted({name for name, _, _ in everybody}):
        needed = [need for name, need, _ in everybody if name == machine]
        free = min(room for name, _, room in everybody if name == machine)
        if sum(needed) > free:
            fewer = "DATA.NUM_WORKERS, " if count > least else ""
            raise InputError(
                f"{sum(needed) / 1e9:.3g} GB of memory are needed and {free / 1e9:.3g} GB are free "
                f"on {machine}: {counted(len(needed), 'process', 'processes')} with "
                f"{counted(count, 'batch', 'batches')} of {counted(size.images, 'image')} in "
                f"{counted(size.views, 'view')} of {size.crop} px for "
                f"{counted(workers, 'worker')}; lower {fewer}SOLVER.BATCH_SIZE or "
                "VIEWS.CROP_SIZE, or take more machines"
            )
