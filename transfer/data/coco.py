"""Reader of data sets described by a COCO JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from runtime.errors import InputError
from transfer.data.dataset import WHERE_DATA_IS, XYWH, Dataset, Findings, Record, inside
from transfer.data.keypoints import read_keypoint_names
from transfer.data.masks import LARGEST_IMAGE, check_coordinates, read_polygons, read_rle

Parts = dict[str, list[dict[str, Any]]]  # the lists of a COCO file
FindImage = Callable[[Record, str], str]  # (entry of "images", where it stands) -> its file

_PARTS = ("images", "annotations", "categories")


def load_coco(
    name: str, json_file: str, image_root: str, classes: Sequence[str] | None = None
) -> Dataset:
    """Read ``json_file``; its images lie in ``image_root``.

    As Detectron2: categories and images in the order of their ids, contiguous class numbers,
    boxes XYWH in pixels as written, keypoints moved by half a pixel, ``info`` not needed. Each
    annotation also keeps ``area``, for the evaluator. What Detectron2 drops or clips without a
    word is counted in ``metadata["notes"]``. ``classes`` gives another order of the categories,
    by their names.

    Raises :class:`InputError` for anything that is missing, malformed or contradicts itself.
    """
    parts = read_parts(json_file)
    category_ids, names = read_categories(parts["categories"], json_file)
    if classes is not None:
        _check_same(classes, names, json_file)
        category_ids = [category_ids[names.index(label)] for label in classes]
        names = tuple(classes)
    records, notes = read_records(
        parts, category_ids, json_file, partial(find_by_file_name, image_root)
    )
    metadata: dict[str, Any] = {
        "json_file": json_file,
        "image_root": image_root,
        "category_ids": category_ids,
        "notes": notes,
    }
    if keypoints := read_keypoint_names(parts["categories"], json_file):
        metadata["keypoints"] = keypoints
    return Dataset(name, records, names, "coco", metadata)


def _check_same(classes: Sequence[str], names: Sequence[str], path: str) -> None:
    for label in classes:
        if label not in names:
            raise InputError(f"class {label!r} is not among the categories of {path}")
    for label in names:
        if label not in classes:
            raise InputError(f"{path}: category {label!r} is not among the class names given")


def read_records(
    parts: Parts, category_ids: Sequence[int], path: str, find: FindImage
) -> tuple[list[Record], list[str]]:
    """The images in the order of their ids, with their annotations, and remarks on them.

    ``category_ids[i]`` is the file's id of class i. :class:`InputError` for the first problem.
    """
    findings = Findings()
    images = _read_images(parts["images"], path, find, findings)
    contiguous = {category: i for i, category in enumerate(category_ids)}
    for annotation in parts["annotations"]:
        where = f"{path}: annotation {annotation.get('id')!r}"
        try:
            _add_annotation(annotation, images, contiguous, findings)
        except InputError as error:
            findings.problem(f"{where}: {error}")
    if "minival" not in path:  # the well-known COCO 2014 files repeat some ids; harmless
        _check_unique(parts["annotations"], path, "annotation", findings)
    findings.refuse()
    return [images[i] for i in sorted(images)], findings.notes


def read_parts(path: str) -> Parts:
    """The lists ``images``, ``annotations`` and ``categories`` of a COCO file."""
    content = _read_json(path)
    return {part: _objects(content, part, path) for part in _PARTS}


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            content = json.loads(stream.read(), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {WHERE_DATA_IS}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object with the lists {', '.join(_PARTS)}")
    return content


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _objects(content: dict[str, Any], part: str, path: str) -> list[dict[str, Any]]:
    items = content.get(part)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(f"{path}: {part!r} must be a list of objects")
    return items


def _check_unique(items: list[dict[str, Any]], path: str, what: str, findings: Findings) -> None:
    seen = set()
    for item in items:
        if type(item.get("id")) is not int:
            findings.problem(f"{path}: {what} id {item.get('id')!r} must be a whole number")
        elif item["id"] in seen:
            findings.problem(f"{path}: {what} id {item['id']} occurs more than once")
        else:
            seen.add(item["id"])


def read_categories(
    categories: list[dict[str, Any]], path: str
) -> tuple[list[int], tuple[str, ...]]:
    """Ids and names in the order of the ids."""
    findings = Findings()
    _check_unique(categories, path, "category", findings)
    findings.refuse()
    names: dict[int, Any] = {item["id"]: item.get("name") for item in categories}
    ids = sorted(names)
    classes = [names[i] for i in ids]
    if not classes or not all(isinstance(label, str) and label for label in classes):
        raise InputError(f"{path}: 'categories' must list at least one, each with a name")
    if len(set(classes)) != len(classes):
        raise InputError(f"{path}: two categories have the same name; rename one")
    return ids, tuple(classes)


def _read_images(
    images: list[dict[str, Any]], path: str, find: FindImage, findings: Findings
) -> dict[int, Record]:
    _check_unique(images, path, "image", findings)
    findings.refuse()
    records: dict[int, Record] = {}
    for image in images:
        try:
            records[image["id"]] = _read_image(image, find, f"{path}: image {image['id']}")
        except InputError as error:
            findings.problem(str(error))
    findings.refuse()
    if not records:
        raise InputError(f"{path} lists no images")
    return records


def _read_image(image: dict[str, Any], find: FindImage, where: str) -> Record:
    height, width = image.get("height"), image.get("width")
    if type(height) is not int or type(width) is not int or height <= 0 or width <= 0:
        raise InputError(f"{where}: height and width must be positive whole numbers")
    if height * width > LARGEST_IMAGE:
        raise InputError(f"{where}: {width} x {height} pixels are more than {LARGEST_IMAGE}")
    file_name = find(image, where)
    if not os.path.isfile(file_name):
        raise InputError(f"{where}: {file_name} is missing")
    return {
        "file_name": file_name,
        "height": height,
        "width": width,
        "image_id": image["id"],
        "annotations": [],
    }


def find_by_file_name(root: str, image: Record, where: str) -> str:
    """The path that the image's ``file_name`` names below ``root``."""
    name = image.get("file_name")
    if not isinstance(name, str):
        raise InputError(f"{where}: file_name must be a string, not {name!r}")
    return inside(root, name, where)


def _add_annotation(
    raw: dict[str, Any], images: dict[int, Record], contiguous: dict[int, int], findings: Findings
) -> None:
    image_id, category = raw.get("image_id"), raw.get("category_id")
    if type(image_id) is not int or type(category) is not int:
        raise InputError("image_id and category_id must be whole numbers")
    if category not in contiguous:
        raise InputError(f"category_id {category} is not among the file's categories")
    if raw.get("iscrowd", 0) not in (0, 1):
        raise InputError(f"iscrowd must be 0 or 1, not {raw['iscrowd']!r}")
    if raw.get("ignore"):
        raise InputError("'ignore' is not supported; use iscrowd")
    if image_id not in images:
        findings.note("annotations of images that the file does not list: left out")
        return
    record = images[image_id]
    height, width = record["height"], record["width"]
    annotation: Record = {
        "iscrowd": int(raw.get("iscrowd", 0)),
        "bbox": _read_box(raw.get("bbox"), height, width, findings),
        "bbox_mode": XYWH,
        "category_id": contiguous[category],
    }
    annotation["area"] = _read_area(raw, annotation["bbox"], findings)
    if raw.get("keypoints"):
        annotation["keypoints"] = _read_keypoints(raw["keypoints"], height, width)
    if raw.get("segmentation"):
        mask = _read_mask(raw["segmentation"], height, width, findings)
        if not mask:
            findings.note("annotations without any valid polygon: left out")
            return
        annotation["segmentation"] = mask
    record["annotations"].append(annotation)


def _read_box(box: Any, height: int, width: int, findings: Findings) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        raise InputError(f"bbox must be four numbers x, y, width, height, not {box!r:.80}")
    check_coordinates(box, height, width)
    x, y, w, h = box
    if w < 0 or h < 0:
        raise InputError(f"bbox {box} has a negative side")
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        findings.note("boxes are empty or outside their image: not trained on")
    elif min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
        findings.note("boxes reach more than a pixel outside their image: clipped in training")
    return box


def _read_area(raw: dict[str, Any], box: list[float], findings: Findings) -> float:
    if "area" not in raw:
        findings.note("annotations without area: the box's is used (for APs, APm and APl)")
        return box[2] * box[3]
    area = raw["area"]
    if type(area) not in (int, float) or not 0 <= area < 1e12:
        raise InputError(f"area must be a number that is not negative, not {area!r}")
    return float(area)


def _read_keypoints(values: Any, height: int, width: int) -> list[float]:
    check_coordinates(values, height, width)
    if len(values) % 3:
        raise InputError("keypoints must be triples x, y, visibility")
    # Detectron2: keypoints name pixels, boxes and polygons measure from the image's edge
    return [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(values)]


def _read_mask(mask: Any, height: int, width: int, findings: Findings) -> Any:
    if isinstance(mask, dict):
        return read_rle(mask, height, width)
    if isinstance(mask, list):
        return read_polygons(mask, height, width, findings)
    raise InputError(f"segmentation must be polygons or a run-length mask, not {type(mask)}")
