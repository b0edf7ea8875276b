"""Mask targets, pasting and keypoints against pixel-by-pixel references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from parity_models import recipe
from torch import Tensor

from transfer.engines.embedded.keypoint_head import (
    KRCNNConvDeconvUpsampleHead,
    with_visible_keypoint,
)
from transfer.engines.embedded.mask_head import crop_masks, rasterise
from transfer.engines.embedded.paste import paste_masks
from transfer.engines.embedded.regions import Regions
from transfer.recipe.defaults import default_cfg


def regions(boxes: list[list[float]], targets: dict[str, object]) -> Regions:
    """Each box matched with the object of the same number."""
    tensor = torch.tensor(boxes)
    index = torch.arange(len(boxes))
    return Regions(tensor, torch.zeros_like(index), tensor, index, targets)


def test_rasterised_polygon_covers_the_cells_whose_centres_it_holds() -> None:
    # A diamond |x - 10| + |y - 12| < 6 seen from a box that cuts it.
    diamond = np.array([4.0, 12.0, 10.0, 6.0, 16.0, 12.0, 10.0, 18.0])
    box = np.array([6.0, 4.0, 18.0, 20.0], dtype=np.float32)
    side = 28
    mask = rasterise([diamond], box, side)
    doubtful = 0
    for row in range(side):
        for column in range(side):
            x, y = 6 + (column + 0.5) * 12 / side, 4 + (row + 0.5) * 16 / side
            distance = 6 - (abs(x - 10) + abs(y - 12))
            if abs(distance) > 0.6:  # a cell's size: COCO's rasteriser decides nearer ones
                assert mask[row, column] == (distance > 0)
            else:
                doubtful += 1
    assert doubtful < side * side / 4


def test_several_polygons_join_and_none_is_an_empty_mask() -> None:
    left = np.array([0.0, 0, 5, 0, 5, 10, 0, 10])
    right = left + np.array([5.0, 0] * 4)
    box = np.array([0, 0, 10, 10], dtype=np.float32)
    assert rasterise([left], box, 8).tolist() == [[True] * 4 + [False] * 4] * 8
    assert rasterise([left, right], box, 8).all()
    assert not rasterise([], box, 8).any()


def test_rasterising_leaves_the_polygons_alone() -> None:
    polygon = np.array([0.0, 0, 5, 0, 5, 10, 0, 10])
    before = polygon.copy()
    rasterise([polygon], np.array([1, 1, 9, 9], dtype=np.float32), 4)
    assert np.array_equal(polygon, before)


def test_bitmap_and_polygon_targets_agree_on_rectangles() -> None:
    bitmaps = torch.zeros(2, 20, 20, dtype=torch.bool)
    bitmaps[0, 4:12, 4:8] = True
    bitmaps[1, 10:20, 0:20] = True
    polygons = [
        [np.array([4.0, 4, 8, 4, 8, 12, 4, 12])],
        [np.array([0.0, 10, 20, 10, 20, 20, 0, 20])],
    ]
    boxes = [[4.0, 4.0, 12.0, 12.0], [0.0, 0.0, 20.0, 20.0]]
    from_bitmaps = crop_masks(regions(boxes, {"bitmasks": bitmaps}), 4)
    from_polygons = crop_masks(regions(boxes, {"polygons": polygons}), 4)
    expected = [[[1, 1, 0, 0]] * 4, [[0] * 4] * 2 + [[1] * 4] * 2]
    assert from_bitmaps.int().tolist() == expected
    assert from_polygons.int().tolist() == expected


def slow_paste(mask: Tensor, box: list[float], height: int, width: int) -> np.ndarray:
    """Bilinear interpolation between the mask's cell centres; zero outside the mask."""
    side = len(mask)
    x0, y0, x1, y1 = box
    result = np.zeros((height, width), dtype=bool)
    for row in range(height):
        for column in range(width):
            u = (column + 0.5 - x0) / (x1 - x0) * side - 0.5
            v = (row + 0.5 - y0) / (y1 - y0) * side - 0.5
            value = 0.0
            for j in (math.floor(v), math.floor(v) + 1):
                for i in (math.floor(u), math.floor(u) + 1):
                    if 0 <= i < side and 0 <= j < side:
                        value += float(mask[j, i]) * (1 - abs(u - i)) * (1 - abs(v - j))
            result[row, column] = value >= 0.5
    return result


def test_pasting_is_bilinear() -> None:
    masks = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    boxes = [[2.3, 3.1, 17.9, 11.2], [-4.0, -3.0, 9.5, 8.0], [10.2, 5.0, 30.0, 40.0]]
    pasted = paste_masks(masks, torch.tensor(boxes), 16, 24)
    for mask, box, result in zip(masks, boxes, pasted.numpy(), strict=True):
        expected = slow_paste(mask, box, 16, 24)
        assert 0 < expected.sum() < expected.size
        assert np.array_equal(result, expected)


def test_pasting_nothing() -> None:
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 6, 7).shape == (0, 6, 7)


def test_keypoints_peak_where_the_heat_map_does() -> None:
    cfg = recipe("R18-FPN-Keypoint", default_cfg())
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 1
    head = KRCNNConvDeconvUpsampleHead(4, cfg)
    logits = torch.zeros(1, 1, 56, 56)
    logits[0, 0, 14, 42] = 20.0
    head.forward = lambda x: logits  # type: ignore[method-assign]
    points = head.predict(torch.zeros(1), torch.tensor([[100.0, 200.0, 156.0, 256.0]]))
    assert points[0, 0, :2].tolist() == [142.5, 214.5]
    share = math.exp(20) / (math.exp(20) + 56 * 56 - 1)
    assert points[0, 0, 2].item() == pytest.approx(share, rel=1e-5)


def test_keypoint_loss_is_the_cross_entropy_of_the_visible_ones() -> None:
    cfg = recipe("R18-FPN-Keypoint", default_cfg())
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    head = KRCNNConvDeconvUpsampleHead(4, cfg)
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    head.forward = lambda x: logits  # type: ignore[method-assign]
    # In a box of 16 pixels a cell is 2 pixels: (5, 9) is cell (2, 4). The second is outside the
    # box and the third invisible.
    keypoints = torch.tensor([[[5.0, 9.0, 2.0], [99.0, 9.0, 2.0], [1.0, 1.0, 0.0]]])
    loss = head.loss(torch.zeros(1), [regions([[0.0, 0.0, 16.0, 16.0]], {"keypoints": keypoints})])
    expected = -torch.log_softmax(logits[0, 0].flatten(), 0)[4 * 8 + 2]
    assert loss["loss_keypoint"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_regions_without_a_visible_keypoint_inside_are_dropped() -> None:
    keypoints = torch.tensor([[[5.0, 5.0, 2.0]], [[5.0, 5.0, 0.0]], [[50.0, 5.0, 2.0]]])
    every = regions([[0.0, 0.0, 10.0, 10.0]] * 3, {"keypoints": keypoints})
    assert with_visible_keypoint(every).matches.tolist() == [0]
