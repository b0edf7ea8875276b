"""The demo's data on the disk: class folders to pretrain on, a VOC data set to detect in.

OUT/pretrain/CLASS/0000.jpg       one object a picture
OUT/voc/JPEGImages/train_000.jpg  one to four objects a picture, other backgrounds
OUT/voc/Annotations/train_000.xml
OUT/voc/ImageSets/Main/train.txt  (and test.txt)
OUT/voc/labels.txt                the class names
OUT/demo_data.json                what was made, and the mark that this program made it
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import cv2

from demo.scenes import CLASSES, Box, Image, portrait, scene
from runtime.errors import InputError
from runtime.randomness import generator

MARK = "demo_data.json"
CONTENT = {MARK, "pretrain", "voc"}
JPEG_QUALITY = 92


@dataclass(frozen=True)
class DataRecipe:
    """How much of what. Sizes in pixels; every picture depends on ``seed`` and its own number."""

    seed: int = 0
    portraits_per_class: int = 400
    portrait_size: int = 80
    train_scenes: int = 48
    test_scenes: int = 100
    scene_height: int = 128
    scene_width: int = 160
    object_radii: tuple[float, float] = (18.0, 34.0)


def make(out: Path, recipe: DataRecipe) -> None:
    """Write the whole folder ``out``, or nothing.

    It is built beside ``out`` and renamed at the end. An earlier folder of this program is
    replaced; :class:`InputError` where ``out`` holds anything else.
    """
    out = out.resolve()
    _refuse_foreign(out)
    if recipe.seed < 0:
        raise InputError(f"--seed {recipe.seed} must be 0 or more")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        new = work / "new"
        _write_portraits(new / "pretrain", recipe)
        _write_voc(new / "voc", recipe)
        (new / MARK).write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(work / "old")
        new.rename(out)
    finally:
        shutil.rmtree(work)


def _refuse_foreign(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{str(out)!r} is a file: name a folder for the demo's data")
    names = {path.name for path in out.iterdir()}
    if names and (MARK not in names or names - CONTENT):
        raise InputError(
            f"{str(out)!r} is not empty and holds more than the demo's data: name another folder"
        )


def _write_portraits(folder: Path, recipe: DataRecipe) -> None:
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(recipe.portraits_per_class):
            rng = generator(recipe.seed, "portrait", number, index)
            image = portrait(name, recipe.portrait_size, rng)
            _write_jpeg(folder / name / f"{index:04d}.jpg", image)


def _write_voc(folder: Path, recipe: DataRecipe) -> None:
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    names = list(CLASSES)
    for split, count in (("train", recipe.train_scenes), ("test", recipe.test_scenes)):
        image_ids = [f"{split}_{index:03d}" for index in range(count)]
        for index, image_id in enumerate(image_ids):
            image, boxes = scene(
                names[index % len(names)],
                recipe.scene_height,
                recipe.scene_width,
                recipe.object_radii,
                generator(recipe.seed, f"{split} scene", index),
            )
            _write_jpeg(folder / "JPEGImages" / f"{image_id}.jpg", image)
            xml = annotation(image_id, image, boxes)
            (folder / "Annotations" / f"{image_id}.xml").write_text(xml, encoding="utf-8")
        listing = "\n".join(image_ids) + "\n"
        (folder / f"ImageSets/Main/{split}.txt").write_text(listing, encoding="utf-8")


def _write_jpeg(path: Path, image: Image) -> None:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
        raise OSError(f"could not write {path}")


def annotation(image_id: str, image: Image, boxes: list[Box]) -> str:
    """The VOC annotation of one picture. VOC counts pixels from 1 and includes the last one."""
    height, width = image.shape[:2]
    objects = "".join(
        f"  <object>\n    <name>{escape(box.name)}</name>\n    <difficult>0</difficult>\n"
        f"    <bndbox><xmin>{box.x0 + 1}</xmin><ymin>{box.y0 + 1}</ymin>"
        f"<xmax>{box.x1}</xmax><ymax>{box.y1}</ymax></bndbox>\n  </object>\n"
        for box in boxes
    )
    return (
        f"<annotation>\n  <filename>{image_id}.jpg</filename>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"{objects}</annotation>\n"
    )
