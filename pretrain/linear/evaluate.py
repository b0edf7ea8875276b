"""The run: train a classifier on frozen features, or every layer, and test it after every epoch."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from convert.reading import read_checkpoint
from pretrain import schedule
from pretrain.checks import check_values, late_milestones
from pretrain.config import without_credentials
from pretrain.linear import state
from pretrain.linear.config import LINEAR_RULES, check, view_recipe
from pretrain.linear.data import Data
from pretrain.linear.features import accuracy, knn_in_parts, outputs
from pretrain.linear.network import (
    Network,
    backbone_tensors,
    build_network,
    check_unchanged,
    without_classifier,
)
from pretrain.loading.batches import Batch, EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.source.images import ImageSource, UnreadableImageError
from runtime import checkpoints, rundir
from runtime.config import dump
from runtime.device import loader_workers, run_device
from runtime.distributed import (
    barrier,
    data_parallel,
    from_main,
    is_main,
    mean_over_ranks,
    rank,
    world_size,
)
from runtime.errors import InputError
from runtime.files import write_text
from runtime.metrics import MetricsWriter, Progress, eta, rewind_metrics, set_up_logging
from runtime.stopping import StopRequest, stoppable, stopped
from runtime.versions import versions

log = logging.getLogger("moco")

RESULTS = "results.json"


def evaluate(cfg: CfgNode, resume: bool = False) -> Path:
    """Run the recipe ``cfg``; return the path of ``results.json``.

    Runs in every process of the process group, if there is one. Raises InputError before anything
    is written where recipe, weights, images or folder do not fit.
    """
    check_values(cfg, LINEAR_RULES)
    data = Data.open(cfg)
    cfg = without_credentials(cfg)  # it goes into files and logs
    check(cfg, data.train, world_size())
    network = build_network(cfg, len(data.train.classes()))
    seen = data.seen_by(cfg, network.seen)
    device = run_device(cfg.DEVICE)
    if cfg.MODE == "finetune" and world_size() > 1 and device.type != "cuda":
        raise InputError("MODE finetune synchronises BN, which torch does on GPUs: use one process")
    output = rundir.prepare(cfg.OUTPUT_DIR, resume) if is_main() else Path(cfg.OUTPUT_DIR)
    barrier()
    if not is_main():
        set_up_logging(None, main=False)
        return _Run(cfg, data, network, seen, device, output, resume).run()
    with rundir.locked(output):
        set_up_logging(output, main=True)
        data.describe()
        return _Run(cfg, data, network, seen, device, output, resume).run()


class _Run:
    """One evaluation: its model, optimiser, data and files."""

    def __init__(
        self,
        cfg: CfgNode,
        data: Data,
        network: Network,
        seen: int | None,
        device: torch.device,
        output: Path,
        resume: bool,
    ) -> None:
        self.cfg, self.data, self.output = cfg, data, output
        self.network, self.seen, self.device = network, seen, device
        self.frozen = cfg.MODE == "linear"
        self.steps_per_epoch = len(data.train.files) // cfg.SOLVER.BATCH_SIZE
        self.total_steps = self.steps_per_epoch * cfg.SOLVER.EPOCHS
        self.workers = loader_workers(cfg.DATA.NUM_WORKERS)
        self.model = network.model.to(device).to(memory_format=torch.channels_last)
        self.before = backbone_tensors(self.model) if self.frozen else {}
        if not self.frozen and world_size() > 1:  # tuned with synchronised BN (paper, section 4.2)
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.optimizer = torch.optim.SGD(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            fused=True,
        )
        weights = network.conventions.source_sha256 or "random"
        self.identity = {"weights": weights} | data.identity()
        self.found = state.Found()
        self.start = self._resume() if resume else 0

    def _resume(self) -> int:
        newest = checkpoints.newest(self.output, read_checkpoint)
        if newest is None:
            log.info("--resume: no checkpoint in %s yet, starting at step 0", self.output)
            return 0
        step, self.found = state.restore(
            *newest, self.cfg, self.model, self.optimizer, self.identity
        )
        log.info("resuming from %s at step %d of %d", newest[0], step, self.total_steps)
        return step

    def run(self) -> Path:
        """Run all steps that are left; return the path of the results."""
        if self.start == self.total_steps and from_main((self.output / RESULTS).exists()):
            log.info("the run in %s has already finished: nothing is left to do", self.output)
            return self.output / RESULTS
        started = time.perf_counter()
        loader = self._loader()
        if is_main():
            write_text(self.output / "config.yaml", dump(self.cfg))
            rewind_metrics(self.output, self.start)
            self._describe()
            in_both = self.data.in_both()
        self.model.eval()
        with without_classifier(self.model):
            frozen_test = self._outputs(self.data.test) if self.frozen else None
            if self.start == 0 and self.frozen and self.cfg.KNN.K:
                self._knn(frozen_test)
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(stoppable())
            writer = stack.enter_context(MetricsWriter(self.output)) if is_main() else None
            self._loop(loader, writer, frozen_test, stop)
        if self.frozen:
            check_unchanged(self.model, self.before)
        if is_main():
            self._write_results(time.perf_counter() - started, in_both)
        barrier()
        return self.output / RESULTS

    def _describe(self) -> None:
        conventions, data = self.network.conventions, self.data
        branch = f", {conventions.branch}" if conventions.branch else ""
        log.info(
            "%s: %s (%s%s), %s; %d training and %d test images of %d classes; %d steps of %d",
            *(self.cfg.MODE, self.cfg.WEIGHTS, conventions.source_format, branch),
            *(self.network.architecture.name, len(data.train.files), len(data.test.files)),
            *(len(data.train.classes()), self.total_steps, self.cfg.SOLVER.BATCH_SIZE),
        )
        for line in late_milestones(self.cfg.SOLVER, "EPOCHS"):
            log.warning("%s", line)

    def _outputs(self, folder: ImageSource) -> torch.Tensor:
        size = self.cfg.VIEWS.CROP_SIZE
        return outputs(self.model, folder, size, self.network.prepare, self.workers)

    def _knn(self, test: torch.Tensor | None) -> None:
        """Accuracy of the nearest neighbours, before any training: needs no classifier."""
        features = self._outputs(self.data.train)
        if not is_main() or test is None:
            return
        knn = self.cfg.KNN
        labels = torch.tensor(self.data.train.labels())
        self.found.knn = knn_in_parts(
            features, labels, test, self.data.labels, knn.K, knn.TEMPERATURE
        )
        log.info("kNN (k = %d): %.2f %%", knn.K, self.found.knn)

    def _loader(self) -> Loader:
        cfg, labels = self.cfg, self.data.train.labels()
        dataset = ViewDataset(
            self.data.train, view_recipe(cfg), 1, cfg.SEED, labels, cfg.DATA.PIPELINE
        )
        count, batch_size = len(self.data.train.files), cfg.SOLVER.BATCH_SIZE
        where = (self.start, rank(), world_size())
        batches = EpochBatches(count, batch_size, self.total_steps, cfg.SEED, *where)
        return Loader(dataset, batches, self.workers, self.device)

    def _loop(
        self,
        loader: Loader,
        writer: MetricsWriter | None,
        frozen_test: torch.Tensor | None,
        stop: StopRequest,
    ) -> None:
        cfg, model = self.cfg, data_parallel(self.model)
        progress = Progress(self.start, self.total_steps)
        with contextlib.closing(iter(loader)) as made:
            for step in range(self.start, self.total_steps):
                before = time.perf_counter()
                batch = next(made)
                progress.waited(time.perf_counter() - before)
                for flaw in batch.flaws:
                    if not flaw.used:  # labelled images count: none is replaced
                        raise UnreadableImageError(flaw.name, flaw.reason)
                loss = self._step(model, batch, step)
                done = step + 1
                if done % cfg.LOG_PERIOD == 0 or done == self.total_steps:
                    self._log(writer, progress, done, loss)
                if done % self.steps_per_epoch == 0:
                    self._test(writer, done, frozen_test)
                number = stop.signal()
                if done % self.steps_per_epoch == 0 or number:
                    self._save(done)
                if number:
                    raise stopped(number, done)

    def _step(self, model: nn.Module, batch: Batch, step: int) -> torch.Tensor:
        solver = self.cfg.SOLVER
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.multistep(
                solver.BASE_LR, step // self.steps_per_epoch, solver.MILESTONES, solver.GAMMA
            )
        # frozen means evaluation mode: in training mode BN would move its running statistics
        model.train(not self.frozen)
        batch = batch.to(self.device).finished()
        loss = F.cross_entropy(model(self.network.prepare(batch.views[0])), batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _log(
        self, writer: MetricsWriter | None, progress: Progress, done: int, loss: torch.Tensor
    ) -> None:
        value = float(mean_over_ranks(loss))
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {done}: the run has diverged; lower SOLVER.BASE_LR"
            )
        if writer is None:
            return
        figures = progress.report(done)
        left = eta(figures.pop("eta_seconds"))
        lr = self.optimizer.param_groups[0]["lr"]
        writer.write(done - 1, {"loss": value, "lr": lr} | figures)
        log.info(
            "step %d/%d  loss %.4f  lr %g  %.2f s/step  data wait %.0f %%  eta %s",
            *(done, self.total_steps, value, lr, figures["time"], figures["data_wait"] * 100, left),
        )

    def _test(
        self, writer: MetricsWriter | None, done: int, frozen_test: torch.Tensor | None
    ) -> None:
        """Accuracy on all test images; of frozen features only the classifier is new."""
        self.model.eval()
        if frozen_test is None:
            logits = self._outputs(self.data.test)
        if writer is None:
            return
        if frozen_test is not None:
            with torch.no_grad():
                logits = self.model.fc(frozen_test.to(self.device)).cpu()
        epoch = done // self.steps_per_epoch
        top1 = accuracy(logits, self.data.labels, 1)
        top5 = accuracy(logits, self.data.labels, 5) if logits.shape[1] > 5 else None
        self.found.add(epoch, top1, top5)
        values = {"top1": top1} | ({} if top5 is None else {"top5": top5})
        writer.write(done - 1, {"epoch": epoch} | values)
        log.info("epoch %d  test top-1 %.2f %%  (best %.2f %%)", epoch, top1, self.found.best_top1)

    def _save(self, done: int) -> None:
        if is_main():
            arch, epoch = self.network.architecture.name, done // self.steps_per_epoch
            where = {"arch": arch, "epoch": epoch, "step": done, "identity": self.identity}
            state.save(self.output, self.cfg, self.model, self.optimizer, where, self.found)
        barrier()

    def _write_results(self, seconds: float, in_both: int) -> None:
        """``seconds`` of this part of the run, if it was resumed."""
        found, path = self.found, self.output / RESULTS
        results = {
            "mode": self.cfg.MODE,
            **found.to_dict(),
            "weights": self.cfg.WEIGHTS,
            **self.network.to_dict(),
            "backbone_unchanged": True if self.frozen else None,
            **self.data.to_dict(self.identity),
            "test_images_seen": self.seen,
            "test_images_in_train": in_both,
            "processes": world_size(),
            "seconds": round(seconds, 1),
            "versions": versions(),
            "recipe": self.cfg,
        }
        write_text(path, json.dumps(results, indent=2) + "\n")
        best = (found.best_top1, found.best_epoch)
        log.info("top-1 %.2f %%, best %.2f %% at epoch %d: %s", found.top1, *best, path)
