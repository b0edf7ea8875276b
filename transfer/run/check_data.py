"""Look at the data of a recipe before anything is trained on it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from runtime.errors import InputError
from runtime.files import sha256
from transfer.data.catalog import check_classes, get_dataset, training_records
from transfer.data.dataset import Dataset, Record, xywh
from transfer.data.images import read_image
from transfer.engines.select import select_engine
from transfer.recipe.load import load_cfg
from transfer.run.job import Job

SMALL, MEDIUM = 32**2, 96**2  # pixels: COCO's bounds of small and medium areas


def check_data(job: Job, decode: bool = False) -> None:
    """Print what is in the data sets of ``job``; InputError for the first fault.

    Faults are whatever the readers refuse, data sets with different classes, objects without the
    masks that the recipe needs, images of a test set among the training images and, with
    ``decode``, images that cannot be read. Images are the same if their files are, byte for byte,
    or with ``decode`` if their pixels are.
    """
    engine, _ = select_engine(job.engine)
    cfg = load_cfg(job.recipe, job.overrides, engine.base_cfg())
    cfg.DATASETS.TRAIN = tuple(job.train_data) or cfg.DATASETS.TRAIN
    cfg.DATASETS.TEST = tuple(job.test_data) or cfg.DATASETS.TEST
    sets: dict[str, list[Dataset]] = {}
    for use, names in (("train", cfg.DATASETS.TRAIN), ("test", cfg.DATASETS.TEST)):
        sets[use] = []
        for name in names:
            dataset = get_dataset(name)
            print(f"{use}: {name}", *_description(dataset), sep="\n  ", flush=True)
            sets[use].append(dataset)
    check_classes([*sets["train"], *sets["test"]])
    if sets["train"]:
        usable = training_records(cfg, sets["train"])
        print(f"{len(usable)} images to train on")
        if unknown := _present(sets["test"]) - _present(sets["train"]):
            print(f"note: tested but never trained: {', '.join(sorted(unknown))}")
    train, test = (_images(sets[use], decode) for use in ("train", "test"))
    _check_leak(train, test)
    print("no fault found")


def _description(data: Dataset) -> Iterator[str]:
    annotated = sum(bool(record["annotations"]) for record in data.records)
    objects = [a for record in data.records for a in record["annotations"]]
    crowds = sum(a["iscrowd"] for a in objects)
    yield (
        f"{len(data.records)} images, {annotated} of them with objects; {len(objects)} objects, "
        f"{crowds} crowds among them; evaluated as {data.evaluator}"
    )
    counts = Counter(a["category_id"] for a in objects)
    images = Counter(c for r in data.records for c in {a["category_id"] for a in r["annotations"]})
    for i, name in enumerate(data.classes):
        shown = json.dumps(name, ensure_ascii=False)  # on one line, whatever it holds
        yield f"{shown:24} {counts[i]:7} objects in {images[i]:6} images"
    if objects:
        yield from _sizes([xywh(a)[2:] for a in objects])
    for note in data.metadata.get("notes", ()):
        yield f"note: {note}"


def _present(sets: Sequence[Dataset]) -> set[str]:
    """Names of the classes that have objects."""
    return {
        data.classes[a["category_id"]]
        for data in sets
        for record in data.records
        for a in record["annotations"]
    }


def _sizes(sides: Sequence[Sequence[float]]) -> Iterator[str]:
    areas = np.prod(sides, axis=1)
    small, medium = (areas < SMALL).mean(), ((areas >= SMALL) & (areas < MEDIUM)).mean()
    yield (
        f"boxes: {small:.0%} small (below 32² pixels), {medium:.0%} medium, "
        f"{1 - small - medium:.0%} large (from 96²)"
    )
    least, middle, most = np.percentile(np.min(sides, axis=1), (5, 50, 95))
    yield f"shorter side of a box: {least:.0f}, {middle:.0f}, {most:.0f} pixels (5, 50, 95 %)"


def _images(sets: Sequence[Dataset], decode: bool) -> dict[str, str]:
    """Digest of file or pixels → file name, for all images."""
    found = {}
    for dataset in sets:
        for record in dataset.records:
            found[_pixels(record) if decode else sha256(record["file_name"])] = record["file_name"]
    return found


def _pixels(record: Record) -> str:
    image = read_image(record, "RGB")
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _check_leak(train: dict[str, str], test: dict[str, str]) -> None:
    both = [(train[digest], name) for digest, name in test.items() if digest in train]
    if both:
        raise InputError(
            f"{len(both)} of {len(test)} test images are training images, too: {both[0][1]} is the "
            f"same as {both[0][0]}; take them out of one of the sets"
        )
