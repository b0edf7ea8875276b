"""Evaluation over two processes equals that of one, masks and keypoints included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from keypoints_synthetic import NAMES, SIGMAS, detect_keypoints, write_keypoints
from pycocotools import mask as mask_util

from transfer.data.catalog import get_dataset
from transfer.recipe.defaults import default_cfg
from transfer.run.evaluate import DETECTIONS, evaluate


def true_masks(record: dict[str, Any]) -> torch.Tensor:
    """The objects' masks, each twice as in :func:`detect_keypoints`."""
    size = record["height"], record["width"]
    masks = [
        mask_util.decode(mask_util.frPyObjects(a["segmentation"], *size)).any(axis=2)
        for a in record["annotations"] * 2
    ]
    return torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))


def run(data: str, output: Path) -> dict[str, Any]:
    cfg = default_cfg()
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TEST", 32])
    cfg.TEST.KEYPOINT_OKS_SIGMAS = list(SIGMAS)
    dataset = get_dataset(data)
    found = {
        record["image_id"]: detections | {"masks": true_masks(record)}
        for record, detections in zip(
            dataset.records, detect_keypoints(dataset.records, len(NAMES)), strict=True
        )
    }
    predict = lambda batch: [found[s["image_id"]] for s in batch]  # noqa: E731
    return evaluate(cfg, [dataset], predict, output)[0]


def worker(rank: int, data: str, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    results = run(data, Path(folder))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_processes_score_as_one(tmp_path: Path) -> None:
    data = "coco:{}:{}".format(*write_keypoints(tmp_path / "data", images=7))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = run(data, tmp_path / "one")
    mp.spawn(worker, args=(data, str(tmp_path / "two")), nprocs=2)
    assert set(alone) == {"bbox", "segm", "keypoints"}
    assert all(0 < scores["AP50"] <= 100 for scores in alone.values())
    assert (tmp_path / "two/0.json").read_text() == json.dumps(alone)
    assert (tmp_path / "two/1.json").read_text() == "{}"
    rows = [json.loads((tmp_path / name / DETECTIONS).read_text()) for name in ("one", "two")]
    assert rows[0] == rows[1]
    assert rows[0]
    assert all(len(row["keypoints"]) == 12 for row in rows[0])
