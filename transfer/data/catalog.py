"""Data sets by name: Detectron2's built-in names, and two forms for users' own data."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from runtime.errors import InputError
from transfer.data.coco import load_coco
from transfer.data.dataset import Dataset, Record
from transfer.data.masks import require_masks
from transfer.data.voc import VOC_CLASSES, load_voc

__all__ = ["Dataset", "get_dataset", "training_records"]

_VOC_SPLITS = {2007: ("trainval", "train", "val", "test"), 2012: ("trainval", "train", "val")}
_COCO_SPLITS = {  # name -> (images below coco/, end of the annotation file's name)
    "2014_train": ("train2014", "train2014"),
    "2014_val": ("val2014", "val2014"),
    "2014_minival": ("val2014", "minival2014"),
    "2014_valminusminival": ("val2014", "valminusminival2014"),
    "2017_train": ("train2017", "train2017"),
    "2017_val": ("val2017", "val2017"),
    "2017_val_100": ("val2017", "val2017_100"),
}
_COCO_FILES = {"coco": "instances", "keypoints_coco": "person_keypoints"}


def get_dataset(name: str) -> Dataset:
    """Load and validate the data set ``name``.

    ``name`` is one of Detectron2's (``voc_2007_trainval``, ``coco_2017_val``, ..., found below
    $DETECTRON2_DATASETS, default "datasets"), or ``voc:DIR:SPLIT`` (DIR holds Annotations,
    JPEGImages and ImageSets/Main/SPLIT.txt), or ``coco:JSON:IMAGE_DIR``.

    Raises :class:`InputError` with one line that names the file and the problem.
    """
    form, _, rest = name.partition(":")
    first, _, second = rest.rpartition(":")
    if form in ("voc", "coco") and not (first and second):
        raise InputError(f"data set {name!r}: write voc:DIR:SPLIT or coco:JSON:IMAGE_DIR")
    if form == "voc":
        return load_voc(name, first, second, year=2012)
    if form == "coco":
        return load_coco(name, first, second)
    return _built_in(name)


def _built_in(name: str) -> Dataset:
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    for year, splits in _VOC_SPLITS.items():
        for split in splits:
            if name == f"voc_{year}_{split}":
                folder = os.path.join(root, f"VOC{year}")
                return load_voc(name, folder, split, year, VOC_CLASSES)
    for kind, stem in _COCO_FILES.items():
        for split, (images, end) in _COCO_SPLITS.items():
            if name == f"{kind}_{split}":
                json_file = os.path.join(root, "coco/annotations", f"{stem}_{end}.json")
                return load_coco(name, json_file, os.path.join(root, "coco", images))
    raise InputError(
        f"unknown data set {name!r}: use a built-in name such as voc_2007_trainval or "
        "coco_2017_train, or voc:DIR:SPLIT, or coco:JSON:IMAGE_DIR"
    )


def training_records(cfg: Any, datasets: Sequence[Dataset] = ()) -> list[Record]:
    """The images to train on: all of DATASETS.TRAIN, one after the other.

    ``datasets`` are those of DATASETS.TRAIN if they are loaded already.

    As Detectron2, images without an object that is not a crowd are left out if
    DATALOADER.FILTER_EMPTY_ANNOTATIONS. Raises :class:`InputError` where the data sets' classes
    differ, an image has no mask that MODEL.MASK_ON needs, or nothing is left.
    """
    datasets = list(datasets) or [get_dataset(name) for name in cfg.DATASETS.TRAIN]
    if not datasets:
        raise InputError("DATASETS.TRAIN names no data set")
    for other in datasets[1:]:
        if other.classes != datasets[0].classes:
            raise InputError(
                f"data sets {datasets[0].name} and {other.name} have different classes: "
                f"{', '.join(datasets[0].classes)} against {', '.join(other.classes)}"
            )
    records = [record for dataset in datasets for record in dataset.records]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        usable = [r for r in records if any(not a["iscrowd"] for a in r["annotations"])]
        dropped = len(records) - len(usable)
        if dropped:
            logging.getLogger(__name__).info("%d images without objects are not used", dropped)
        records = usable
    if not records:
        raise InputError(f"no image of {', '.join(cfg.DATASETS.TRAIN)} has an object to train on")
    if cfg.MODEL.MASK_ON:
        require_masks(records, cfg.INPUT.MASK_FORMAT)
    return records
