"""Cityscapes: records and numbers of Detectron2's own reader and evaluator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

detectron2 = pytest.importorskip("detectron2")
pytest.importorskip("cityscapesscripts")
pytestmark = pytest.mark.detectron2

from cityscapes_synthetic import write_cityscapes  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.data import MetadataCatalog  # noqa: E402
from detectron2.data.datasets.cityscapes import load_cityscapes_instances  # noqa: E402
from detectron2.evaluation import CityscapesInstanceEvaluator  # noqa: E402
from detectron2.structures import Instances  # noqa: E402
from test_data_detectron2 import compare_mappers  # noqa: E402

import transfer.engines.detectron2.engine  # noqa: E402, F401  lets their imports succeed
from transfer.data.catalog import get_dataset  # noqa: E402
from transfer.evaluation import build_evaluator  # noqa: E402


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_cityscapes(tmp_path / "cityscapes", {"val": 8})


@pytest.mark.filterwarnings("ignore:The 'resolution' argument")
def test_records_and_samples(root: Path) -> None:
    ours = get_dataset(f"cityscapes:{root}:val").records
    theirs = load_cityscapes_instances(f"{root}/leftImg8bit/val", f"{root}/gtFine/val")
    assert ours == sorted(theirs, key=lambda record: record["file_name"])
    assert sum(len(record["annotations"]) for record in ours) > 20
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (40, 64), 48
    compare_mappers(cfg, ours, rounds=2)


def some_detections(records: list[dict[str, Any]], seed: int) -> list[dict[str, torch.Tensor]]:
    """Masks like the objects' boxes, moved, of right and wrong classes, no two scores alike."""
    rng = np.random.default_rng(seed)
    found = []
    for record in records:
        masks, classes = [], []
        for annotation in record["annotations"] * 2:
            x1, y1, x2, y2 = (annotation["bbox"] + rng.normal(0, 1.5, 4)).astype(int).clip(0)
            mask = np.zeros((record["height"], record["width"]), dtype=bool)
            mask[y1:y2, x1:x2] = True
            masks.append(mask)
            right = rng.random() < 0.8
            classes.append(annotation["category_id"] if right else int(rng.integers(8)))
        stacked = np.array(masks, dtype=bool).reshape(-1, record["height"], record["width"])
        found.append(
            {
                "boxes": torch.zeros(len(masks), 4),
                "scores": torch.from_numpy(rng.random(len(masks))).float(),
                "classes": torch.tensor(classes, dtype=torch.int64),
                "masks": torch.from_numpy(stacked),
            }
        )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_evaluator(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    dataset = get_dataset(f"cityscapes:{root}:val")
    detections = some_detections(dataset.records, seed)
    ours = build_evaluator(dataset)
    name = f"cityscapes_test_{tmp_path}"
    meta = MetadataCatalog.get(name)
    meta.set(thing_classes=list(dataset.classes), gt_dir=dataset.metadata["gt_dir"])
    theirs = CityscapesInstanceEvaluator(name)
    theirs.reset()
    for record, found in zip(dataset.records, detections, strict=True):
        ours.process([record], [found])
        instances = Instances((record["height"], record["width"]))
        instances.scores, instances.pred_classes = found["scores"], found["classes"]
        instances.pred_masks = found["masks"]
        theirs.process([record], [{"instances": instances}])
    scores = ours.evaluate()["segm"]
    # Theirs writes its matches to the working folder, and needs numpy 1.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    dumps = json.dumps
    monkeypatch.setattr(
        json, "dumps", lambda x, **k: dumps(x, **k | {"default": lambda v: v.item()})
    )
    expected = theirs.evaluate()["segm"]
    assert set(expected) == {"AP", "AP50"}
    assert {key: scores[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert 0 < expected["AP"] < expected["AP50"] < 100
