"""Anchors, overlaps, box coding, matching, sampling and levels against slow, obvious references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from runtime.errors import InputError
from transfer.engines.embedded.anchors import AnchorGenerator, cell_anchors
from transfer.engines.embedded.boxes import BoxCoder, pairwise_iou
from transfer.engines.embedded.matching import Matcher, sample
from transfer.engines.embedded.pooling import ROIPooler, assign_levels


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 100
    return torch.cat([low, low + 1 + torch.rand(count, 2, generator=generator) * 60], dim=1)


def test_cell_anchors_are_exact_and_size_major() -> None:
    anchors = cell_anchors([32, 64], [0.5, 1.0, 2.0])
    sides = [(a[2] - a[0], a[3] - a[1]) for a in anchors.tolist()]
    expected = [(s / math.sqrt(r), s * math.sqrt(r)) for s in (32, 64) for r in (0.5, 1.0, 2.0)]
    torch.testing.assert_close(torch.tensor(sides), torch.tensor(expected))
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])


def test_anchor_grid_is_row_by_row_at_multiples_of_the_stride() -> None:
    generator = AnchorGenerator([[16], [32]], [[1.0, 2.0]], strides=[8, 16], offset=0.5)
    grids = generator([torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 2)])
    for grid, stride, size, (rows, columns) in zip(
        grids, (8, 16), (16, 32), ((3, 4), (2, 2)), strict=True
    ):
        expected = []
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for ratio in (1.0, 2.0):
                    w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
                    expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        torch.testing.assert_close(grid, torch.tensor(expected))
    assert generator.anchors_per_cell == 2
    assert generator.state_dict() == {}


def test_anchor_settings_that_do_not_fit_the_maps() -> None:
    with pytest.raises(InputError, match="SIZES has 2 lists for 3 feature maps"):
        AnchorGenerator([[1], [2]], [[1.0]], strides=[4, 8, 16], offset=0.0)
    with pytest.raises(InputError, match="same number of anchors"):
        AnchorGenerator([[1], [2, 3]], [[1.0]], strides=[4, 8], offset=0.0)


def test_overlap_counts_pixels_of_integer_boxes() -> None:
    boxes = torch.tensor([[0, 0, 4, 4], [2, 2, 6, 8], [4, 0, 6, 2], [3, 3, 3, 3]]).float()

    def pixels(box: Tensor) -> set[tuple[int, int]]:
        x0, y0, x1, y1 = box.int().tolist()
        return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}

    for i, row in enumerate(pairwise_iou(boxes, boxes).tolist()):
        for j, value in enumerate(row):
            a, b = pixels(boxes[i]), pixels(boxes[j])
            expected = len(a & b) / len(a | b) if a | b else 0.0  # 0, not NaN, without area
            assert value == pytest.approx(expected)


def test_overlap_without_boxes() -> None:
    assert pairwise_iou(torch.zeros(0, 4), random_boxes(3, 0)).shape == (0, 3)


WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def test_encoding_follows_the_paper() -> None:
    sources, targets = random_boxes(20, 1), random_boxes(20, 2)
    for source, target, deltas in zip(
        sources.tolist(), targets.tolist(), BoxCoder(WEIGHTS).encode(sources, targets), strict=True
    ):
        w, h = source[2] - source[0], source[3] - source[1]
        x, y = (source[0] + source[2]) / 2, (source[1] + source[3]) / 2
        tw, th = target[2] - target[0], target[3] - target[1]
        tx, ty = (target[0] + target[2]) / 2, (target[1] + target[3]) / 2
        expected = [
            10 * (tx - x) / w,
            10 * (ty - y) / h,
            5 * math.log(tw / w),
            5 * math.log(th / h),
        ]
        torch.testing.assert_close(deltas, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_decoding_inverts_encoding_class_by_class() -> None:
    coder = BoxCoder(WEIGHTS)
    sources, one, two = (random_boxes(20, seed) for seed in (1, 2, 3))
    deltas = torch.cat([coder.encode(sources, one), coder.encode(sources, two)], dim=1)
    torch.testing.assert_close(
        coder.decode(deltas, sources), torch.cat([one, two], dim=1), rtol=1e-4, atol=1e-3
    )


def test_decoding_limits_growth_and_is_float32() -> None:
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    deltas = torch.tensor([[0.0, 0.0, 1e4, 1e4]], dtype=torch.bfloat16)
    grown = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(deltas, box)
    assert grown.dtype == torch.float32
    assert (grown[0, 2] - grown[0, 0]).item() == pytest.approx(1000, rel=1e-5)


def test_l1_loss_is_the_sum_of_absolute_differences() -> None:
    coder = BoxCoder(WEIGHTS)
    sources, targets = random_boxes(5, 1), random_boxes(5, 2)
    deltas = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = sum(
        abs(a - b)
        for a, b in zip(
            deltas.flatten().tolist(),
            coder.encode(sources, targets).flatten().tolist(),
            strict=True,
        )
    )
    assert coder.loss("smooth_l1", 0.0, deltas, sources, targets).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_iou_losses_vanish_for_perfect_boxes() -> None:
    coder = BoxCoder(WEIGHTS)
    sources, targets = random_boxes(5, 1), random_boxes(5, 2)
    perfect = coder.encode(sources, targets)
    for kind in ("giou", "diou", "ciou"):
        assert coder.loss(kind, 0.0, perfect, sources, targets).item() == pytest.approx(0, abs=1e-3)
        assert coder.loss(kind, 0.0, perfect * 0, sources, targets).item() > 1


def slow_match(
    overlaps: list[list[float]], thresholds: list[float], labels: list[int], keep_best: bool
) -> list[int]:
    result = []
    for column in range(len(overlaps[0])):
        values = [row[column] for row in overlaps]
        label = labels[sum(max(values) >= t for t in thresholds)]
        if keep_best and any(v == max(row) for v, row in zip(values, overlaps, strict=True)):
            label = 1
        result.append(label)
    return result


@pytest.mark.parametrize("keep_best", [False, True])
def test_matching(keep_best: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        # Eighths: exact in float32, so that thresholds are hit and rows have ties.
        overlaps = torch.randint(0, 9, (3, 12), generator=generator) / 8
        expected = slow_match(overlaps.tolist(), [0.25, 0.75], [0, -1, 1], keep_best)
        matches, labels = Matcher([0.25, 0.75], [0, -1, 1], keep_best=keep_best)(overlaps)
        assert torch.equal(overlaps.gather(0, matches[None])[0], overlaps.max(dim=0).values)
        assert labels.tolist() == expected


def test_matching_without_ground_truth() -> None:
    matches, labels = Matcher([0.5], [0, 1], keep_best=True)(torch.zeros(0, 4))
    assert matches.tolist() == [0] * 4
    assert labels.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("thresholds", "labels"), [([0.7, 0.3], [0, -1, 1]), ([0.5], [0, -1, 1]), ([0.5], [0, 2])]
)
def test_matcher_settings_that_make_no_sense(thresholds: list[float], labels: list[int]) -> None:
    with pytest.raises(InputError, match="IOU_THRESHOLDS"):
        Matcher(thresholds, labels, keep_best=False)


def test_sampling_takes_the_heads_of_two_permutations() -> None:
    labels = torch.tensor([0, 7, -1, 3, 7, 7, 5, 7, 7, -1])  # 7 is background
    torch.manual_seed(0)
    positive, negative = sample(labels, count=6, positive_fraction=0.34, background=7)
    torch.manual_seed(0)
    expected_positive = [[0, 3, 6][i] for i in torch.randperm(3)[:2].tolist()]
    expected_negative = [[1, 4, 5, 7, 8][i] for i in torch.randperm(5)[:4].tolist()]
    assert positive.tolist() == expected_positive
    assert negative.tolist() == expected_negative


def test_backgrounds_fill_up_for_missing_positives() -> None:
    positive, negative = sample(torch.tensor([0, 0, 0, 1]), 3, positive_fraction=1.0, background=0)
    assert positive.tolist() == [3]
    assert len(set(negative.tolist())) == 2


def test_levels_follow_the_fpn_paper() -> None:
    sides = torch.tensor([1.0, 55.9, 56.1, 111.9, 112.1, 223.9, 224.1, 447.9, 448.1, 5000.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    expected = [min(max(math.floor(4 + math.log2(s / 224)), 2), 5) - 2 for s in sides.tolist()]
    assert assign_levels(boxes, (4, 8, 16, 32)).tolist() == expected


def test_pooling_reads_each_region_from_its_level_and_image() -> None:
    maps = [torch.zeros(2, 1, 64 // s, 64 // s) for s in (1, 2, 4, 8)]
    for level, x in enumerate(maps):
        x[0], x[1] = 10 + level, 20 + level
    pooler = ROIPooler("ROIAlignV2", 2, 0, (4, 8, 16, 32))
    boxes = [torch.tensor([[8.0, 8, 58, 58], [0, 0, 250, 250]]), torch.tensor([[0.0, 0, 120, 120]])]
    assert pooler(maps, boxes)[:, 0, 0, 0].tolist() == [10, 12, 21]


def test_aligned_pooling_samples_pixel_centres() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # the value of pixel i, centred at i + 0.5, is i
    region = [torch.tensor([[2.0, 2.0, 6.0, 6.0]])]
    centres = torch.tensor([3.0, 5.0])  # of the two bins
    aligned = ROIPooler("ROIAlignV2", 2, 0, (1,))([ramp], region)[0, 0, 0]
    assert torch.equal(aligned, centres - 0.5)
    assert torch.equal(ROIPooler("ROIAlign", 2, 0, (1,))([ramp], region)[0, 0, 0], centres)
