"""The final recipe of a run: recipe file, overrides, data, conventions, and what deviates."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from convert.backbone_file import Backbone
from convert.conventions import Conventions
from runtime.config import get, leaves, set_value
from runtime.distributed import from_main, world_size
from runtime.errors import InputError
from runtime.randomness import generator
from runtime.yaml_file import read_recipe
from transfer.data.catalog import FORMS, Dataset, check_classes, get_dataset, training_records
from transfer.data.dataset import Record
from transfer.data.keypoints import require_keypoints
from transfer.data.loader import check_train_settings
from transfer.engines.base import Engine
from transfer.recipe.load import load_recipe
from transfer.run.deviations import CONVENTIONS, deviations_from, recipe_hash
from transfer.run.job import RANDOM, Job, Options
from transfer.run.pretrained_on_test import seen_test_images
from transfer.run.schedule import Given, apply_schedule, check_epochs

log = logging.getLogger("moco")

BEGUN = "run.json"  # in a run folder: what its run is, from its first moment on


@dataclass(frozen=True)
class Resolved:
    """A recipe ready to run.

    Attributes:
        cfg: the final configuration of the engine.
        deviations: ``KEY: recipe's value -> value of this run (why)``, one line each.
        recipe_hash: SHA-256 over all keys that decide the result, the same for both engines.
        train: the data sets to train on.
        test: the data sets to evaluate on.
        records: the images of ``train`` that are trained on; none where a run only evaluates.
        seen: how many test images were among the pretraining images; None if nobody knows.
    """

    cfg: CfgNode
    deviations: tuple[str, ...]
    recipe_hash: str
    train: tuple[Dataset, ...]
    test: tuple[Dataset, ...]
    records: list[Record]
    seen: int | None


def resolve(engine: Engine, job: Job, backbone: Backbone | None) -> Resolved:
    """Build the final recipe.

    Data given by option replaces DATASETS.*; MODEL.ROI_HEADS.NUM_CLASSES follows from the data;
    the conventions of the weights are applied, and refused where the recipe says otherwise.
    Raises InputError for anything that does not fit.
    """
    cfg, epochs = load_recipe(job.recipe, job.overrides, engine.base_cfg())
    in_file = {key for key, _ in leaves(read_recipe(job.recipe))}
    stated = in_file | set(job.overrides[::2])
    unchanged, original_epochs = load_recipe(job.recipe, (), engine.base_cfg())
    original = dict(leaves(unchanged))
    check_epochs(epochs, in_file, job.recipe)
    if job.train_data:
        cfg.DATASETS.TRAIN = tuple(job.train_data)
    if job.test_data:
        cfg.DATASETS.TEST = tuple(job.test_data)
    if job.seed is not None:
        cfg.SEED = job.seed
    if job.output is not None:
        cfg.OUTPUT_DIR = str(job.output)
    if cfg.SEED < 0:
        cfg.SEED = from_main(_seed_left_open(Path(cfg.OUTPUT_DIR) / BEGUN, job.resume))
    use_what_there_is(cfg)
    reasons = _apply_depth(cfg, stated)
    if backbone is not None:
        _apply_conventions(cfg, backbone.conventions, stated)
    _check_start(cfg, job)
    train, test = _apply_data(cfg, stated, custom=bool(job.train_data or job.test_data))
    records = [] if job.eval_only else training_records(cfg, train)
    if not job.eval_only:
        complete = bool(original_epochs.EPOCHS) or "SOLVER.MAX_ITER" in in_file
        given = Given(original, original_epochs, epochs, frozenset(job.overrides[::2]), complete)
        reasons |= apply_schedule(cfg, given, len(records), job.options, world_size())
    engine.check(cfg)
    check_train_settings(cfg, world_size())
    _check_steps(cfg, job.options)
    _check_test_sets(test, job.options.voc_metric)
    doubts = backbone.doubts() if backbone is not None else ()
    deviations = (
        *deviations_from(original, cfg, stated, reasons),
        *(f"{job.weights}: {doubt}" for doubt in doubts),
    )
    seen = seen_test_images(test, backbone, job.options.allow_deviation)
    return Resolved(cfg, deviations, recipe_hash(cfg, job.options), train, test, records, seen)


def use_what_there_is(cfg: CfgNode) -> None:
    """The CPU instead of a GPU on a machine without one."""
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE == "cuda":
        cfg.MODEL.DEVICE = "cpu"


def check_detector_conventions(cfg: CfgNode, weights: str) -> None:
    """A detector's file does not say its conventions, but the run that made it does.

    InputError where ``config.yaml`` beside ``weights`` contradicts the recipe.
    """
    beside = Path(weights).parent / "config.yaml"
    if not beside.exists():
        log.info("no %s: the conventions are taken from the recipe", beside)
        return
    trained = read_recipe(beside)
    for key in sorted(CONVENTIONS):
        here, there = get(cfg, key), get(trained, key)
        if there is not None and there != here:
            raise InputError(
                f"{weights} was trained with {key} {there!r} ({beside}), but the "
                f"recipe says {here!r}: override {key}"
            )


def _seed_left_open(begun: Path, resume: bool) -> int:
    """The seed where neither recipe nor user names one: of the run to resume, else a new one."""
    if resume and begun.exists():
        return int(json.loads(begun.read_text())["seed"])
    seed = secrets.randbelow(2**31)
    log.info("SEED was not given: drew %d", seed)
    return seed


def _apply_conventions(cfg: CfgNode, conventions: Conventions, stated: set[str]) -> None:
    for key, value in conventions.detectron2_keys().items():
        section, _, name = key.rpartition(".")
        node = get(cfg, section)
        if node[name] == value:
            continue
        if key in stated:
            raise InputError(
                f"the recipe says {key} {node[name]!r}, but the weights "
                f"({conventions.source_format}) need {value!r}: override it, or use other weights"
            )
        log.info("conventions of the weights: %s %r -> %r", key, node[name], value)
        node[name] = value


def _apply_depth(cfg: CfgNode, stated: set[str]) -> dict[str, str]:
    """ResNet-18 and -34 are narrower than Detectron2's default; return why a key was changed."""
    key, resnet = "MODEL.RESNETS.RES2_OUT_CHANNELS", cfg.MODEL.RESNETS
    if resnet.DEPTH >= 50 or key in stated or resnet.RES2_OUT_CHANNELS == resnet.STEM_OUT_CHANNELS:
        return {}
    reason = f"follows from MODEL.RESNETS.DEPTH {resnet.DEPTH}"
    log.info("%s %d -> %d (%s)", key, resnet.RES2_OUT_CHANNELS, resnet.STEM_OUT_CHANNELS, reason)
    set_value(cfg, key, resnet.STEM_OUT_CHANNELS)
    return {key: reason}


def _check_start(cfg: CfgNode, job: Job) -> None:
    """What the model starts from: never the recipe's own weights, never frozen random ones."""
    if cfg.MODEL.WEIGHTS:
        log.info("not used: MODEL.WEIGHTS %r; --weights is %s", cfg.MODEL.WEIGHTS, job.weights)
        cfg.MODEL.WEIGHTS = ""
    if job.weights != RANDOM:
        return
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0 and not job.options.allow_deviation:
        raise InputError(
            f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} never trains the first "
            "stages, which random weights leave random: override it with 0 for every arm, or run "
            "it as it is with --allow-deviation"
        )
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        log.warning("MODEL.RESNETS.NORM FrozenBN with random weights normalises nothing")


def _apply_data(
    cfg: CfgNode, stated: set[str], custom: bool
) -> tuple[tuple[Dataset, ...], tuple[Dataset, ...]]:
    if not cfg.DATASETS.TRAIN or not cfg.DATASETS.TEST:
        raise InputError(
            "name the data: DATASETS.TRAIN and DATASETS.TEST, or --train-data and "
            f"--test-data: {FORMS}"
        )
    train = tuple(get_dataset(name) for name in cfg.DATASETS.TRAIN)
    test = tuple(get_dataset(name) for name in cfg.DATASETS.TEST)
    first = train[0]
    for dataset in (*train, *test):
        for note in dataset.metadata.get("notes", ()):
            log.info("%s: %s", dataset.name, note)
    check_classes((*train, *test))
    count = len(first.classes)
    if count != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        if "MODEL.ROI_HEADS.NUM_CLASSES" in stated and not custom:
            raise InputError(
                f"MODEL.ROI_HEADS.NUM_CLASSES {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but "
                f"{first.name} has {count} classes: {', '.join(first.classes[:10])}"
            )
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = count
    if cfg.MODEL.KEYPOINT_ON:
        _apply_keypoints(cfg, (*train, *test), "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS" in stated)
    if any(dataset.evaluator == "cityscapes" for dataset in test) and not cfg.MODEL.MASK_ON:
        raise InputError("Cityscapes scores masks: set MODEL.MASK_ON True")
    return train, test


def _apply_keypoints(cfg: CfgNode, datasets: tuple[Dataset, ...], stated: bool) -> None:
    count, head = require_keypoints(cfg, datasets), cfg.MODEL.ROI_KEYPOINT_HEAD
    if stated and count != head.NUM_KEYPOINTS:
        raise InputError(
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {head.NUM_KEYPOINTS}, but "
            f"{datasets[0].name} has {count} keypoints"
        )
    head.NUM_KEYPOINTS = count


def _check_steps(cfg: CfgNode, options: Options) -> None:
    if cfg.SOLVER.MAX_ITER < 1:
        raise InputError(f"SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: nothing would be trained")
    share = cfg.SOLVER.IMS_PER_BATCH // world_size()
    if options.accumulate < 1 or share % options.accumulate:
        raise InputError(
            f"--accumulate {options.accumulate}: each process has {share} images a batch "
            f"(SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}, {world_size()} processes), which "
            "must divide into so many equal parts"
        )
    if options.amp_dtype != "auto" and not cfg.SOLVER.AMP.ENABLED:
        raise InputError(
            f"--amp-dtype {options.amp_dtype} is for mixed precision: set SOLVER.AMP.ENABLED True"
        )


def amp_dtype(cfg: CfgNode, options: Options) -> torch.dtype | None:
    """Precision of the passes; None is plain float32."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if options.amp_dtype == "auto":
        return torch.bfloat16 if cfg.MODEL.DEVICE == "cpu" else torch.float16
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}[options.amp_dtype]


def _check_test_sets(test: Sequence[Dataset], voc_metric: str) -> None:
    if voc_metric != "auto" and all(dataset.evaluator != "voc" for dataset in test):
        raise InputError(f"--voc-metric {voc_metric}: no test set is in VOC's layout")
    for dataset in test:
        if not any(record["annotations"] for record in dataset.records):
            raise InputError(f"{dataset.name} has no annotated object: there is nothing to score")


def initial_weights_seed(seed: int) -> int:
    """Seed of torch's global generator while the model is built."""
    return int(generator(seed, "initial weights").integers(2**63))
