"""Every built-in data set in its own layout, some images of each, generated or real photos."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cityscapes_synthetic import write_cityscapes
from data_synthetic import SHARED, random_coco, random_lvis, random_voc
from keypoints_synthetic import write_keypoints

from transfer.data.voc import VOC_CLASSES

IMAGES = 6  # in each split
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
_SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
PERSON = ("nose", *(f"{side}_{part}" for part in _SIDED for side in ("left", "right")))
COCO_IDS = [*range(1, 80), 90]


def write_generated(root: Path) -> Path:
    """VOC, COCO, LVIS and Cityscapes below ``root``, which $DETECTRON2_DATASETS may name."""
    for year in (2007, 2012):
        folder = random_voc(root / f"VOC{year}", list(VOC_CLASSES), IMAGES, seed=year)
        ids = (folder / "ImageSets/Main/train.txt").read_text()
        _write_splits(root, year, ids.split())
    content = json.loads(Path(random_coco(root / "coco", IMAGES)[0]).read_text())
    content["categories"] = [{"id": i, "name": f"class{i}"} for i in COCO_IDS]
    (root / "coco/images").rename(root / "coco/train2017")
    (root / "coco/val2017").symlink_to("train2017")
    _write_coco(root, "instances", dict.fromkeys(("train", "val"), content))
    people = json.loads(Path(write_keypoints(root / "people", IMAGES, names=PERSON)[0]).read_text())
    for image in people["images"]:
        (root / "people/images" / image["file_name"]).rename(
            root / f"coco/val2017/person_{image['file_name']}"
        )
        image["file_name"] = f"person_{image['file_name']}"
    people["categories"][0] |= {"name": "person", "skeleton": [[1, 2], [16, 17]]}
    _write_coco(root, "person_keypoints", dict.fromkeys(("train", "val"), people))
    content = json.loads(Path(random_lvis(root / "lvis", IMAGES)[0]).read_text())
    for image in content["images"]:
        name = image["coco_url"].split("/")[-1]
        (root / "lvis/images/val2017" / name).rename(root / f"coco/val2017/lvis_{name}")
        image["coco_url"] = f"http://x/val2017/lvis_{name}"
    _write_lvis(root, content)
    write_cityscapes(root / "cityscapes", {"train": IMAGES, "val": 2})
    return root


def write_real(root: Path) -> Path:
    """The same from the sample photos of VOC, COCO and LVIS; Cityscapes' may not be passed on."""
    photos = SHARED / "voc100"
    ids = sorted(path.stem for path in (photos / "images").iterdir())[:IMAGES]
    for year in (2007, 2012):
        (root / f"VOC{year}").mkdir(parents=True)
        (root / f"VOC{year}/JPEGImages").symlink_to(photos / "images")
        (root / f"VOC{year}/Annotations").symlink_to(photos / "gts/pascalvoc_format")
        _write_splits(root, year, ids)
    for split in ("train", "val"):
        (root / f"coco/{split}2017").mkdir(parents=True)
        _link(root / f"coco/{split}2017", (SHARED / f"tiny_coco/{split}2017").iterdir())
    for kind in ("instances", "person_keypoints"):
        files = {s: SHARED / f"tiny_coco/annotations/{kind}_{s}2017.json" for s in ("train", "val")}
        _write_coco(root, kind, {s: _first(json.loads(f.read_text())) for s, f in files.items()})
    _link(root / "coco/val2017", (SHARED / "lvis3/val2017").iterdir())
    _write_lvis(root, json.loads((SHARED / "lvis3/lvis_v0.5_dev_3.json").read_text()))
    write_cityscapes(root / "cityscapes", {"train": IMAGES, "val": 2})
    return root


def _link(folder: Path, files: Iterable[Path]) -> None:
    for file in files:
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)


def _write_splits(root: Path, year: int, ids: list[str]) -> None:
    folder = root / f"VOC{year}/ImageSets/Main"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("trainval", "test"):
        (folder / f"{split}.txt").write_text("\n".join(ids) + "\n")


def _first(content: dict[str, Any]) -> dict[str, Any]:
    """The first images that have objects, with their annotations."""
    marked = {annotation["image_id"] for annotation in content["annotations"]}
    images = [image for image in content["images"] if image["id"] in marked][:IMAGES]
    ids = {image["id"] for image in images}
    kept = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    return content | {"images": images, "annotations": kept}


def _write_coco(root: Path, kind: str, splits: dict[str, dict[str, Any]]) -> None:
    folder = root / "coco/annotations"
    folder.mkdir(exist_ok=True)
    for split, content in splits.items():
        (folder / f"{kind}_{split}2017.json").write_text(json.dumps(content))


def _write_lvis(root: Path, content: dict[str, Any]) -> None:
    """Both versions with all their classes; images below ``coco/val2017``."""
    (root / "lvis").mkdir(exist_ok=True)
    given = {category["id"]: category for category in content["categories"]}
    unseen = {"frequency": "r", "image_count": 1}
    for image in content["images"]:
        name = image.get("coco_url", image.get("file_name", "")).split("/")[-1]
        image["coco_url"] = f"http://x/val2017/{name.removeprefix('COCO_val2014_')}"
    for version, classes in (("v0.5", 1230), ("v1", 1203)):
        every = [given.get(i, unseen | {"id": i, "name": f"c{i}"}) for i in range(1, classes + 1)]
        kept = [entry for entry in content["annotations"] if entry["category_id"] <= classes]
        images = [image | _known(image, classes) for image in content["images"]]
        parts = {"images": images, "annotations": kept, "categories": every}
        for split in ("train", "val"):
            (root / f"lvis/lvis_{version}_{split}.json").write_text(json.dumps(parts))


def _known(image: dict[str, Any], classes: int) -> dict[str, list[int]]:
    return {key: [i for i in image.get(key, []) if i <= classes] for key in _LISTS}
