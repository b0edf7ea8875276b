"""Detectron2's SimpleTrainer with a stop before NaN, and with the steps that it does not have."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from detectron2.engine import SimpleTrainer
from torch import Tensor

from transfer.engines.base import Training
from transfer.engines.step import Step, naming_iteration


def build_trainer(plain: SimpleTrainer, training: Training) -> SimpleTrainer:
    """The trainer for ``plain``'s model, loader and optimiser.

    Detectron2 does the steps itself except in two cases: it cannot split a batch, and its
    AMPTrainer refuses a CPU and always takes float16.
    """
    own = training.amp_dtype is not None or training.accumulate > 1
    step = Step(plain.model, plain.optimizer, training.amp_dtype, training.accumulate)
    # the one line that the command prints says it all
    logging.getLogger("detectron2.engine.train_loop").addFilter(_not_divergence)
    return (_StepTrainer if own else _CheckedTrainer)(plain, step)


def _not_divergence(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], FloatingPointError))


class _CheckedTrainer(SimpleTrainer):
    """Detectron2's own step, stopped in all processes where a number is not finite."""

    def __init__(self, plain: SimpleTrainer, step: Step) -> None:
        super().__init__(plain.model, plain.data_loader, plain.optimizer)
        self.step = step

    def run_step(self) -> None:
        with naming_iteration(self.iter):
            super().run_step()

    def _write_metrics(
        self,
        loss_dict: Mapping[str, Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        self.step.check(loss_dict)  # Detectron2 calls this between the backward pass and the update
        super()._write_metrics(loss_dict, data_time, prefix, iter)


class _StepTrainer(_CheckedTrainer):
    """The step that is shared with the embedded engine."""

    def run_step(self) -> None:
        before = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - before
        with naming_iteration(self.iter):
            losses = self.step.backward(batch)
            self._write_metrics(losses, data_time)
            self.step.update()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self.step.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.step.load_state_dict(state_dict)
