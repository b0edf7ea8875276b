"""Training step and inference of an engine at sizes that suit a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
FEW_REGIONS = ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64", "MODEL.RPN.POST_NMS_TOPK_TEST", "100")
WORKLOADS = (
    Workload("Mask R-CNN R50-FPN, 256 px", "coco_R50_FPN_1x", _at(256), 2),
    Workload("Mask R-CNN R50-C4, 192 px", "voc_R50_C4", (*_at(192), *MASKS, *FEW_REGIONS), 1),
    Workload("Mask R-CNN R18-FPN, 192 px", "custom_R18_FPN", (*_at(192), *MASKS), 2),
)
QUICK = (Workload("Mask R-CNN R18-FPN, 128 px", "custom_R18_FPN", (*_at(128), *MASKS), 2),)


def prepare(name: str, workload: Workload, data: str) -> dict[str, Callable[[], Any]]:
    """A training step and an inference of one engine, both run once."""
    torch.set_num_threads(1)
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

    work: dict[str, Callable[[], Any]] = {"training": step, "inference": lambda: predict(image)}
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
