"""Hooks of Detectron2's trainer that make its runs end and go on as the embedded engine's do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils.events import EventStorage

from runtime.distributed import bare, is_main
from runtime.rundir import METRICS
from runtime.stopping import StopRequest, stopped
from transfer.engines.base import (
    LOG_PERIOD,
    Draws,
    Predictor,
    Training,
    asks_for_evaluation,
    flatten,
)
from transfer.engines.checkpoint import checkpoint_name, save_checkpoint
from transfer.engines.precise_bn import precise_bn, share_statistics


class SeedDraws(HookBase):
    """Seeds each iteration as the embedded loop does."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def before_step(self) -> None:
        """Tell the draws which iteration it is."""
        self._draws.begin(self.trainer.iter)


class PreciseBN(hooks.PreciseBN):
    """Detectron2's hook, with the same statistics on every process."""

    def update_stats(self) -> None:
        """Read on in the second stream of training batches."""
        if self._data_iter is None:
            self._data_iter: Iterator[Any] = iter(self._data_loader)
        with EventStorage():  # what the model reports meanwhile is no part of the training
            precise_bn(self._model, self._data_iter, self._num_iter)


class SaveAndEvaluate(HookBase):
    """Losses, checkpoint, evaluation, in this order, where Detectron2 has a hook for each.

    Its files can be half written when a run is killed, and its ``metrics.json`` is written after
    the checkpoint and the evaluation: a run that is killed there and resumed would lack lines.
    """

    def __init__(self, training: Training, predict: Predictor, stop: StopRequest) -> None:
        self._training, self._predict, self._stop = training, predict, stop
        self._written: dict[str, int] = {}  # scalar -> iteration

    def before_train(self) -> None:
        """Make up for the evaluation that the run was killed before."""
        if self._training.evaluation_due:
            self._evaluate(self._training.start - 1)

    def after_step(self) -> None:
        """After PreciseBN and the learning rate's hook."""
        iteration, solver = self.trainer.iter, self._training.cfg.SOLVER
        done, signal = iteration + 1, self._stop.signal()
        evaluate = asks_for_evaluation(self._training.cfg, done)
        final = done == self.trainer.max_iter
        save = final or done % solver.CHECKPOINT_PERIOD == 0 or signal
        if done % LOG_PERIOD == 0 or final:
            self._write(iteration)
        if evaluate or save:
            share_statistics(self._model())
        if save:
            path = self._training.output / checkpoint_name(iteration, final)
            save_checkpoint(path, self._model(), self.trainer.state_dict(), iteration)
        if signal:
            raise stopped(signal, iteration)
        if evaluate:
            self._evaluate(iteration)

    def _model(self) -> Any:
        return bare(self.trainer._trainer.model)

    def _evaluate(self, iteration: int) -> None:
        metrics = self._training.evaluate(self._predict)
        self.trainer._last_eval_results = metrics  # compared with TEST.EXPECTED_RESULTS
        storage = self.trainer.storage
        storage.put_scalars(cur_iter=iteration, smoothing_hint=False, **flatten(metrics))
        self._write(iteration)

    def _write(self, iteration: int) -> None:
        """One line of ``metrics.json``: what is known of ``iteration`` and not yet written."""
        latest = self.trainer.storage.latest_with_smoothing_hint(LOG_PERIOD)
        new = {
            name: value
            for name, (value, of) in latest.items()
            if of == iteration and self._written.get(name) != iteration
        }
        self._written |= dict.fromkeys(new, iteration)
        if is_main():
            with open(self._training.output / METRICS, "a") as stream:
                stream.write(json.dumps({"iteration": iteration, **new}) + "\n")
