"""``results.json``: what one run did and gave, enough for a stranger to trust or repeat it."""

from __future__ import annotations

import contextlib
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from runtime.distributed import world_size
from transfer.run.job import Job
from transfer.run.resolve import Resolved, amp_dtype


def describe(job: Job, resolved: Resolved) -> dict[str, Any]:
    """What was asked for and where it ran, which is known without the run's outcome."""
    cfg, test, images = resolved.cfg, resolved.test, len(resolved.records)
    seen = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    return {
        "format": 1,
        "arm": job.arm,
        "seed": cfg.SEED,
        "recipe": job.recipe,
        "recipe_hash": resolved.recipe_hash,
        "conventions": {
            "channel_order": cfg.INPUT.FORMAT,
            "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": list(cfg.MODEL.PIXEL_STD),
            "stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        },
        "schedule": {
            "iterations": cfg.SOLVER.MAX_ITER,
            "images_per_batch": cfg.SOLVER.IMS_PER_BATCH,
            "base_lr": cfg.SOLVER.BASE_LR,
            "epochs": seen / images if images else 0,
        },
        "dataset": {
            "train": list(cfg.DATASETS.TRAIN),
            "test": list(cfg.DATASETS.TEST),
            "train_images": images,
            "test_images": sum(len(dataset.records) for dataset in test),
            "classes": list(test[0].classes),
        },
        "test_images_pretrained_on": resolved.seen,
        "precision": str(amp_dtype(cfg, job.options) or torch.float32).split(".")[-1],
        "peak_memory_mb": peak_memory_mb(),
        "hardware": hardware(),
        "finished": now(),
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


def reset_peak_memory() -> None:
    """Forget the peak of earlier runs in this process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux; elsewhere there is no peak to read either
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float | None:
    """Largest memory since the reset, MiB: of the GPU where one was used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


def now() -> str:
    """Time in ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
