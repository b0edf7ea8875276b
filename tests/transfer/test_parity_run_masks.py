"""Mask R-CNN trained and evaluated in both engines: equal after a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_synthetic import SHARED, needs_shared, random_coco

pytest.importorskip("detectron2")
pytest.importorskip("cityscapesscripts")
pytestmark = pytest.mark.detectron2

from cityscapes_synthetic import write_cityscapes  # noqa: E402
from engine_pairs import run_both  # noqa: E402

RECIPE = "Base_FPN.yaml"
MASKS = ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_own_masks(tmp_path: Path, mask_format: str) -> None:
    data = "coco:{}:{}".format(*random_coco(tmp_path, rle=mask_format == "bitmask"))
    overrides = [*MASKS, "INPUT.MASK_FORMAT", mask_format]
    ours, _ = run_both(tmp_path, RECIPE, data, data, overrides)
    assert set(ours["metrics"]) == {"bbox", "segm"}
    assert ours["metrics"]["segm"]["AP50"] > 0


def test_cityscapes(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "cityscapes", {"train": 4, "val": 3})
    names = (f"cityscapes:{root}:{split}" for split in ("train", "val"))
    ours, _ = run_both(tmp_path, RECIPE, *names, MASKS)
    assert set(ours["metrics"]) == {"segm"}
    assert ours["metrics"]["segm"]["AP"] >= 0
    assert "Cityscapes" in ours["metric"]


@needs_shared
def test_real_masks(tmp_path: Path) -> None:
    root = SHARED / "nuts"
    data = f"coco:{root}/trainval.json:{root}/images"
    ours, _ = run_both(tmp_path, RECIPE, data, data, MASKS)
    assert set(ours["metrics"]) == {"bbox", "segm"}
