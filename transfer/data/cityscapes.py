"""Reader of Cityscapes: instances with fine annotations, from their polygons."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from runtime.distributed import world_size
from runtime.errors import InputError
from transfer.data.dataset import WHERE_DATA_IS, XYXY, Dataset, Findings, Record

_IMAGE, _POLYGONS, _INSTANCES = (
    "leftImg8bit.png",
    "gtFine_polygons.json",
    "gtFine_instanceIds.png",
)
_SIZE = (1024, 2048)  # height and width of the published images
_FEW = 100  # images that are read faster without processes to help


def load_cityscapes(name: str, root: str, split: str) -> Dataset:
    """Read ``root``/leftImg8bit/``split`` and ``root``/gtFine/``split``, a folder for each city.

    Records as of Detectron2's ``load_cityscapes_instances`` (polygons from the JSON files, where
    the later of two overlapping ones hides the earlier), in the order of the file names;
    ``category_id`` counts the eight classes with instances that are evaluated.

    Raises :class:`InputError` if a file is missing or damaged, if the image, the polygons and the
    instance ids of an image are of different sizes, or if cityscapesscripts or shapely is missing.
    """
    labels = cityscapes_labels()
    image_dir, gt_dir = (os.path.join(root, part, split) for part in ("leftImg8bit", "gtFine"))
    files = list(_find_images(image_dir, gt_dir))
    findings = Findings()
    records = []
    for result in _read_all(files):
        if isinstance(result, str):
            findings.problem(result)
        else:
            records.append(result)
    findings.refuse()
    contiguous = {label_id: i for i, label_id in enumerate(labels.instance_ids)}
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = contiguous[annotation["category_id"]]
        size = (record["height"], record["width"])
        if size != _SIZE:
            findings.note(f"images of {size[1]} x {size[0]}, Cityscapes' own are 2048 x 1024")
    if not any(record["annotations"] for record in records):
        findings.note(
            "split without any object (the test set's labels are not public): AP is undefined"
        )
    metadata = {"image_dir": image_dir, "gt_dir": gt_dir, "notes": findings.notes}
    return Dataset(name, records, labels.classes, "cityscapes", metadata)


def instance_file(file_name: str, gt_dir: str) -> str:
    """Path of the PNG of instance ids that belongs to an image."""
    city, stem = os.path.split(file_name.removesuffix(_IMAGE))
    return os.path.join(gt_dir, os.path.basename(city), stem + _INSTANCES)


@dataclass(frozen=True)
class Labels:
    """Cityscapes' table of labels.

    Attributes:
        instance_ids: label ids of the classes that are trained and evaluated.
        classes: their names, in the same order.
        ids: label name -> id, of all labels.
    """

    instance_ids: tuple[int, ...]
    classes: tuple[str, ...]
    ids: dict[str, int]


def cityscapes_labels() -> Labels:
    """The labels as cityscapesscripts has them; :class:`InputError` if it or shapely is missing."""
    try:
        import shapely  # noqa: F401
        from cityscapesscripts.helpers.labels import labels
    except ImportError as error:
        raise InputError(
            f"Cityscapes needs cityscapesscripts and shapely ({error}): "
            "pip install 'cityscapesscripts>=2.2' 'shapely>=2.0'"
        ) from error
    things = [label for label in labels if label.hasInstances and not label.ignoreInEval]
    return Labels(
        tuple(label.id for label in things),
        tuple(label.name for label in things),
        {label.name: label.id for label in labels},
    )


_Files = tuple[str, str, str]  # image, polygons, instance ids


def _find_images(image_dir: str, gt_dir: str) -> Iterator[_Files]:
    for folder in (image_dir, gt_dir):
        if not os.path.isdir(folder):
            raise InputError(f"{folder} is no folder; {WHERE_DATA_IS}")
    found = False
    for city in sorted(os.listdir(image_dir)):
        folder = os.path.join(image_dir, city)
        if not os.path.isdir(folder):
            continue
        for base in sorted(os.listdir(folder)):
            if not base.endswith(_IMAGE):
                raise InputError(f"{os.path.join(folder, base)}: names must end in {_IMAGE}")
            found = True
            image = os.path.join(folder, base)
            polygons = os.path.join(gt_dir, city, base.removesuffix(_IMAGE) + _POLYGONS)
            yield image, polygons, instance_file(image, gt_dir)
    if not found:
        raise InputError(f"{image_dir} holds no CITY/..._{_IMAGE}")


def _read_all(files: list[_Files]) -> list[Record | str]:
    """The records, or what is wrong with an image; minutes of work are shared by processes."""
    if len(files) <= _FEW:
        return [_read_or_say_why(one) for one in files]
    helpers = max(1, (os.cpu_count() or 1) // world_size())
    # spawned, as a process that has threads or a GPU must not be forked
    with ProcessPoolExecutor(helpers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_read_or_say_why, files, chunksize=16))


def _read_or_say_why(files: _Files) -> Record | str:
    try:
        return _read_image(*files)
    except InputError as error:
        return str(error)


def _read_image(image: str, polygons: str, instances: str) -> Record:
    try:
        with open(polygons, "rb") as stream:
            content = json.load(stream)
        height, width, objects = content["imgHeight"], content["imgWidth"], content["objects"]
    except OSError as error:
        raise InputError(f"cannot read {polygons}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{polygons} is no annotation of Cityscapes: {error!r}") from error
    for path in (image, instances):
        size = _size(path)
        if size != (width, height):
            raise InputError(
                f"{path} is {size[0]} x {size[1]}, but {polygons} says {width} x {height}: "
                "images and annotations must have the same resolution; use the files as published"
            )
    try:
        annotations = list(_annotations(objects))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{polygons}: malformed object: {error!r}") from error
    return {
        "file_name": image,
        "image_id": os.path.basename(image),
        "height": height,
        "width": width,
        "annotations": annotations,
    }


def _size(path: str) -> tuple[int, int]:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _annotations(objects: list[dict[str, Any]]) -> Iterator[Record]:
    """Objects from the last to the first: each loses what later ones hide, as in the PNG files."""
    from shapely.geometry import Polygon

    labels = cityscapes_labels()
    hidden: Any = Polygon()
    for entry in reversed(objects):
        if "deleted" in entry:
            continue
        name = entry["label"]
        group = name not in labels.ids and name.endswith("group")
        label_id = labels.ids[name.removesuffix("group") if group else name]
        if label_id < 0:
            continue
        # Vertices name pixels, hence the half; the PNG files' polygons are half a pixel fatter.
        corners = np.asarray(entry["polygon"], dtype=np.float32) + 0.5
        shape = Polygon(corners).buffer(0.5, quad_segs=4)
        visible = shape.difference(hidden)
        thing = label_id in labels.instance_ids
        if thing and visible.area == 0:
            continue
        hidden = hidden.union(shape)
        if thing:
            yield {
                "iscrowd": name.endswith("group"),
                "category_id": label_id,
                "segmentation": _outlines(visible),
                "bbox": visible.bounds,
                "bbox_mode": XYXY,
            }


def _outlines(shape: Any) -> list[list[float]]:
    """x1, y1, x2, y2, ... of each part that has an area; holes are filled, as in Detectron2."""
    parts = getattr(shape, "geoms", [shape])
    return [list(chain(*p.exterior.coords)) for p in parts if p.geom_type == "Polygon"]
