"""Reader of data sets in the layout of PASCAL VOC."""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from runtime.errors import InputError
from transfer.data.dataset import XYXY, Dataset, Findings, Record, inside, read_classes, read_lines

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle",
    "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_SUFFIXES = (".jpg", ".jpeg", ".png")


def load_voc(
    name: str, folder: str, split: str, year: int, classes: tuple[str, ...] | None = None
) -> Dataset:
    """Read ``folder``/{Annotations,JPEGImages,ImageSets/Main/``split``.txt}.

    As Detectron2: the image size comes from the XML; 1 is subtracted from xmin and ymin, so that
    boxes are continuous XYXY coordinates in pixels; difficult objects are kept. ``difficult`` is
    recorded with each annotation, for the evaluator. Without ``classes`` the names are read from
    ``folder``/labels.txt, or else found in all of Annotations (sorted), the same for each split.

    Raises :class:`InputError` for a missing file, a class outside the list, and a box that is
    empty or more than a pixel outside its image (many tools count from 0: that is noted).
    """
    image_ids = _read_split(folder, split)
    names = classes or _class_names(folder)
    index = {class_name: i for i, class_name in enumerate(names)}
    findings = Findings()
    records = []
    for image_id in image_ids:
        try:
            records.append(_read_record(folder, image_id, index, findings))
        except InputError as error:
            findings.problem(str(error))
    findings.refuse()
    metadata = {"dirname": folder, "split": split, "year": year, "notes": findings.notes}
    return Dataset(name, records, tuple(names), "voc", metadata)


def _read_split(folder: str, split: str) -> list[str]:
    path = os.path.join(folder, "ImageSets", "Main", f"{split}.txt")
    image_ids = read_lines(path)
    if not image_ids:
        raise InputError(f"{path} lists no images")
    repeated = len(image_ids) - len(set(image_ids))
    if repeated:
        raise InputError(f"{path} lists {repeated} images more than once; list each once")
    return image_ids


def _class_names(folder: str) -> tuple[str, ...]:
    labels = os.path.join(folder, "labels.txt")
    if os.path.exists(labels):
        return read_classes(labels)
    source = os.path.join(folder, "Annotations")
    files = sorted(Path(source).glob("*.xml"))
    found = {_text(thing, "name", str(f)) for f in files for thing in _read_objects(f)}
    if not found:
        raise InputError(f"{source} names no classes")
    return tuple(sorted(found))


def _read_objects(path: Path) -> list[ET.Element]:
    return _parse(str(path)).findall("object")


class _PlainTree(ET.TreeBuilder):
    """Builds the element tree, and refuses a DOCTYPE: it is how XML bombs are declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError("has a DOCTYPE declaration; VOC annotations have none: remove it")


def _parse(path: str) -> ET.Element:
    try:
        return ET.parse(path, ET.XMLParser(target=_PlainTree())).getroot()
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"cannot read annotation {path}: {error}") from error


def _read_record(
    folder: str, image_id: str, index: Mapping[str, int], findings: Findings
) -> Record:
    where = f"{folder}/ImageSets"
    path = inside(os.path.join(folder, "Annotations"), f"{image_id}.xml", where)
    root = _parse(path)
    height, width = (_integer(root, f"size/{side}", path) for side in ("height", "width"))
    if height <= 0 or width <= 0:
        raise InputError(f"{path}: image size {width} x {height} must be positive")
    return {
        "file_name": _find_image(folder, image_id),
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": [
            _read_object(thing, path, height, width, index, findings)
            for thing in root.findall("object")
        ],
    }


def _find_image(folder: str, image_id: str) -> str:
    stem = os.path.join(folder, "JPEGImages", image_id)
    for suffix in _SUFFIXES:
        if os.path.isfile(stem + suffix):
            return stem + suffix
    raise InputError(f"image {stem}.jpg is missing (nor is there {', '.join(_SUFFIXES[1:])})")


def _read_object(
    thing: ET.Element,
    path: str,
    height: int,
    width: int,
    index: Mapping[str, int],
    findings: Findings,
) -> Record:
    name = _text(thing, "name", path)
    if name not in index:
        raise InputError(f"{path}: class {name!r} is not one of: {', '.join(index)}")
    if thing.find("difficult") is None:
        findings.note("objects without <difficult> are taken as not difficult")
        difficult = 0
    else:
        difficult = _integer(thing, "difficult", path)
    if difficult not in (0, 1):
        raise InputError(f"{path}: <difficult> must be 0 or 1, not {difficult}")
    return {
        "category_id": index[name],
        "bbox": _read_box(thing, path, height, width, findings),
        "bbox_mode": XYXY,
        "iscrowd": 0,
        "difficult": difficult,
    }


def _read_box(
    thing: ET.Element, path: str, height: int, width: int, findings: Findings
) -> list[float]:
    box = [_number(thing, f"bndbox/{edge}", path) for edge in ("xmin", "ymin", "xmax", "ymax")]
    shown = ", ".join(f"{edge:g}" for edge in box)
    # VOC counts pixels from 1 and includes the last one; Detectron2 measures from the left edge
    box[0] -= 1.0
    box[1] -= 1.0
    x1, y1, x2, y2 = box
    if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
        raise InputError(f"{path}: box ({shown}) is outside the {width} x {height} image")
    if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
        raise InputError(f"{path}: box ({shown}) is empty; remove or repair it")
    if min(x1, y1) < 0 or x2 > width or y2 > height:
        findings.note("boxes reach up to a pixel outside their image (VOC counts from 1): clipped")
    return box


def _text(element: ET.Element, tag: str, path: str) -> str:
    text = element.findtext(tag)
    if not text:
        raise InputError(f"{path}: <{tag}> is missing or empty")
    return text


def _integer(element: ET.Element, tag: str, path: str) -> int:
    text = _text(element, tag, path)
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{path}: <{tag}> must be a whole number, not {text!r}") from None


def _number(element: ET.Element, tag: str, path: str) -> float:
    text = _text(element, tag, path)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: <{tag}> must be a number, not {text!r}")
    return value
