"""Reading and augmenting training images: our loader and Detectron2's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from PIL import Image

from benchmarks.contestant import Contestant
from benchmarks.timing import interleave, row
from runtime.data_workers import start_worker
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
    """Lines of the table: decoding alone, and whole samples (800 px, polygons)."""
    names = ("reference", "ours") if reference else ("ours",)
    contestants = {name: Contestant(prepare, name, data) for name in names}
    for task, title in (
        ("decode", "image decoding (Pillow)"),
        ("load", "training samples, 800 px"),
    ):
        measures = {name: partial(c.run, task) for name, c in contestants.items()}
        times = interleave(measures, rounds)
        images = int(contestants["ours"].results[-1])
        yield row(title, "ms/image", times.get("reference"), times["ours"], images)
    for contestant in contestants.values():
        contestant.close()


def prepare(name: str, data: str) -> dict[str, Callable[[], int]]:
    """Decoding and loading as in a worker process, without the transport; give image counts."""
    torch.set_num_threads(1)
    cfg = _cfg("detectron2" if name == "reference" else "embedded", data)
    records = training_records(cfg, [get_dataset(data)])
    if name == "ours":
        start_worker(0)
        decode, build = partial(read_image, mode="RGB"), build_train_loader
    else:
        decode, build = _pillow, _detectron2

    def load() -> int:
        batches = itertools.islice(iter(build(cfg, records, num_workers=0)), BATCHES)
        return sum(len(batch) for batch in batches)

    return {"decode": lambda: len([len(decode(r).size) for r in records]), "load": load}


def _cfg(engine: str, data: str) -> CfgNode:
    cfg = load_cfg(str(RECIPE), OVERRIDES, select_engine(engine)[0].base_cfg())
    cfg.DATASETS.TRAIN = (data,)
    return cfg


def _pillow(record: Record) -> Image.Image:
    with Image.open(record["file_name"]) as image:
        return image.convert("RGB")


def _detectron2(cfg: CfgNode, records: list[Record], num_workers: int) -> Any:
    """Detectron2's own loader; its sampler with our seed, so that both read the same images."""
    from detectron2.data import DatasetMapper, build_detection_train_loader
    from detectron2.data.samplers import TrainingSampler

    return build_detection_train_loader(
        records,
        mapper=DatasetMapper(cfg, True),
        sampler=TrainingSampler(len(records), seed=cfg.SEED),
        total_batch_size=IMAGES,
        num_workers=num_workers,
    )
