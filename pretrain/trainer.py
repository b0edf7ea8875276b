"""The training loop: the machinery around a method, the same for MoCo and the supervised arm."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from convert.reading import read_checkpoint
from convert.seen_images import SeenImages
from pretrain import checkpoint, schedule
from pretrain.checks import check_data, check_values, doubts
from pretrain.config import view_recipe, without_credentials
from pretrain.dictionaries import contrastive_method
from pretrain.initial_weights import load_initial_weights
from pretrain.loading.batches import EpochBatches, ViewDataset
from pretrain.loading.class_mixture import poor_mixture
from pretrain.loading.data_wait import WaitingNoted
from pretrain.loading.loader import Loader
from pretrain.loading.order import window_of
from pretrain.methods import Method, SupervisedMethod
from pretrain.monitor import Monitor
from pretrain.pictures import save_views
from pretrain.precision import set_computation
from pretrain.report import Report
from pretrain.saving import FINAL, Saver
from pretrain.source.decode import printable
from pretrain.source.flaws import FlawedImages, allowed
from pretrain.source.images import ImageSource
from pretrain.source.open_source import open_source
from pretrain.source.shard_cache import ShardCache
from pretrain.step import Step
from runtime import checkpoints, rundir
from runtime.config import dump
from runtime.device import core_share, loader_workers, run_device
from runtime.distributed import (
    all_gather_objects,
    barrier,
    data_parallel,
    from_main,
    is_main,
    rank,
    world_size,
)
from runtime.errors import InputError
from runtime.files import write_text
from runtime.memory import keep_freed_memory
from runtime.metrics import MetricsWriter, rewind_metrics, set_up_logging
from runtime.step_watch import StepWatch
from runtime.stopping import stoppable, stopped

log = logging.getLogger("moco")

SHOWN = 5  # classes in the log: enough to see that train and val are taken for two


def pretrain(cfg: CfgNode, resume: bool = False, notes: Sequence[str] = ()) -> Path:
    """Train the recipe ``cfg`` and return the path of the final checkpoint.

    Runs in every process of the process group, if there is one. ``notes`` on how the recipe came
    about go to the log. Raises InputError before anything is written where the recipe, the images
    or the folder do not fit.
    """
    check_values(cfg)
    cache = ShardCache.of(cfg.DATA.SHARD_CACHE, cfg.DATA.SHARD_CACHE_GIB)
    folder = open_source(cfg.DATA.ROOT, cache=cache)
    check_data(cfg, folder, world_size())
    if len(set(all_gather_objects(folder.state()))) > 1:
        raise InputError(f"shards of {folder.place!r} changed while the run began: start it anew")
    method = _build_method(cfg, folder)
    beginning = [] if resume else _initial_weights(cfg, method)  # before anything is written
    monitor = Monitor(cfg, method, folder, loader_workers(cfg.DATA.NUM_WORKERS))
    cfg = without_credentials(cfg)  # it goes into files and logs
    output = rundir.prepare(cfg.OUTPUT_DIR, resume) if is_main() else Path(cfg.OUTPUT_DIR)
    barrier()
    if not is_main():
        set_up_logging(None, main=False)
        return _Run(cfg, folder, method, monitor, output, resume).train()
    with rundir.locked(output):
        set_up_logging(output, main=True)
        folder.describe()
        for line in beginning:
            log.info("%s", line)
        batch = cfg.SOLVER.BATCH_SIZE
        mixture = poor_mixture(folder, cfg.DATA.SHUFFLE_WINDOW, batch, cfg.SEED)
        for line in (*notes, *doubts(cfg, len(folder.files) // batch), *mixture):
            log.warning("%s", line)
        return _Run(cfg, folder, method, monitor, output, resume).train()


def _build_method(cfg: CfgNode, folder: ImageSource) -> Method:
    torch.manual_seed(cfg.SEED)  # the only use of torch's global generator: the initial weights
    if cfg.METHOD == "supervised":
        return SupervisedMethod(cfg, len(folder.classes()))
    return contrastive_method(cfg, len(folder.files))


def _initial_weights(cfg: CfgNode, method: Method) -> list[str]:
    """Load MODEL.INIT, if there is one; what to say of it."""
    if not cfg.MODEL.INIT:
        return []
    return load_initial_weights(method.model, cfg.MODEL.ARCH, cfg.MODEL.INIT)


class _Run:
    """One pretraining run: its model, optimiser, data and files."""

    def __init__(
        self,
        cfg: CfgNode,
        folder: ImageSource,
        method: Method,
        monitor: Monitor,
        output: Path,
        resume: bool,
    ) -> None:
        self.cfg, self.folder, self.method, self.output = cfg, folder, method, output
        self.monitor = monitor
        self.device = run_device(cfg.DEVICE)
        self.steps_per_epoch = len(folder.files) // cfg.SOLVER.BATCH_SIZE
        self.total_steps = schedule.total_steps(cfg.SOLVER, self.steps_per_epoch)
        self.fingerprint = folder.fingerprint()
        limit = allowed(cfg.DATA.MAX_UNREADABLE, len(folder.files))
        self.flawed = FlawedImages(output, limit, resume)
        if self.device.type == "cpu":
            keep_freed_memory()
        method.model.to(self.device).to(memory_format=torch.channels_last)
        set_computation(method.model, cfg.SOLVER.AMP, cfg.SOLVER.COMPILE)
        method.model.train()
        self.optimizer = torch.optim.SGD(
            [(name, p) for name, p in method.model.named_parameters() if p.requires_grad],
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            fused=True,
        )
        self.start = self._resume() if resume else 0
        method.set_step(self.start)

    def _resume(self) -> int:
        found = checkpoints.newest(self.output, read_checkpoint)
        if found is None:
            log.info("--resume: no checkpoint in %s yet, starting at step 0", self.output)
            for line in _initial_weights(self.cfg, self.method):
                log.info("%s", line)
            return 0
        last, state = found
        step = checkpoint.restore(
            last, state, self.cfg, self.method.model, self.optimizer, self.fingerprint
        )
        log.info("resuming from %s at step %d of %d", last, step, self.total_steps)
        if self.cfg.MODEL.INIT:
            log.info("MODEL.INIT is not read again: the run's own checkpoint counts")
        return step

    def train(self) -> Path:
        """Run all steps that are left; return the final checkpoint's path.

        A launcher may start a run again that a kill has hit behind its last step: only what is
        missing is made.
        """
        if self.start == self.total_steps and from_main(self.monitor.has_neighbours(self.output)):
            log.info("the run in %s has already finished: nothing is left to do", self.output)
            return self.output / FINAL
        loader, dataset = self._data()
        if is_main():
            self._write_beginning(dataset)
        barrier()
        if not self.start:
            self.monitor.measure("before training")
        try:
            with MetricsWriter(self.output) if is_main() else nullcontext() as writer:
                self._loop(loader, writer)
        except FloatingPointError as error:
            last = rundir.pointed_at(self.output)
            raise FloatingPointError(
                f"{error}: the run has diverged; lower SOLVER.BASE_LR. "
                f"Last good checkpoint: {last or 'none yet'}"
            ) from error
        self.monitor.save_neighbours(self.output, self.flawed.unreadable())
        log.info("finished: %s", self.output / FINAL)
        return self.output / FINAL

    def _data(self) -> tuple[Loader, ViewDataset]:
        labels = self.folder.labels() if self.method.name == "supervised" else None
        cfg, views = self.cfg, self.method.view_count
        dataset = ViewDataset(
            self.folder, view_recipe(cfg), views, cfg.SEED, labels, cfg.DATA.PIPELINE
        )
        batches = EpochBatches(
            len(self.folder.files),
            cfg.SOLVER.BATCH_SIZE,
            self.total_steps,
            cfg.SEED,
            self.start,
            rank(),
            world_size(),
            window_of(self.folder, cfg.DATA.SHUFFLE_WINDOW),
        )
        return Loader(dataset, batches, loader_workers(cfg.DATA.NUM_WORKERS), self.device), dataset

    def _write_beginning(self, dataset: ViewDataset) -> None:
        cfg = self.cfg
        write_text(self.output / "config.yaml", dump(cfg))
        rewind_metrics(self.output, self.start)
        save_views(dataset, self.output / "views.png")
        log.info(
            "%s: %s, %d images of %s, %d steps (%.4g epochs of %d), global batch %d in BN "
            "groups of %d on %d process(es), %s",
            cfg.METHOD,
            cfg.MODEL.ARCH,
            len(self.folder.files),
            cfg.DATA.ROOT,
            self.total_steps,
            self.total_steps / self.steps_per_epoch,
            self.steps_per_epoch,
            cfg.SOLVER.BATCH_SIZE,
            cfg.MODEL.BN_GROUP_SIZE,
            world_size(),
            self.device,
        )
        if cfg.METHOD == "supervised":
            names = [printable(name) for name in self.folder.classes()]
            if len(names) > SHOWN:
                names[SHOWN - 1 : -1] = ["..."]
            log.info("%d classes: %s", len(self.folder.classes()), ", ".join(names))
        log.info("what the augmentation does to these images: %s", self.output / "views.png")

    def _loop(self, loader: Loader, writer: MetricsWriter | None) -> None:
        model = data_parallel(self.method.model)
        take_step = Step(
            self.method, model, self.optimizer, self.device, self.cfg.SOLVER.ACCUMULATE
        )
        report = self._report(writer)
        with stoppable() as stop, self._saver() as saver, closing(iter(loader)) as batches:
            watch = StepWatch(stop)
            for step in range(self.start, self.total_steps):
                lr = self._set_lr(step)
                before = time.perf_counter()
                batch = next(batches)
                report.waited(time.perf_counter() - before)
                self.flawed.note(batch.flaws)
                done = step + 1
                save, tell = saver.due(done), report.due(done)
                self.monitor.signals.listen(tell)
                result = take_step(batch)
                signal = watch.after(done, result.loss, wait=save or tell)
                if save or tell or signal:
                    self.flawed.gather()
                if tell:
                    report.steps(done, result, lr)
                report.epoch(done)  # before the checkpoint: what a kill takes away is made again
                if save or signal:
                    saver.save(done, writer)
                if signal and done < self.total_steps:
                    saver.finish()
                    raise stopped(signal, done, "step")
                saver.check()
            saver.finish()

    def _report(self, writer: MetricsWriter | None) -> Report:
        cfg, gpu = self.cfg, self.device.type == "cuda"
        workers = loader_workers(cfg.DATA.NUM_WORKERS)
        waiting = WaitingNoted(self.folder, cfg.DATA.PIPELINE, gpu, workers, core_share())
        length = (self.total_steps, self.steps_per_epoch)
        return Report(cfg, self.monitor, waiting, writer, self.start, *length)

    def _saver(self) -> Saver:
        cfg, model = self.cfg, self.method.model
        return Saver(
            cfg, self.output, self.steps_per_epoch, model, self.optimizer, self._about_images
        )

    def _about_images(self) -> dict[str, Any]:
        return {"data": self.fingerprint, "seen_images": self._seen.to_dict(tensor=True)}

    @cached_property
    def _seen(self) -> SeenImages:
        return SeenImages.of(len(self.folder.files), self.folder.sha256)

    def _set_lr(self, step: int) -> float:
        lr = schedule.rate(self.cfg.SOLVER, step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr
