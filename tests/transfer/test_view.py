"""Drawing: every pixel is either the image's or a class's colour, and masks are pycocotools'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util

from transfer.data.dataset import XYWH, Dataset
from transfer.view.draw import above, colour, draw, save, to_rgb
from transfer.view.pictures import (
    choose,
    grid,
    rgb,
    skeleton,
    training_batch,
    truth,
    truth_and_detections,
)

CLASSES = ("cat", "dog")
GREY = torch.full((3, 100, 120), 90, dtype=torch.uint8)


def objects(*labels: int, **more: Any) -> dict[str, Any]:
    boxes = torch.tensor([[10.0 + 50 * i, 20, 50 + 50 * i, 90] for i in range(len(labels))])
    return {"boxes": boxes, "classes": torch.tensor(labels), **more}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    triangle, square = [10.0, 10, 40, 10, 10, 50], [50.0, 20, 70, 20, 70, 40, 50, 40]
    common = {"bbox_mode": XYWH, "area": 1.0, "iscrowd": 0}
    annotations = [
        {**common, "bbox": [10.0, 10, 30, 40], "category_id": 0, "segmentation": [triangle]},
        {**common, "bbox": [50.0, 20, 20, 20], "category_id": 1, "segmentation": [square]},
        {**common, "bbox": [0.0, 0, 80, 60], "category_id": 1, "iscrowd": 1},
    ]
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 60, "width": 80}
    return Dataset("d", [{**record, "annotations": annotations}], CLASSES, "coco", {})


def test_boxes_have_the_colour_of_their_class_and_the_rest_is_untouched() -> None:
    drawn = draw(GREY, objects(0, 1), CLASSES)
    for left, label in ((10, 0), (60, 1)):
        edge = torch.tensor(colour(label), dtype=torch.uint8)
        assert (drawn[:, 90, left : left + 41] == edge[:, None]).all()  # bottom
        assert (drawn[:, 20:91, left] == edge[:, None]).all()  # left
    inside = drawn[:, 60:85, 15:45]
    assert (inside == 90).all()
    assert (drawn[:, :20] == 90).all()
    assert (GREY == 90).all()  # drawn on a copy
    assert len({colour(label) for label in range(200)}) == 200


def test_masks_and_keypoints_are_drawn_where_they_are() -> None:
    masks = torch.zeros(1, 100, 120, dtype=torch.bool)
    masks[0, 50:60, 100:110] = True
    points = torch.tensor([[[105.0, 20, 2], [105, 90, 0]]])
    drawn = draw(GREY, objects(0, masks=masks, keypoints=points), CLASSES)
    changed = (drawn != GREY).any(dim=0)
    assert changed[50:60, 100:110].all()
    assert not changed[61:, 60:].any()  # an invisible keypoint is not drawn
    assert changed[20, 105]
    assert not changed[30:50, 60:].any()


def test_keypoints_are_joined_as_the_files_skeleton_says() -> None:
    names = {"names": ("a", "b", "c"), "flip": (), "skeleton": [[1, 3]]}
    annotation = {"bbox": [0.0, 0, 120, 100], "bbox_mode": XYWH, "category_id": 0, "iscrowd": 0}
    points = [20.5, 50.5, 2.0, 20.5, 90.5, 2.0, 100.5, 50.5, 1.0]
    record = {"height": 100, "width": 120, "annotations": [{**annotation, "keypoints": points}]}
    data = Dataset("d", [record], CLASSES, "coco", {"keypoints": names})
    real = truth(record, data)
    assert real["keypoints"].flatten().tolist() == points
    assert skeleton(data) == [(0, 2)]
    changed = (draw(GREY, real, CLASSES, skeleton(data)) != GREY).any(dim=0)
    assert changed[50, 20:100].all()  # from a to c
    assert not changed[60:80, 20].any()  # and not to b


def test_the_surest_detection_lies_on_top() -> None:
    boxes = torch.tensor([[10.0, 20, 50, 90], [10, 20, 50, 90]])
    found = {"boxes": boxes, "classes": torch.tensor([0, 1]), "scores": torch.tensor([0.4, 0.9])}
    edge = draw(GREY, found, CLASSES)[:, 90, 30]
    assert tuple(edge.tolist()) == colour(1)
    sure = above(found, 0.9)
    assert sure["classes"].tolist() == [1]
    assert torch.equal(draw(GREY, above(found, 0.95), CLASSES), GREY)


def test_where_masks_overlap_the_upper_one_is_seen() -> None:
    masks = torch.zeros(2, 100, 120, dtype=torch.bool)
    masks[0, 60:80, 20:40] = masks[1, 70:90, 20:40] = True
    boxes = torch.tensor([[60.0, 10, 100, 30], [60, 10, 100, 40]])  # elsewhere
    found = {"boxes": boxes, "classes": torch.tensor([0, 1]), "masks": masks}
    drawn = draw(GREY, found | {"scores": torch.tensor([0.9, 0.8])}, CLASSES)
    blend = [int(0.6 * 90 + 0.4 * part) for part in colour(0)]
    assert drawn[:, 78, 30].tolist() == blend  # both cover it, class 0 is the surer
    assert drawn[:, 85, 30].tolist() != blend


def test_truth_has_the_masks_of_pycocotools_and_no_crowd(data: Dataset) -> None:
    record = data.records[0]
    real = truth(record, data)
    assert real["classes"].tolist() == [0, 1]
    assert real["boxes"].tolist() == [[10, 10, 40, 50], [50, 20, 70, 40]]
    for mask, annotation in zip(real["masks"], record["annotations"], strict=False):
        expected = mask_util.decode(mask_util.frPyObjects(annotation["segmentation"], 60, 80))
        assert np.array_equal(mask.numpy(), expected[:, :, 0].astype(bool))


def test_pairs_and_batches_keep_the_images(data: Dataset) -> None:
    found = {"boxes": torch.zeros(0, 4), "classes": torch.zeros(0), "scores": torch.zeros(0)}
    pair = truth_and_detections(data.records[0], found, data, 0.5)
    image = rgb(data.records[0])
    assert pair.shape == (3, 60 + 20 + 8, 2 * 80 + 12)
    assert torch.equal(pair[:, -64:-4, -84:-4], image)  # nothing detected: nothing drawn
    assert not torch.equal(pair[:, -64:-4, 4:84], image)
    bgr = image.flip(0)
    targets = {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "classes": torch.tensor([1])}
    shown = training_batch([{"image": bgr, "targets": targets}], "BGR", data)
    assert torch.equal(shown[:, 30:, 30:], image[:, 30:, 30:])
    assert torch.equal(to_rgb(image[:1], "L"), image[:1].repeat(3, 1, 1))
    assert grid([image, image[:, :30]], columns=2).shape == (3, 68, 172)


def test_pictures_are_what_was_drawn(data: Dataset, tmp_path: Path) -> None:
    image = rgb(data.records[0])
    save(image, tmp_path / "out.PNG")
    assert np.array_equal(np.array(Image.open(tmp_path / "out.PNG")), image.permute(1, 2, 0))


def test_images_are_chosen_at_even_distances_among_annotated_ones() -> None:
    records = [{"image_id": k, "annotations": [1] * (k % 2)} for k in range(80)]
    assert [record["image_id"] for record in choose(records, 4)] == [11, 31, 51, 71]
    assert [record["image_id"] for record in choose(records[:4], 4)] == [1, 3]
    assert choose([], 4) == []
    assert len(choose([{"image_id": 0}, {"image_id": 1}], 4)) == 2
