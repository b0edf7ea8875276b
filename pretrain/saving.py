"""When a pretraining run saves a checkpoint, under which name, and which ones stay."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn
from torch.optim import Optimizer

from pretrain import checkpoint
from pretrain.schedule import total_steps
from runtime.checkpoints import BackgroundWriter
from runtime.distributed import barrier
from runtime.metrics import MetricsWriter

FINAL = "checkpoint_final.pth"


class Saver:
    """Decides when to save, and writes in the background. Every process has one.

    ``about_images`` gives the entries of the checkpoint that say which images were trained on.
    """

    def __init__(
        self,
        cfg: CfgNode,
        output: Path,
        steps_per_epoch: int,
        model: nn.Module,
        optimizer: Optimizer,
        about_images: Callable[[], dict[str, Any]],
    ) -> None:
        self._cfg, self._output, self._steps_per_epoch = cfg, output, steps_per_epoch
        self._total = total_steps(cfg.SOLVER, steps_per_epoch)
        self._model, self._optimizer, self._about_images = model, optimizer, about_images
        self._writer = BackgroundWriter()

    def due(self, done: int) -> bool:
        """Whether a checkpoint is due after ``done`` steps."""
        epoch, rest = divmod(done, self._steps_per_epoch)
        every = self._cfg.CHECKPOINT_STEPS
        return (
            done == self._total
            or (rest == 0 and epoch % self._cfg.CHECKPOINT_PERIOD == 0)
            or (every > 0 and done % every == 0)
        )

    def save(self, done: int, metrics: MetricsWriter | None) -> None:
        """Take the state after ``done`` steps; the main process writes it while training goes on.

        Every process must call it, the main process with its ``metrics``. FloatingPointError where
        the state holds NaN or infinity.
        """
        state = checkpoint.state_of(
            self._cfg, self._model, self._optimizer, done, done // self._steps_per_epoch
        )
        if metrics is not None:
            metrics.sync()  # a resumed run goes on behind the lines of this checkpoint
            state |= self._about_images()
            self._writer.write(self._output / self._name(done), state, self._deletable)

    def check(self) -> None:
        """Raise what has gone wrong in the background."""
        self._writer.check()

    def finish(self) -> None:
        """Return on all processes when everything is on the disk."""
        self._writer.wait()
        barrier()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def _name(self, done: int) -> str:
        epoch, rest = divmod(done, self._steps_per_epoch)
        if done == self._total:
            return FINAL
        # the official name of an epoch's end; the first epoch is 0
        return f"checkpoint_step{done:07d}.pth" if rest else f"checkpoint_{epoch - 1:04d}.pth"

    def _deletable(self, names: list[str]) -> list[str]:
        keep = self._cfg.CHECKPOINT_KEEP
        old = names[:-keep] if keep else []
        return [name for name in old if not self._kept_for_good(name)]

    def _kept_for_good(self, name: str) -> bool:
        every = self._cfg.CHECKPOINT_KEEP_PERIOD
        found = re.fullmatch(r"checkpoint_(\d+)\.pth", name)
        return name == FINAL or bool(found and every and (int(found[1]) + 1) % every == 0)
