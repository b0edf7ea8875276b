"""Training step and inference of both engines, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from transfer.data.catalog import get_dataset, training_records
from transfer.data.mapper import Mapper, sample_rng
from transfer.engines.select import select_engine
from transfer.recipe.load import load_cfg

Batch = list[dict[str, Any]]
Losses = Callable[[nn.Module], dict[str, Tensor]]
Optimizer = Callable[[CfgNode, nn.Module], torch.optim.Optimizer]
RECIPES = Path(__file__).resolve().parents[1] / "transfer"
SCORE_SCALE = 30.0  # makes an untrained classifier as sure of itself as a trained one


@dataclass(frozen=True)
class Workload:
    """A recipe at a size that a CPU can run in seconds."""

    title: str
    recipe: str
    overrides: tuple[str, ...]
    images: int  # of a training batch


def _at(size: int) -> tuple[str, ...]:
    return ("INPUT.MIN_SIZE_TRAIN", f"({size},)", "INPUT.MIN_SIZE_TEST", str(size))


MASKS = ("MODEL.MASK_ON", "True")
FEW_REGIONS = ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "128", "MODEL.RPN.POST_NMS_TOPK_TEST", "200")
WORKLOADS = (
    Workload("Mask R-CNN R50-FPN, 320 px", "coco_R50_FPN_1x", _at(320), 2),
    Workload("Mask R-CNN R50-C4, 240 px", "voc_R50_C4", (*_at(240), *MASKS, *FEW_REGIONS), 1),
    Workload("Mask R-CNN R18-FPN, 192 px", "custom_R18_FPN", (*_at(192), *MASKS), 2),
)
QUICK = (Workload("Mask R-CNN R18-FPN, 128 px", "custom_R18_FPN", (*_at(128), *MASKS), 2),)


class Contestant:
    """An engine's model in a child process; ``step`` and ``detect`` return CPU seconds there.

    A process of its own for each engine: neither finds memory that the other has left warm.
    """

    def __init__(self, engine: str, workload: Workload, data: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (engine, workload, data, other)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()
        self.results: dict[str, list[Any]] = {"step": [], "detect": []}

    def step(self) -> float:
        """One training step."""
        return self._ask("step")

    def detect(self) -> float:
        """Detections of one image."""
        return self._ask("detect")

    def _ask(self, what: str) -> float:
        self._pipe.send(what)
        seconds, result = self._pipe.recv()
        self.results[what].append(result)
        return float(seconds)

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def _serve(engine: str, workload: Workload, data: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    work = _prepare(engine, workload, data)
    while (what := pipe.recv()) is not None:
        before = time.process_time()
        result = work[what]()
        pipe.send((time.process_time() - before, _plain(result)))


def _prepare(name: str, workload: Workload, data: str) -> dict[str, Callable[[], Any]]:
    """A training step and an inference of one engine, both run once."""
    engine, _ = select_engine(name)
    dataset = get_dataset(data)
    cfg = load_cfg(str(RECIPES / f"{workload.recipe}.yaml"), workload.overrides, engine.base_cfg())
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(dataset.classes)
    cfg.DATASETS.TRAIN = (data,)
    records = training_records(cfg, [dataset])[: workload.images]
    mapper = Mapper(cfg, is_train=True)
    batch = [mapper(record, sample_rng(0, i)) for i, record in enumerate(records)]
    image = [Mapper(cfg, is_train=False)(records[0])]
    torch.manual_seed(0)
    model, detector = engine.build_model(cfg), engine.build_model(cfg)
    losses, build_optimizer = _detectron2(batch) if name == "detectron2" else _embedded(batch)
    _calibrate(detector, losses)
    predict = engine.predictor(detector)
    optimizer = build_optimizer(cfg, model.train())

    def step() -> dict[str, float]:
        found = losses(model)
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
        return {loss: float(value.detach()) for loss, value in found.items()}

    work: dict[str, Callable[[], Any]] = {"step": step, "detect": lambda: predict(image)}
    for first in work.values():
        first()
    return work


def _embedded(batch: Batch) -> tuple[Losses, Optimizer]:
    from transfer.engines.embedded.solver import build_optimizer

    return lambda model: model(batch), build_optimizer


def _detectron2(batch: Batch) -> tuple[Losses, Optimizer]:
    from detectron2.solver import build_optimizer
    from detectron2.utils.events import EventStorage

    from transfer.engines.detectron2.convert import to_instances

    inputs = [to_instances(sample) for sample in batch]

    def losses(model: nn.Module) -> dict[str, Tensor]:
        with EventStorage():
            return model(inputs)

    return losses, build_optimizer


@torch.no_grad()
def _calibrate(model: nn.Module, losses: Losses) -> None:
    """Statistics of the norms and a classifier such that there are things to detect."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model.train()
    losses(model)
    model.get_submodule("roi_heads.box_predictor.cls_score").weight.mul_(SCORE_SCALE)


def _plain(result: Any) -> Any:
    """What a pipe can carry: tensors as NumPy arrays, masks by their number of pixels."""
    if isinstance(result, dict):
        return {k: _plain(v) for k, v in result.items()}
    if isinstance(result, list):
        return [_plain(v) for v in result]
    if isinstance(result, Tensor):
        return result.flatten(1).sum(dim=1).tolist() if result.dim() == 3 else result.tolist()
    return result
