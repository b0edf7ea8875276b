"""Detectron2's default training loop: the same steps in the same order, the same files."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from pathlib import Path
from statistics import median

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from runtime.distributed import barrier, data_parallel, is_main, rank
from runtime.files import atomic_write
from runtime.metrics import MetricsWriter, Progress, eta
from runtime.rundir import set_last_checkpoint
from transfer.engines.base import Batch, Metrics, Predictor, Training, seed_iteration
from transfer.engines.embedded.solver import build_optimizer, lr_factor
from transfer.engines.step import Step, naming_iteration

log = logging.getLogger("moco")

LOG_PERIOD = 20  # iterations; also the window of the medians that are reported, as in Detectron2
FINAL = "model_final.pth"


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
        # PreciseBN's draws do not touch the training's: it has a stream of batches of its own.
        enabled = self.cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model)
        self.precise_bn = iter(training.precise_bn_batches()) if enabled else None
        self.recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LOG_PERIOD))

    def run(self, writer: MetricsWriter | None) -> None:
        self.model.train()
        progress = Progress(self.training.start, self.max_iter)
        batches = iter(self.training.batches(self.training.start))
        for iteration in range(self.training.start, self.max_iter):
            lr = self._set_lr(iteration)
            before = time.perf_counter()
            batch = next(batches)
            progress.waited(time.perf_counter() - before)
            self._step(iteration, batch)
            metrics = self._after_step(iteration)
            done = iteration + 1
            if writer is not None and (done % LOG_PERIOD == 0 or done == self.max_iter or metrics):
                self._write(writer, progress, iteration, lr, metrics)

    def _set_lr(self, iteration: int) -> float:
        factor = self.factor(iteration / self.max_iter)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor
        return self.cfg.SOLVER.BASE_LR * factor

    def _step(self, iteration: int, batch: Batch) -> None:
        seed_iteration(self.cfg.SEED, iteration, rank())
        with naming_iteration(iteration):
            losses = self.step.check(self.step.backward(batch))
            self.step.update()
        for name, value in (losses | {"total_loss": sum(losses.values())}).items():
            self.recent[name].append(value)

    def _after_step(self, iteration: int) -> Metrics:
        """PreciseBN, checkpoint, evaluation, in Detectron2's order."""
        done = iteration + 1
        period, final = self.cfg.TEST.EVAL_PERIOD, done == self.max_iter
        evaluate = final or (period > 0 and done % period == 0)
        if evaluate and self.precise_bn is not None:
            update_bn_stats(self.model, self.precise_bn, self.cfg.TEST.PRECISE_BN.NUM_ITER)
        if final or done % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
            self._save(iteration, FINAL if final else f"model_{iteration:07d}.pth")
        if not evaluate:
            return {}
        return self.training.evaluate(self.predict)

    def _save(self, iteration: int, name: str) -> None:
        """In the layout of Detectron2's checkpoints."""
        if is_main():
            trainer = {"iteration": iteration, **self.step.state_dict()}
            path: Path = self.training.output / name
            with atomic_write(path) as stream:
                torch.save(
                    {
                        "model": self.model.state_dict(),
                        "trainer": {"iteration": iteration, "hooks": {}, "_trainer": trainer},
                        "iteration": iteration,
                    },
                    stream,
                )
            set_last_checkpoint(path)
        barrier()

    def _write(
        self,
        writer: MetricsWriter,
        progress: Progress,
        iteration: int,
        lr: float,
        metrics: Metrics,
    ) -> None:
        done = iteration + 1
        figures = progress.report(done)
        figures["data_time"] = figures["data_wait"] * figures["time"]  # Detectron2's name
        left = eta(figures["eta_seconds"])
        losses = {name: median(values) for name, values in self.recent.items()}
        flat = {f"{task}/{k}": v for task, values in metrics.items() for k, v in values.items()}
        writer.write(iteration, losses | {"lr": lr} | figures | flat)
        parts = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        log.info(
            "iter %d/%d  %s  lr %.5f  %.2f s/iter  data wait %.0f %%  eta %s",
            *(done, self.max_iter, parts, lr, figures["time"], figures["data_wait"] * 100, left),
        )
