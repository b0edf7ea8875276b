"""Data sets by name: Detectron2's built-in names, and forms for users' own data."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from runtime.errors import InputError
from transfer.data.cityscapes import load_cityscapes
from transfer.data.coco import load_coco
from transfer.data.coco_folder import load_folder
from transfer.data.dataset import Dataset, Record
from transfer.data.keypoints import training_keypoints
from transfer.data.lvis import load_lvis
from transfer.data.masks import require_masks
from transfer.data.voc import VOC_CLASSES, load_voc

__all__ = ["FORMS", "Dataset", "check_classes", "get_dataset", "training_records"]

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
_LVIS_CLASSES = {"v0.5": 1230, "v1": 1203}
_LVIS_SPLITS = {"v0.5": ("train", "val", "val_rand_100"), "v1": ("train", "val")}
# forms for users' own data: name -> (how it is written, its reader of (name, first, second))
_FORMS: dict[str, tuple[str, Callable[[str, str, str], Dataset]]] = {
    "voc": ("voc:DIR:SPLIT", partial(load_voc, year=2012)),
    "coco": ("coco:JSON:IMAGE_DIR", load_coco),
    "folder": ("folder:DIR:SPLIT", load_folder),
    "lvis": ("lvis:JSON:IMAGE_DIR", load_lvis),
    "cityscapes": ("cityscapes:DIR:SPLIT", load_cityscapes),
}
FORMS = ", ".join(written for written, _ in _FORMS.values())


def get_dataset(name: str) -> Dataset:
    """Load and validate the data set ``name``.

    ``name`` is one of Detectron2's (``voc_2007_trainval``, ``coco_2017_val``, ``lvis_v1_train``,
    ..., found below $DETECTRON2_DATASETS, default "datasets"), or one of

    - ``voc:DIR:SPLIT``: DIR holds Annotations, JPEGImages and ImageSets/Main/SPLIT.txt;
    - ``coco:JSON:IMAGE_DIR``;
    - ``folder:DIR:SPLIT``: DIR holds a COCO JSON for each split, the images, and the class names
      in ``classes.txt``, one a line, whose order is the order of the classes
      (:func:`~transfer.data.coco_folder.load_folder`);
    - ``lvis:JSON:IMAGE_DIR``: IMAGE_DIR holds COCO's folders train2017 and so on;
    - ``cityscapes:DIR:SPLIT``: DIR holds leftImg8bit and gtFine.

    Raises :class:`InputError` with one line that names the file and the problem.
    """
    form, _, rest = name.partition(":")
    if form not in _FORMS:
        return _built_in(name)
    first, _, second = rest.rpartition(":")
    written, load = _FORMS[form]
    if not (first and second):
        raise InputError(f"data set {name!r}: write {written}")
    return load(name, first, second)


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
    for version, splits in _LVIS_SPLITS.items():
        for split in splits:
            if name == f"lvis_{version}_{split}":
                json_file = os.path.join(root, "lvis", f"{name}.json")
                folder = os.path.join(root, "coco")
                return load_lvis(name, json_file, folder, _LVIS_CLASSES[version])
    for split in ("train", "val", "test"):
        if name == f"cityscapes_fine_instance_seg_{split}":
            return load_cityscapes(name, os.path.join(root, "cityscapes"), split)
    raise InputError(
        f"unknown data set {name!r}: use a built-in name such as voc_2007_trainval, "
        f"coco_2017_train or lvis_v1_train, or write {FORMS}"
    )


def check_classes(datasets: Sequence[Dataset]) -> None:
    """InputError where the data sets have not all the same classes in the same order."""
    for dataset in datasets[1:]:
        if dataset.classes != datasets[0].classes:
            raise InputError(
                f"data sets {datasets[0].name} and {dataset.name} have different classes: "
                f"{', '.join(datasets[0].classes)} against {', '.join(dataset.classes)}"
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
    check_classes(datasets)
    records = [record for dataset in datasets for record in dataset.records]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        usable = [r for r in records if any(not a["iscrowd"] for a in r["annotations"])]
        dropped = len(records) - len(usable)
        if dropped:
            logging.getLogger(__name__).info("%d images without objects are not used", dropped)
        records = usable
    if cfg.MODEL.get("KEYPOINT_ON", False):  # a recipe table may leave it out
        records = training_keypoints(cfg, datasets, records)
    if not records:
        raise InputError(f"no image of {', '.join(cfg.DATASETS.TRAIN)} has an object to train on")
    if cfg.MODEL.MASK_ON:
        require_masks(records, cfg.INPUT.MASK_FORMAT)
    return records
