"""Reading and augmenting training images: our loader and Detectron2's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from PIL import Image

from benchmarks.timing import interleave, row, timed
from transfer.data.catalog import get_dataset, training_records
from transfer.data.dataset import Record
from transfer.data.images import read_image
from transfer.data.loader import build_train_loader
from transfer.engines.select import select_engine
from transfer.recipe.load import load_cfg

RECIPE = Path(__file__).resolve().parents[1] / "transfer/coco_R50_FPN_1x.yaml"
BATCHES, IMAGES = 8, 4
OVERRIDES = ("INPUT.MIN_SIZE_TRAIN", "(800,)", "SOLVER.IMS_PER_BATCH", str(IMAGES), "SEED", "1")


def measure(data: str, rounds: int, reference: bool) -> Iterator[str]:
    """Lines of the table: decoding alone, and whole samples (800 px, polygons, no workers)."""
    cfg = _cfg("embedded", data)
    records = training_records(cfg, [get_dataset(data)])
    decoders = {
        "reference": lambda: timed(lambda: [_pillow(r) for r in records]),
        "ours": lambda: timed(lambda: [read_image(r, "RGB").load() for r in records]),
    }
    times = interleave(decoders, rounds)
    yield row(
        "image decoding (Pillow)", "ms/image", times["reference"], times["ours"], len(records)
    )
    loaders = {"ours": _loop(lambda: build_train_loader(cfg, records, num_workers=0))}
    if reference:
        loaders["reference"] = _loop(lambda: _detectron2(_cfg("detectron2", data), records))
    times = interleave(loaders, rounds)
    title = "training samples, 800 px, polygons"
    yield row(title, "ms/image", times.get("reference"), times["ours"], BATCHES * IMAGES)


def _cfg(engine: str, data: str) -> CfgNode:
    cfg = load_cfg(str(RECIPE), OVERRIDES, select_engine(engine)[0].base_cfg())
    cfg.DATASETS.TRAIN = (data,)
    return cfg


def _pillow(record: Record) -> None:
    with Image.open(record["file_name"]) as image:
        image.convert("RGB").load()


def _loop(build: Callable[[], Any]) -> Callable[[], float]:
    return lambda: timed(lambda: list(itertools.islice(iter(build()), BATCHES)))


def _detectron2(cfg: CfgNode, records: list[Record]) -> Any:
    from detectron2.data import DatasetMapper, build_detection_train_loader

    return build_detection_train_loader(
        records, mapper=DatasetMapper(cfg, True), total_batch_size=IMAGES, num_workers=0
    )
