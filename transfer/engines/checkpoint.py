"""Checkpoints in Detectron2's layout, the same from both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from runtime import checkpoints
from runtime.distributed import barrier, is_main

FINAL = "model_final.pth"


def checkpoint_name(iteration: int, final: bool) -> str:
    """Detectron2's file name of the checkpoint after ``iteration``."""
    return FINAL if final else f"model_{iteration:07d}.pth"


def save_checkpoint(path: Path, model: nn.Module, trainer: dict[str, Any], iteration: int) -> None:
    """Write the state after ``iteration``; ``last_checkpoint`` names it once it is complete.

    ``trainer`` is the state dict of Detectron2's ``DefaultTrainer``: ``iteration``, ``hooks`` and
    ``_trainer`` (with ``optimizer``). Every process must call it; all wait for the file.
    """
    if is_main():
        content = {"model": model.state_dict(), "trainer": trainer, "iteration": iteration}
        checkpoints.write(path, content)
    barrier()
