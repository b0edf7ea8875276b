"""What a run says of its steps: a line in the log, figures in ``metrics.json``."""

from __future__ import annotations

import logging

from fvcore.common.config import CfgNode

from pretrain.loading.data_wait import WaitingNoted
from pretrain.monitor import Monitor
from pretrain.step import StepResult
from runtime.distributed import mean_over_ranks
from runtime.metrics import MetricsWriter, Progress, eta

log = logging.getLogger("moco")


class Report:
    """Every process has one and must call it; that with a ``writer``, the main one, writes."""

    def __init__(
        self,
        cfg: CfgNode,
        monitor: Monitor,
        waiting: WaitingNoted,
        writer: MetricsWriter | None,
        start: int,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self._cfg, self._monitor, self._waiting, self._writer = cfg, monitor, waiting, writer
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._progress = Progress(start, total_steps)

    def waited(self, seconds: float) -> None:
        """Add time during which a step waited for its batch."""
        self._progress.waited(seconds)

    def due(self, done: int) -> bool:
        """Whether :meth:`steps` is to be called after ``done`` steps."""
        return done % self._cfg.LOG_PERIOD == 0 or done == self._total_steps

    def steps(self, done: int, result: StepResult, lr: float) -> None:
        """The last of ``done`` steps and how the run is getting on."""
        loss, top1 = float(mean_over_ranks(result.loss)), float(mean_over_ranks(result.accuracy))
        signals = {"loss": loss, "acc1": top1} | self._monitor.signals.figures()
        if self._writer is None:
            return
        figures = self._progress.report(done)
        epoch = (done - 1) // self._steps_per_epoch
        left = eta(figures.pop("eta_seconds"))
        self._writer.write(done - 1, signals | {"lr": lr, "epoch": epoch} | figures)
        log.info(
            "step %d/%d  epoch %d  loss %.3f (chance %.2f)  acc1 %.1f %%  lr %.4f  %.2f s/step  "
            "data wait %.0f %%  eta %s: %s",
            *(done, self._total_steps, epoch, loss, self._monitor.method.chance_loss, top1, lr),
            *(figures["time"], figures["data_wait"] * 100, left),
            self._monitor.signals.judge(done, signals),
        )
        self._waiting.report(figures["data_wait"])

    def epoch(self, done: int) -> None:
        """What the encoder has learnt, where an epoch ends that MONITOR.PERIOD asks for."""
        epoch, rest = divmod(done, self._steps_per_epoch)
        final = done == self._total_steps
        if not final and (rest or epoch % self._cfg.MONITOR.PERIOD):
            return
        figures = self._monitor.measure(f"step {done}")
        if self._writer is not None and figures:
            self._writer.write(done - 1, figures)
