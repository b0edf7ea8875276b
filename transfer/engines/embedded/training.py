"""Detectron2's default training loop: the same steps in the same order, the same files."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from statistics import median
from typing import Any

from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from runtime.distributed import data_parallel, is_main
from runtime.metrics import MetricsWriter, Progress, eta
from runtime.stopping import stoppable, stopped
from transfer.engines.base import (
    LOG_PERIOD,
    Batch,
    Draws,
    Predictor,
    Training,
    asks_for_evaluation,
    flatten,
)
from transfer.engines.checkpoint import checkpoint_name, save_checkpoint
from transfer.engines.embedded.proposal_pictures import ProposalPictures
from transfer.engines.embedded.solver import build_optimizer, lr_factor
from transfer.engines.precise_bn import precise_bn, share_statistics
from transfer.engines.step import Step, naming_iteration

log = logging.getLogger("moco")


def train(training: Training, model: nn.Module, predict: Predictor) -> None:
    """Train ``model`` from ``training.start`` to SOLVER.MAX_ITER.

    Checkpoints and evaluates on the way; ``predict`` is the model as a predictor.
    """
    loop = _Loop(training, model, predict)
    if is_main():
        with MetricsWriter(training.output) as writer:
            loop.run(writer)
    else:
        loop.run(None)


class _Loop:
    def __init__(self, training: Training, model: nn.Module, predict: Predictor) -> None:
        self.training, self.cfg = training, training.cfg
        self.model, self.predict = model, predict
        self.max_iter: int = self.cfg.SOLVER.MAX_ITER
        self.optimizer = build_optimizer(self.cfg, self.model)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.factor = lr_factor(self.cfg)
        self.step = Step(
            data_parallel(self.model), self.optimizer, training.amp_dtype, training.accumulate
        )
        if training.checkpoint is None:
            training.initialise(self.model, self.optimizer)
        else:
            self.model.load_state_dict(training.checkpoint["model"])
            self.step.load_state_dict(training.checkpoint["trainer"]["_trainer"])
        self.draws = Draws(
            self.cfg.SEED,
            anchors=(self.model.get_submodule("proposal_generator"), "_label"),
            regions=(self.model.get_submodule("roi_heads"), "_sample_one"),
        )
        # PreciseBN's draws do not touch the training's: it has a stream of batches of its own.
        enabled = self.cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model)
        self.precise_bn = iter(training.precise_bn_batches()) if enabled else None
        self.pictures: ProposalPictures | None = None
        if self.cfg.VIS_PERIOD > 0 and is_main():
            shown = (self.cfg.VIS_PERIOD, self.cfg.INPUT.FORMAT, training.output)
            self.pictures = ProposalPictures(self.model, *shown)
        self.recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LOG_PERIOD))

    def run(self, writer: MetricsWriter | None) -> None:
        start = self.training.start
        self.model.train()
        if self.training.evaluation_due:
            self._evaluate(start - 1, writer)
        progress = Progress(start, self.max_iter)
        batches = iter(self.training.batches(start))
        with stoppable() as stop:
            for iteration in range(start, self.max_iter):
                lr = self._set_lr(iteration)
                before = time.perf_counter()
                batch = next(batches)
                progress.waited(time.perf_counter() - before)
                self._step(iteration, batch)
                done = iteration + 1
                if writer is not None and (done % LOG_PERIOD == 0 or done == self.max_iter):
                    self._write(writer, progress, iteration, lr)
                self._after_step(iteration, writer, stop.signal())

    def _set_lr(self, iteration: int) -> float:
        factor = self.factor(iteration / self.max_iter)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor
        return self.cfg.SOLVER.BASE_LR * factor

    def _step(self, iteration: int, batch: Batch) -> None:
        self.draws.begin(iteration)
        with naming_iteration(iteration):
            losses = self.step.check(self.step.backward(batch))
            self.step.update()
        for name, value in (losses | {"total_loss": sum(losses.values())}).items():
            self.recent[name].append(value)
        if self.pictures is not None:
            self.pictures.after(iteration, batch)

    def _after_step(self, iteration: int, writer: MetricsWriter | None, signal: int) -> None:
        """PreciseBN, checkpoint, evaluation, in Detectron2's order.

        The losses were written before: every iteration of a checkpoint has its line. An evaluation
        that a kill has prevented is made up for by the resumed run.
        """
        done = iteration + 1
        evaluate, final = asks_for_evaluation(self.cfg, done), done == self.max_iter
        save = final or done % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0 or signal
        if evaluate and self.precise_bn is not None:
            precise_bn(self.model, self.precise_bn, self.cfg.TEST.PRECISE_BN.NUM_ITER)
        if evaluate or save:
            share_statistics(self.model)
        if save:
            path = self.training.output / checkpoint_name(iteration, final)
            save_checkpoint(path, self.model, self._trainer_state(iteration), iteration)
        if signal:
            raise stopped(signal, iteration)
        if evaluate:
            self._evaluate(iteration, writer)

    def _trainer_state(self, iteration: int) -> dict[str, Any]:
        """The state of Detectron2's trainer, which has set the rates of the next iteration."""
        self._set_lr(iteration + 1)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["initial_lr"] = base
        return {
            "iteration": iteration,
            "hooks": {"LRScheduler": {"base_lrs": self.base_lrs, "last_epoch": iteration + 1}},
            "_trainer": {"iteration": iteration, **self.step.state_dict()},
        }

    def _evaluate(self, iteration: int, writer: MetricsWriter | None) -> None:
        metrics = self.training.evaluate(self.predict)
        if writer is not None:
            writer.write(iteration, flatten(metrics))

    def _write(self, writer: MetricsWriter, progress: Progress, iteration: int, lr: float) -> None:
        done = iteration + 1
        figures = progress.report(done)
        figures["data_time"] = figures["data_wait"] * figures["time"]  # Detectron2's name
        left = eta(figures["eta_seconds"])
        losses = {name: median(values) for name, values in self.recent.items()}
        writer.write(iteration, losses | {"lr": lr} | figures)
        parts = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        log.info(
            "iter %d/%d  %s  lr %.5f  %.2f s/iter  data wait %.0f %%  eta %s",
            *(done, self.max_iter, parts, lr, figures["time"], figures["data_wait"] * 100, left),
        )
