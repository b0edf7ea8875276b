"""``results.json``: what one run did and gave, enough for a stranger to trust or repeat it."""

from __future__ import annotations

import os
import platform
import resource
from datetime import datetime, timezone
from typing import Any

import numpy
import PIL
import torch
import torchvision

from runtime.distributed import world_size


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "Pillow": PIL.__version__,
    }


def hardware() -> dict[str, Any]:
    """What the run ran on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processes": world_size(),
        "gpus": gpus,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def peak_memory_mb() -> float:
    """Largest memory so far: of the GPU where one was used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


def now() -> str:
    """Time in ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
