from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transfer.compare.pictures import WIDTH, panels

CLASSES = ("cat", "dog")


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "image.png"
    Image.new("RGB", (WIDTH // 2, WIDTH // 4), "black").save(path)
    box = {"bbox": [40, 30, 120, 80], "bbox_mode": 0, "category_id": 1, "iscrowd": 0}
    return {"file_name": str(path), "image_id": 7, "height": 1, "width": 1, "annotations": [box]}


def found(*scores: float) -> dict[str, list[dict[str, Any]]]:
    box = {"category_id": 1, "bbox": [40, 30, 80, 50]}
    return {"7": [{**box, "score": score} for score in scores]}


def test_boxes_of_both_modes_are_drawn_at_their_scaled_place(record: dict[str, Any]):
    drawn = panels(record, CLASSES, {"moco": found(0.9)})
    for panel in drawn:
        pixels = np.asarray(Image.open(io.BytesIO(panel.jpeg))).astype(int)
        assert pixels.shape == (WIDTH // 2, WIDTH, 3)
        bright = pixels.max(2) > 120
        assert bright[159:161, 85:235].all(axis=1).any()  # bottom edge: y 80, doubled
        assert bright[80:155, 239:241].all(axis=0).any()  # right edge: x 120, doubled
        assert not bright[165:].any()
        assert not bright[:, 245:].any()
        assert not bright[:, :77].any()
        assert not bright[90:155, 90:230].any()


def test_mode_1_is_xywh(record: dict[str, Any]):
    as_xyxy = panels(record, CLASSES, {})[0].jpeg
    record["annotations"][0].update(bbox=[40, 30, 80, 50], bbox_mode=1)
    assert panels(record, CLASSES, {})[0].jpeg == as_xyxy


@pytest.mark.parametrize(
    ("detections", "caption", "alt"),
    [
        (found(0.9, 0.5, 0.49), "2 with score ≥ 0.5", "moco: 2 dog"),
        (found(0.4, 0.3, 0.2, 0.1), "none with score ≥ 0.5; best 3 shown", "moco: 3 dog"),
        ({}, "no detections", "moco: no boxes"),
        (None, "this run saved no detections", "moco: no boxes"),
    ],
)
def test_caption_says_which_detections_are_drawn(record, detections, caption, alt):
    truth, panel = panels(record, CLASSES, {"moco": detections})
    assert (truth.caption, truth.alt) == ("1 boxes", "ground truth: 1 dog")
    assert (panel.caption, panel.alt) == (caption, alt)
