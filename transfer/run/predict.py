"""A trained detector on images of any kind: a picture of each, and all detections in one file."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from pycocotools import mask as mask_util

from runtime.errors import InputError
from runtime.files import write_text
from runtime.metrics import set_up_logging
from transfer.data.catalog import get_dataset
from transfer.data.dataset import Dataset
from transfer.data.folder import find_images, image_record
from transfer.data.mapper import Mapper
from transfer.engines.base import Predictor
from transfer.engines.select import select_engine
from transfer.evaluation.evaluator import checked
from transfer.recipe.load import load_cfg
from transfer.run.evaluate import result_rows
from transfer.run.job import Job
from transfer.run.resolve import BEGUN, check_detector_conventions, use_what_there_is
from transfer.run.weights import load_detector
from transfer.view.draw import above, draw, save
from transfer.view.pictures import rgb, skeleton

log = logging.getLogger("moco")

DETECTIONS = "detections.json"
PICTURES = "pictures"
LOG_PERIOD = 100  # images


@dataclass(frozen=True)
class Images:
    """The images (file, folder or pattern), the new folder for results, the least score to draw."""

    source: str
    output: Path
    threshold: float = 0.5


def predict(job: Job, images: Images) -> None:
    """Write ``pictures/`` (the images' names, with what was found) and ``detections.json``.

    Images go through the transform and the predictor of the evaluation, one by one, so that the
    detections are the evaluation's. The file has all that the recipe's SCORE_THRESH_TEST lets
    through, the pictures those of ``images.threshold``.

    An image that cannot be read is named and the others are done; InputError at the end says how
    many there were. InputError before anything is written where weights, recipe, classes, images
    or output folder do not fit.
    """
    set_up_logging(None, main=True)
    if not 0 <= images.threshold <= 1:
        raise InputError(f"--score-threshold {images.threshold:g} must be between 0 and 1")
    root, files = find_images(images.source)
    data = _classes(job)
    cfg, predictor = _detector(job, data)
    _make_folder(images.output)
    mapper = Mapper(cfg, is_train=False)
    rows: list[dict[str, Any]] = []
    broken: list[InputError] = []
    for number, file in enumerate(files, start=1):
        try:
            record = image_record(file, number)
            sample = mapper(record)
        except InputError as error:
            broken.append(error)
            log.warning("%s", error)
            continue
        ((_, found),) = checked([sample], predictor([sample]), len(data.classes))
        rows += _rows(sample, found, data)
        sure = above(found, images.threshold)
        picture = images.output / PICTURES / file.relative_to(root)
        picture.parent.mkdir(parents=True, exist_ok=True)
        save(draw(rgb(record), sure, data.classes, skeleton(data)), picture)
        if number % LOG_PERIOD == 0:
            log.info("%d of %d images", number, len(files))
    write_text(images.output / DETECTIONS, json.dumps(rows))
    done = len(files) - len(broken)
    log.info("%d images, %d detections: %s", done, len(rows), images.output / DETECTIONS)
    if broken:
        raise InputError(
            f"{len(broken)} of {len(files)} images could not be read and have no result, the "
            f"others are done: {broken[0]}"
        )


def _classes(job: Job) -> Dataset:
    """The data set whose classes the detector knows: --test-data, or as its run folder says."""
    begun = Path(job.weights).parent / BEGUN
    trained = tuple(json.loads(begun.read_text())["classes"]) if begun.is_file() else None
    if not job.test_data and trained is None:
        raise InputError(
            f"the names of the classes are not known, for there is no {begun}: give the weights "
            "in their run folder, or --test-data with a data set that has the same classes"
        )
    if not job.test_data:
        return Dataset("images", [], trained or (), "coco", {})
    data = get_dataset(job.test_data[0])
    if trained is not None and trained != data.classes:
        raise InputError(
            f"{job.weights} was trained on the classes {', '.join(trained)} ({begun}), but "
            f"{data.name} has {', '.join(data.classes)}: leave --test-data out"
        )
    return data


def _detector(job: Job, data: Dataset) -> tuple[CfgNode, Predictor]:
    engine, reason = select_engine(job.engine)
    log.info("engine: %s (%s)", engine.name, reason)
    cfg = load_cfg(job.recipe, job.overrides, engine.base_cfg())
    use_what_there_is(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.classes)
    engine.check(cfg)
    check_detector_conventions(cfg, job.weights)
    model = engine.build_model(cfg)
    load_detector(model, job.weights)
    return cfg, engine.predictor(model)


def _make_folder(output: Path) -> None:
    """A new or empty folder, so that no picture replaces another, or an original."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        used = any(output.iterdir())
    except OSError as error:
        raise InputError(f"cannot make the folder {output}: {error.strerror}") from error
    if used:
        raise InputError(f"--output {output} is not empty: name a new folder")


def _rows(sample: dict[str, Any], found: dict[str, Any], data: Dataset) -> list[dict[str, Any]]:
    """COCO results with the classes' names, masks run-length encoded."""
    rows = result_rows(sample, found)
    for i, row in enumerate(rows):
        row["category_name"] = data.classes[row["category_id"]]
        if "masks" in found:
            mask = mask_util.encode(np.asfortranarray(found["masks"][i].numpy(), np.uint8))
            row["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}
    return rows
