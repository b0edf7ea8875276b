"""``--sanity``: can this detector, with these weights and this data, learn one batch by heart?

A detector that cannot has a fault that no long training will cure. It is the cheapest test there
is, and one of wiring only: labels that are wrong but learnable are learnt by heart as well.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fvcore.common.config import CfgNode
from numpy.random import RandomState
from torch import nn
from torchvision.ops import nms

from runtime.metrics import set_up_logging
from transfer.data.dataset import Dataset, Record, xywh
from transfer.data.mapper import Mapper
from transfer.engines.base import Batch, Detections, Engine
from transfer.engines.select import select_engine
from transfer.evaluation.coco import CocoEvaluator
from transfer.run.finetune import starting_weights
from transfer.run.job import Job
from transfer.run.resolve import initial_weights_seed, resolve
from transfer.run.weights import LoadReport, load_backbone
from transfer.view.pictures import choose

log = logging.getLogger("moco")

IMAGES = 2
SHORTEST, LONGEST = 160, 256  # pixels of an image's sides, at most
REGIONS = 64  # sampled by RPN and heads in an image, at most
ITERATIONS = 300
CHECK_PERIOD = 25  # iterations between two looks at the detections
RATE = 5e-4  # of Adam, which needs no warm-up and suits every depth
SETTLE = 20  # passes in which BN's running statistics come to those of the batch
ENOUGH, FALL = 90.0, 2.0  # passed with this AP50 of the batch and this part of the first loss
USUALLY_FROZEN = ("stem", "res2")  # in Detectron2's own recipes


@dataclass(frozen=True)
class _Check:
    """What is trained, and on what."""

    engine: Engine
    cfg: CfgNode
    model: nn.Module
    report: LoadReport
    records: Sequence[Record]
    batch: Batch
    classes: tuple[str, ...]


def sanity(job: Job) -> bool:
    """Overfit one batch of the training data and say in the log whether that worked, or why not.

    Writes no file. Raises InputError where recipe, weights or data do not fit, as a run does.
    """
    set_up_logging(None, main=True)
    check = _prepare(job)
    started = time.perf_counter()
    before, after, iterations, fault = _train(check)
    seconds = time.perf_counter() - started
    log.info("loss %.3f -> %.3f in %d iterations, %.0f s", before, after, iterations, seconds)
    if fault is None:
        log.info(
            "sanity: passed. Model, weights, data reading and losses fit together. Whether the "
            "labels are right it cannot know (look at train_batch.png of a run), nor whether the "
            "recipe's learning rate is"
        )
    else:
        log.error("sanity: FAILED: %s", fault)
    return fault is None


def _prepare(job: Job) -> _Check:
    engine, reason = select_engine(job.engine)
    log.info("engine: %s (%s)", engine.name, reason)
    backbone = starting_weights(job)
    resolved = resolve(engine, job, backbone)
    cfg = _small(resolved.cfg)
    records = choose(resolved.records, IMAGES)
    mapper = Mapper(cfg, is_train=True)
    batch = [mapper(record, RandomState(0)) for record in records]
    log.info("one batch: %s", ", ".join(str(record["file_name"]) for record in records))
    torch.manual_seed(initial_weights_seed(cfg.SEED))
    model = engine.build_model(cfg)
    report = load_backbone(model, backbone, job.weights)
    return _Check(engine, cfg, model, report, records, batch, resolved.train[0].classes)


def _small(cfg: CfgNode) -> CfgNode:
    """The recipe with small images without jitter and few sampled regions, for a CPU's sake."""
    cfg = cfg.clone()
    train = cfg.INPUT.MIN_SIZE_TRAIN
    shortest = min(SHORTEST, *(train if isinstance(train, (tuple, list)) else (train,)))
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (shortest,), shortest
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.RANDOM_FLIP = "choice", "none"
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = min(LONGEST, cfg.INPUT.MAX_SIZE_TRAIN)
    for part in (cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS):
        part.BATCH_SIZE_PER_IMAGE = min(REGIONS, part.BATCH_SIZE_PER_IMAGE)
    cfg.VIS_PERIOD = 0
    return cfg


def _train(check: _Check) -> tuple[float, float, int, str | None]:
    """First and last loss, iterations done, and the fault, or None where the batch is learnt."""
    parameters = [p for p in check.model.parameters() if p.requires_grad]
    if not parameters:
        return math.nan, math.nan, 0, "every parameter is frozen: lower MODEL.BACKBONE.FREEZE_AT"
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    first = total = math.nan
    for iteration in range(ITERATIONS):
        try:
            losses = _losses(check, iteration)
        except FloatingPointError as error:  # of the engine, on infinite proposals
            return first, math.nan, iteration, _not_finite(iteration, str(error))
        loss = torch.stack(list(losses.values())).sum()
        total = float(loss.detach())
        first = total if iteration == 0 else first
        shown = "  ".join(f"{name} {float(value.detach()):.3f}" for name, value in losses.items())
        if not math.isfinite(total):
            return first, total, iteration, _not_finite(iteration, shown)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = iteration + 1
        if done % CHECK_PERIOD == 0:
            ap50 = _score(check)
            log.info("iter %d  loss %.3f  AP50 of the batch %.1f  (%s)", done, total, ap50, shown)
            if ap50 >= ENOUGH and total <= first / FALL:
                return first, total, done, None
    return first, total, ITERATIONS, _reason(check, first, total)


def _losses(check: _Check, iteration: int) -> dict[str, torch.Tensor]:
    check.model.train()
    torch.manual_seed(iteration)  # of the regions that the detector samples
    return check.engine.losses(check.model, check.batch)


def _score(check: _Check) -> float:
    """AP50 of the very batch."""
    samples, found = _found(check)
    return _ap50(samples, found, check.records, check.classes)


def _score_without_classes(check: _Check) -> float:
    """AP50 where an object counts as found whichever class it is taken for."""
    samples, found = _found(check)
    for one in found:
        kept = nms(one["boxes"], one["scores"], 0.5)  # one of each place, not one of each class
        one.update({name: values[kept] for name, values in one.items()})
        one["classes"] = torch.zeros_like(one["classes"])
    records = [
        {**r, "annotations": [{**a, "category_id": 0} for a in r["annotations"]]}
        for r in check.records
    ]
    return _ap50(samples, found, records, ("object",))


def _found(check: _Check) -> tuple[Batch, Detections]:
    """The batch as samples to test on, and boxes, scores and classes of what is found in it."""
    with torch.no_grad():
        for iteration in range(SETTLE):
            _losses(check, iteration)
    mapper = Mapper(check.cfg, is_train=False)
    samples = [mapper(record) for record in check.records]
    found = check.engine.predictor(check.model)(samples)
    return samples, [{k: one[k] for k in ("boxes", "scores", "classes")} for one in found]


def _ap50(
    samples: Batch, found: Detections, records: Sequence[Record], classes: tuple[str, ...]
) -> float:
    data = Dataset("batch", [_coco_record(record) for record in records], classes, "coco", {})
    evaluator = CocoEvaluator(data)
    evaluator.process(samples, found)
    return evaluator.evaluate()["bbox"]["AP50"]


def _coco_record(record: Record) -> Record:
    """``record`` as the COCO evaluator wants it, whatever layout it was read from."""
    annotations = []
    for a in record["annotations"]:
        box = xywh(a)
        kept = {key: a[key] for key in ("iscrowd", "category_id")}
        annotations.append({**kept, "bbox": box, "area": box[2] * box[3]})
    return {**record, "annotations": annotations}


def _not_finite(iteration: int, what: str) -> str:
    return (
        f"not finite at iteration {iteration} ({what}): look at MODEL.PIXEL_MEAN, MODEL.PIXEL_STD "
        "and the norm of the recipe"
    )


def _reason(check: _Check, first: float, last: float) -> str:
    """The likeliest cause that the batch was not learnt."""
    objects = sum(not a["iscrowd"] for r in check.records for a in r["annotations"])
    used = sum(len(sample["targets"]["classes"]) for sample in check.batch)
    if used < objects:
        return f"{objects - used} of {objects} objects have boxes without area: repair the labels"
    if _score_without_classes(check) >= ENOUGH:
        return (
            "the objects are found but not their classes: look for objects that look alike and "
            "have different classes"
        )
    frozen = [part.module for part in check.report.modules if not part.trainable]
    if len(frozen) > len(USUALLY_FROZEN):
        return (
            f"{', '.join(frozen)} are frozen: lower MODEL.BACKBONE.FREEZE_AT "
            f"{check.cfg.MODEL.BACKBONE.FREEZE_AT}, or give weights that were pretrained"
        )
    if last > first / FALL:
        return "the loss hardly falls: look at the norm, MODEL.PIXEL_STD and the loss weights"
    sides = torch.cat(
        [s["targets"]["boxes"][:, 2:] - s["targets"]["boxes"][:, :2] for s in check.batch]
    )
    smallest = float(sides.min())
    return (
        f"the loss falls, but the objects are not found after {ITERATIONS} iterations: the "
        f"smallest side of an object is {smallest:.0f} pixels here; compare with "
        f"MODEL.ANCHOR_GENERATOR.SIZES {check.cfg.MODEL.ANCHOR_GENERATOR.SIZES}"
    )
