"""One arm, one seed: fine-tune a detector under a recipe, evaluate it, and say what was done."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convert.backbone_file import Backbone, read_backbone
from convert.reading import read_checkpoint
from runtime import checkpoints, rundir
from runtime.config import dump
from runtime.distributed import barrier, from_main, is_main, rank, world_size
from runtime.errors import InputError
from runtime.files import sha256, write_text
from runtime.metrics import MetricsWriter, rewind_metrics, set_up_logging
from runtime.versions import versions
from transfer.data.loader import build_train_loader
from transfer.engines.base import (
    Batch,
    Engine,
    Metrics,
    Predictor,
    Training,
    asks_for_evaluation,
    flatten,
)
from transfer.engines.checkpoint import FINAL
from transfer.engines.select import select_engine
from transfer.run import results
from transfer.run.evaluate import evaluate
from transfer.run.job import RANDOM, Job
from transfer.run.resolve import (
    BEGUN,
    Resolved,
    amp_dtype,
    check_detector_conventions,
    initial_weights_seed,
    resolve,
)
from transfer.run.segments import Segments, changes, check_processes, continued, is_evaluation
from transfer.run.visualize import show_first_batch, visualize
from transfer.run.weights import load_backbone, load_detector

log = logging.getLogger("moco")

RESULTS = "results.json"


def finetune(job: Job) -> dict[str, Any]:
    """Run ``job`` in this process (of the group, if there is one); return its results.

    Raises InputError before anything is written where the input does not fit.
    """
    set_up_logging(None, is_main())
    engine, reason = select_engine(job.engine)
    backbone = starting_weights(job)
    resolved = resolve(engine, job, backbone)
    run = _Run(job, engine, reason, resolved, backbone)
    run.check()
    if not is_main():
        barrier()
        return run.go()
    output = rundir.prepare(resolved.cfg.OUTPUT_DIR, job.resume or job.eval_only)
    with rundir.locked(output):
        set_up_logging(output, main=True)
        run.begin()
        barrier()
        return run.go()


def starting_weights(job: Job) -> Backbone | None:
    """The weights to start from, read and checked; None for the random arm and for evaluation."""
    if not job.weights:
        raise InputError(
            "no weights: give --weights FILE.pkl (tools/convert_to_d2.py makes one), or "
            "--weights random to start from random weights on purpose"
        )
    if job.eval_only and job.weights == RANDOM:
        raise InputError("--eval-only needs the weights of a detector: --weights model_final.pth")
    if job.eval_only or job.weights == RANDOM:
        return None
    return read_backbone(job.weights)


@dataclass
class _Run:
    job: Job
    engine: Engine
    engine_reason: str
    resolved: Resolved
    backbone: Backbone | None
    load_report: dict[str, Any] | None = None  # kept in run.json, for a resumed run
    segments: Segments = field(default_factory=list)  # kept there, too
    metrics: Metrics = field(default_factory=dict)
    metric: str = ""  # what they are, in words
    predictor: Predictor | None = None  # that was evaluated last

    def check(self) -> None:
        """Refuse data and weights that do not fit, before anything is written.

        For this a model is built in vain, which takes about a second.
        """
        cfg = self.resolved.cfg.clone()
        cfg.MODEL.DEVICE = "cpu"
        if self.job.eval_only:
            load_detector(self.engine.build_model(cfg), self.job.weights)
            return
        load_backbone(self.engine.build_model(cfg), self.backbone, self.job.weights)

    def begin(self) -> None:
        """Say what will run; refuse to continue another run's folder."""
        if not self.job.eval_only:
            if self.job.resume:
                self._begin_again()
            self._write_begun()
            write_text(self.output / "config.yaml", dump(self.resolved.cfg))
        log.info("engine: %s (%s)", self.engine.name, self.engine_reason)
        log.info("recipe: %s, weights: %s", self.job.recipe, self.job.weights)
        for deviation in self.resolved.deviations:
            log.info("deviates from the recipe: %s", deviation)

    def _begin_again(self) -> None:
        begun = self.output / BEGUN
        if not begun.exists():
            if rundir.last_checkpoint(self.output) is not None:
                raise InputError(
                    f"{str(self.output)!r} has a checkpoint but no {BEGUN}, which says whose it "
                    "is: name another folder"
                )
            return
        before = json.loads(begun.read_text())
        self.load_report, self.segments = before["load_report"], before["segments"]
        for key, value in self._identity().items():
            if before.get(key) != value:
                raise InputError(
                    f"{str(self.output)!r} belongs to another run: its {key} is "
                    f"{before.get(key)!r}, asked for {value!r}; name another folder"
                )
        check_processes(self.segments, self.resolved.cfg, self.resolved.records)

    def _identity(self) -> dict[str, Any]:
        return {
            "recipe_hash": self.resolved.recipe_hash,
            "seed": self.resolved.cfg.SEED,
            "weights_sha256": self._weights_sha256(),
        }

    def _write_begun(self) -> None:
        content = self._identity() | {
            "load_report": self.load_report,
            "segments": self.segments,
            "classes": self.resolved.train[0].classes,  # a checkpoint has their number only
        }
        write_text(self.output / BEGUN, json.dumps(content, indent=1))

    @property
    def output(self) -> Path:
        return Path(self.resolved.cfg.OUTPUT_DIR)

    def go(self) -> dict[str, Any]:
        """Train (unless only evaluating) and evaluate; the main process writes results.json."""
        started = time.perf_counter()
        results.reset_peak_memory()
        cfg = self.resolved.cfg
        torch.manual_seed(initial_weights_seed(cfg.SEED))
        if self.job.eval_only:
            model = self.engine.build_model(cfg)
            check_detector_conventions(cfg, self.job.weights)
            self.load_report = load_detector(model, self.job.weights).to_dict()
            self._evaluate(self.engine.predictor(model))
        else:
            self._train()
        content = self._results(time.perf_counter() - started)
        if is_main():
            name = "results_eval_only.json" if self.job.eval_only else RESULTS
            write_text(self.output / name, json.dumps(content, indent=1))
            log.info("results: %s", self.output / name)
            self._visualize()
        return content

    def _visualize(self) -> None:
        cfg, count = self.resolved.cfg, self.job.visualize
        if count and self.predictor:
            last = cfg.SOLVER.MAX_ITER - 1
            visualize(cfg, self.resolved.test[0], self.predictor, self.output, count, last)

    def _train(self) -> None:
        cfg, records = self.resolved.cfg, self.resolved.records
        checkpoint, start = self._checkpoint()
        if start >= cfg.SOLVER.MAX_ITER:
            self._finish(start)
            return
        if is_main():
            rewind_metrics(self.output, start)
            self.segments = continued(self.segments, start, self.engine.name)
            self._write_begun()
        due = start > 0 and asks_for_evaluation(cfg, start)
        due = from_main(due and not self._evaluated(start - 1))

        def batches(first: int) -> Iterable[Batch]:
            return build_train_loader(cfg, records, rank(), world_size(), first)

        training = Training(
            *(cfg, self.output, start, checkpoint, batches, self._initialise, self._evaluate, due),
            amp_dtype=amp_dtype(cfg, self.job.options),
            accumulate=self.job.options.accumulate,
        )
        try:
            self.engine.train(training)
        except FloatingPointError as error:
            last = rundir.last_checkpoint(self.output)
            kept = f"{str(last)!r} is the last checkpoint" if last else "there is no checkpoint yet"
            raise FloatingPointError(f"{error}; {kept}") from error

    def _evaluated(self, iteration: int) -> bool:
        """Whether ``metrics.json`` holds the evaluation after ``iteration``."""
        rows = rundir.read_metrics(self.output)
        return any(row["iteration"] == iteration and is_evaluation(row) for row in rows)

    def _finish(self, start: int) -> None:
        """All iterations are done. Evaluate if the run was killed before its results."""
        if (self.output / RESULTS).exists():
            raise InputError(
                f"the run in {str(self.output)!r} has done its {start} iterations: nothing to do"
            )
        model = self.engine.build_model(self.resolved.cfg)
        load_detector(model, self.output / FINAL)
        metrics = self._evaluate(self.engine.predictor(model))
        if is_main() and not self._evaluated(start - 1):
            with MetricsWriter(self.output) as writer:
                writer.write(start - 1, flatten(metrics))

    def _checkpoint(self) -> tuple[dict[str, Any] | None, int]:
        found = checkpoints.newest(self.output, read_checkpoint) if self.job.resume else None
        if found is None:
            return None, 0
        last, content = found
        start = int(content["iteration"]) + 1
        log.info("resuming from %s at iteration %d; --weights is not read again", last, start)
        return content, start

    def _initialise(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        report = load_backbone(model, self.backbone, self.job.weights, optimizer)
        self.load_report = report.to_dict()
        if is_main():
            report.log()
            self._write_begun()
            cfg = self.resolved.cfg
            first = build_train_loader(cfg, self.resolved.records, 0, world_size(), num_workers=0)
            show_first_batch(cfg, self.resolved.train[0], next(iter(first)), self.output)

    def _evaluate(self, predict: Predictor) -> Metrics:
        self.predictor = predict
        cfg, test, metric = self.resolved.cfg, self.resolved.test, self.job.options.voc_metric
        self.metrics, self.metric = evaluate(cfg, test, predict, self.output, metric)
        return self.metrics

    def _weights_sha256(self) -> str | None:
        return None if self.job.weights == RANDOM else sha256(self.job.weights)

    def _results(self, seconds: float) -> dict[str, Any]:
        run = {
            "engine": self.engine.name,
            "engine_reason": self.engine_reason,
            "segments": self.segments,
            "weights": self._weights(),
            "load_report": self.load_report,
            "deviations": [*self.resolved.deviations, *changes(self.segments)],
            "metric": self.metric,
            "metrics": self.metrics,
            "wall_time_s": seconds,
            "versions": versions() | self.engine.versions(),
        }
        return results.describe(self.job, self.resolved) | run

    def _weights(self) -> dict[str, Any] | None:
        if self.job.weights == RANDOM:
            return None
        return {
            "path": self.job.weights,
            "sha256": self._weights_sha256(),
            "conventions": self.backbone.conventions.to_dict() if self.backbone else None,
            "incomplete": dict(self.backbone.incomplete) if self.backbone else {},
        }
