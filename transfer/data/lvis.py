"""Reader of LVIS annotation files, v0.5 and v1."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from runtime.errors import InputError
from transfer.data.coco import Parts, find_by_file_name, read_categories, read_parts, read_records
from transfer.data.dataset import Dataset, Record, inside

FREQUENCIES = ("r", "c", "f")  # rare, common, frequent
_LISTS = ("not_exhaustive_category_ids", "neg_category_ids")
_OLD_PREFIXES = ("COCO_train2014_", "COCO_val2014_", "COCO_test2015_")


def load_lvis(name: str, json_file: str, image_root: str, classes: int | None = None) -> Dataset:
    """Read ``json_file``; its images lie in COCO's folders (``train2017``, ...) in ``image_root``.

    As Detectron2's ``load_lvis_json``: an image is found by the folder and file of its
    ``coco_url`` (here it may also lie in ``image_root`` itself); each record keeps
    ``neg_category_ids`` and ``not_exhaustive_category_ids`` (the file's ids, which say where an
    absent object counts as absent). A file without ``coco_url`` names its images by ``file_name``,
    v0.5's prefix ``COCO_val2014_`` aside. A class has its first synonym for a name. ``classes`` is
    the number of classes that there must be, numbered from 1.

    ``metadata`` has ``frequency`` ("r", "c" or "f") and ``image_count`` (of the training set) of
    each class. Raises :class:`InputError` for anything missing or malformed, as for COCO, and
    unlike there for a mask with any bad polygon.
    """
    parts = read_parts(json_file)
    categories = [{**c, "name": _class_name(c)} for c in parts["categories"]]
    category_ids, names = read_categories(categories, json_file)
    if classes is not None and category_ids != list(range(1, classes + 1)):
        raise InputError(
            f"{json_file} must have the categories 1 to {classes} of {name}, it has "
            f"{len(category_ids)} from {category_ids[0]} to {category_ids[-1]}; "
            "for other data write lvis:JSON:IMAGE_DIR"
        )
    by_id = {c["id"]: _counts(c, json_file) for c in categories}
    for annotation in parts["annotations"]:
        _check_annotation(annotation, json_file)
    records, notes = read_records(parts, category_ids, json_file, partial(_find, image_root))
    _add_lists(records, parts, set(category_ids), json_file)
    metadata = {
        "json_file": json_file,
        "image_root": image_root,
        "category_ids": category_ids,
        "frequency": tuple(by_id[i][0] for i in category_ids),
        "image_count": tuple(by_id[i][1] for i in category_ids),
        "notes": notes,
    }
    return Dataset(name, records, names, "lvis", metadata)


def _class_name(category: dict[str, Any]) -> Any:
    synonyms = category.get("synonyms")
    return synonyms[0] if isinstance(synonyms, list) and synonyms else category.get("name")


def _counts(category: dict[str, Any], path: str) -> tuple[str, int]:
    frequency, count = category.get("frequency"), category.get("image_count")
    where = f"{path}: category {category['id']}"
    if frequency not in FREQUENCIES:
        raise InputError(f"{where}: frequency must be 'r', 'c' or 'f', not {frequency!r}")
    if type(count) is not int or count < 0:
        raise InputError(f"{where}: image_count must be a whole number, not {count!r}")
    return frequency, count


def _check_annotation(annotation: dict[str, Any], path: str) -> None:
    where, masks = f"{path}: annotation {annotation.get('id')!r}", annotation.get("segmentation")
    if not masks:
        raise InputError(f"{where} has no segmentation, which LVIS demands")
    if isinstance(masks, list) and any(
        isinstance(polygon, list) and (len(polygon) < 6 or len(polygon) % 2) for polygon in masks
    ):
        raise InputError(f"{where} has a polygon with fewer than 3 points or a half point")
    if annotation.get("iscrowd"):
        raise InputError(f"{where} is a crowd, which LVIS does not have; write coco:JSON:IMAGE_DIR")


def _find(root: str, image: Record, where: str) -> str:
    url = image.get("coco_url")
    if isinstance(url, str) and "/" in url:
        split, base = url.split("/")[-2:]
        flat = inside(root, base, where)  # of users who name the one folder
        return flat if os.path.isfile(flat) else inside(root, os.path.join(split, base), where)
    path = find_by_file_name(root, image, where)
    for prefix in _OLD_PREFIXES:
        folder, base = os.path.split(path)
        if base.startswith(prefix) and not os.path.isfile(path):
            path = os.path.join(folder, base[len(prefix) :])
    return path


def _add_lists(records: list[Record], parts: Parts, categories: set[int], path: str) -> None:
    images = {image["id"]: image for image in parts["images"]}
    for record in records:
        for key in _LISTS:
            ids = images[record["image_id"]].get(key, [])
            if not isinstance(ids, list) or not all(
                type(i) is int and i in categories for i in ids
            ):
                raise InputError(
                    f"{path}: image {record['image_id']}: {key} must list ids of the categories"
                )
            record[key] = ids
