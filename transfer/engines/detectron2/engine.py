"""The reference engine: Detectron2's own models, DefaultTrainer and hooks.

Data, draws, initial weights and evaluation come from the runner, as for the embedded engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import detectron2
import torch
from detectron2.config import get_cfg
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    hooks,
)
from detectron2.modeling import build_model
from detectron2.utils.events import CommonMetricPrinter, EventStorage, TensorboardXWriter
from fvcore.common.config import CfgNode
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn

from runtime.distributed import bare, data_parallel, is_main
from runtime.errors import InputError
from runtime.stopping import StopRequest, stoppable
from transfer.engines.base import Batch, Detections, Draws, Predictor, Training, evaluating
from transfer.engines.detectron2 import cityscapes, dc5, heads  # noqa: F401  registered names
from transfer.engines.detectron2.convert import from_instances, to_instances
from transfer.engines.detectron2.hooks import PreciseBN, SaveAndEvaluate, SeedDraws
from transfer.engines.detectron2.trainer import build_trainer
from transfer.engines.embedded.solver import BEFORE_THE_END
from transfer.engines.sync_bn import synchronise_on_cpu
from transfer.recipe.choices import dc5_contradictions, solver_contradictions


class Detectron2Engine:
    """Runs where Detectron2 imports, compiled or as a source tree on PYTHONPATH."""

    name = "detectron2"

    def base_cfg(self) -> CfgNode:
        """Detectron2's complete configuration."""
        return get_cfg()

    def check(self, cfg: CfgNode) -> None:
        """Refuse what Detectron2 itself would refuse with a traceback."""
        basic = cfg.MODEL.RESNETS.DEPTH in (18, 34)
        if basic and cfg.MODEL.RESNETS.RES2_OUT_CHANNELS != 64:
            raise InputError(
                "MODEL.RESNETS.RES2_OUT_CHANNELS must be 64 for ResNet-18/34 in Detectron2: run "
                "this width with --engine embedded"
            )
        for line in (*solver_contradictions(cfg), *dc5_contradictions(cfg)):
            raise InputError(line)

    def versions(self) -> dict[str, str]:
        """Detectron2's version."""
        return {"detectron2": str(detectron2.__version__)}

    def build_model(self, cfg: CfgNode) -> nn.Module:
        """Detectron2's detector, its SyncBN made to work on CPUs."""
        return synchronise_on_cpu(build_model(cfg))

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Detectron2's model with the storage that it notes its figures in."""
        with EventStorage():
            return model([to_instances(sample) for sample in batch])

    def predictor(self, model: nn.Module) -> Predictor:
        """Detectron2's outputs in the shared form."""

        def predict(batch: Batch) -> Detections:
            with evaluating(model):
                outputs = model(batch)
            return [from_instances(output["instances"]) for output in outputs]

        return predict

    def train(self, training: Training) -> None:
        """DefaultTrainer, with the shared data and evaluation in its hooks."""
        with stoppable() as stop:
            self._train(training, stop)

    def _train(self, training: Training, stop: StopRequest) -> None:
        trainer = _trainer_class(self, training, stop)(training.cfg)
        model = bare(trainer._trainer.model)
        if training.checkpoint is None:
            training.initialise(model, trainer._trainer.optimizer)
        else:
            model.load_state_dict(training.checkpoint["model"])
            trainer.load_state_dict(training.checkpoint["trainer"])
            trainer.start_iter = training.start
        trainer.train()


class _Batches:
    """The shared batches with Detectron2's Instances; begins where the run does."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self._batches:
            yield [to_instances(sample) for sample in batch]


def _trainer_class(
    engine: Detectron2Engine, training: Training, stop: StopRequest
) -> type[DefaultTrainer]:
    """DefaultTrainer builds loaders, evaluators and hooks in methods: give it ours."""
    # DefaultTrainer asks twice: for the training's own loader, then for PreciseBN's
    loaders = iter([training.batches(training.start), training.precise_bn_batches()])

    class Trainer(DefaultTrainer):
        def __init__(self, cfg: CfgNode) -> None:
            """As DefaultTrainer's, whose data parallelism is for GPUs alone."""
            TrainerBase.__init__(self)
            model = self.build_model(cfg)
            optimizer, loader = self.build_optimizer(cfg, model), self.build_train_loader(cfg)
            plain = SimpleTrainer(data_parallel(model), loader, optimizer)
            self._trainer = build_trainer(plain, training)
            self.scheduler = self.build_lr_scheduler(cfg, optimizer)
            self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
            self.register_hooks(self.build_hooks())

        def build_hooks(self) -> list[HookBase]:
            """In DefaultTrainer's order."""
            cfg, model = self.cfg, self._trainer.model
            detector = bare(model)
            draws = Draws(
                cfg.SEED,
                anchors=(detector.get_submodule("proposal_generator"), "_subsample_labels"),
                regions=(detector.get_submodule("roi_heads"), "_sample_proposals"),
            )
            built = [SeedDraws(draws), hooks.IterationTimer(), hooks.LRScheduler()]
            if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(model):
                loader, number = self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER
                built.append(PreciseBN(cfg.TEST.EVAL_PERIOD, model, loader, number))
            built.append(SaveAndEvaluate(training, engine.predictor(detector), stop))
            if is_main():
                writers = [CommonMetricPrinter(self.max_iter), TensorboardXWriter(cfg.OUTPUT_DIR)]
                built.append(hooks.PeriodicWriter(writers))
            return built

        @classmethod
        def build_model(cls, cfg: CfgNode) -> nn.Module:
            return engine.build_model(cfg)  # without the page of layers that DefaultTrainer logs

        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> _Batches:
            return _Batches(next(loaders))

        @classmethod
        def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
            # After the last iteration Detectron2 asks for the next rate, and fails: fvcore's
            # schedule has none.
            scheduler = super().build_lr_scheduler(cfg, optimizer)
            if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
                multiplier = scheduler._multiplier
                scheduler._multiplier = lambda where: multiplier(min(where, BEFORE_THE_END))
            return scheduler

    return Trainer
