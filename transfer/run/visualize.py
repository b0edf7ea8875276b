"""What a run shows: its first training batch, and ground truth beside detections."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from runtime.metrics import write_images
from transfer.data.dataset import Dataset
from transfer.data.mapper import Mapper
from transfer.engines.base import Predictor
from transfer.view.draw import save
from transfer.view.pictures import choose, training_batch, truth_and_detections

log = logging.getLogger("moco")

TRAIN_BATCH = "train_batch.png"
THRESHOLD = 0.5  # least score of a detection that is drawn


def visualize(
    cfg: CfgNode, data: Dataset, predict: Predictor, output: Path, count: int, iteration: int
) -> None:
    """Write ``visualize/<number>_<image>.png`` for ``count`` images at even distances.

    TensorBoard gets the same pictures as those of ``iteration``. A second call replaces them.
    """
    folder = output / "visualize"
    folder.mkdir(exist_ok=True)
    mapper = Mapper(cfg, is_train=False)
    shown = {}
    for number, record in enumerate(choose(data.records, count), start=1):
        (found,) = predict([mapper(record)])
        found = {name: values.cpu() for name, values in found.items()}
        picture = truth_and_detections(record, found, data, THRESHOLD)
        save(picture, folder / f"{number:02d}_{Path(record['file_name']).stem}.png")
        shown[f"visualize/{number:02d}"] = picture.numpy()
    write_images(output, shown, iteration)
    log.info("ground truth and detections of %d images: %s", len(shown), folder)


def show_first_batch(
    cfg: CfgNode, data: Dataset, batch: Sequence[dict[str, Any]], output: Path
) -> None:
    """Write the first training batch, augmented, with its targets: ``train_batch.png``."""
    picture = training_batch(batch, cfg.INPUT.FORMAT, data)
    save(picture, output / TRAIN_BATCH)
    write_images(output, {"train_batch": picture.numpy()}, 0)
    log.info("the first training batch: %s", output / TRAIN_BATCH)
