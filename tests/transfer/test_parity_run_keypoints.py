"""Keypoint R-CNN trained and evaluated in both engines: equal after a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_synthetic import SHARED, needs_shared

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from engine_pairs import detections, run_both  # noqa: E402
from keypoints_synthetic import write_keypoints  # noqa: E402

RECIPE = "keypoint_R50_FPN_2x.yaml"
HEAD = ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16,16)"]


def test_own_keypoints(tmp_path: Path) -> None:
    data = "coco:{}:{}".format(*write_keypoints(tmp_path))
    sigmas = ["TEST.KEYPOINT_OKS_SIGMAS", "[0.5,0.5,0.5,0.5]"]
    ours, _ = run_both(tmp_path, RECIPE, data, data, [*HEAD, *sigmas])
    assert set(ours["metrics"]) == {"bbox", "keypoints"}
    assert ours["metrics"]["keypoints"]["AP50"] > 0
    found = detections(tmp_path / "embedded")
    assert found
    assert all(len(row["keypoints"]) == 12 for row in found)


@needs_shared
def test_real_persons(tmp_path: Path) -> None:
    root = SHARED / "tiny_coco"
    train, test = (
        f"coco:{root}/annotations/person_keypoints_{split}.json:{root}/{split}"
        for split in ("train2017", "val2017")
    )
    ours, _ = run_both(tmp_path, RECIPE, train, test, HEAD)
    assert set(ours["metrics"]) == {"bbox", "keypoints"}
    assert all(len(row["keypoints"]) == 51 for row in detections(tmp_path / "embedded"))
