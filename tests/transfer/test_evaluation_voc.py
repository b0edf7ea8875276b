"""VOC's average precision against values computed by hand and a slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from data_synthetic import random_detections, random_voc, voc_object, write_voc

from runtime.errors import InputError
from transfer.data.catalog import get_dataset
from transfer.data.voc import load_voc
from transfer.evaluation import build_evaluator


def detect(*rows):
    """Detections from (x1, y1, x2, y2, score, class)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "classes": table[:, 5].long()}


def score(dataset, detections):
    evaluator = build_evaluator(dataset)
    for record, found in zip(dataset.records, detections, strict=True):
        evaluator.process([record], [found])
    return evaluator.evaluate()["bbox"]


@pytest.fixture
def cats(tmp_path):
    """Two cats, one of them difficult, in one image; a third alone in another; a fourth too."""
    first = [voc_object("cat", (1, 1, 40, 40)), voc_object("cat", (51, 1, 90, 40), difficult=1)]
    others = {i: (90, 60, [voc_object("cat", (11, 11, 50, 50))]) for i in ("b", "c")}
    return write_voc(tmp_path, {"a": (90, 60, first), **others})


def test_by_hand(cats):
    perfect = (0, 0, 40, 40, 0.9, 0)
    detections = [
        detect(perfect, (50, 0, 90, 40, 0.8, 0), (0, 0, 40, 40, 0.7, 0)),  # hit, none, double
        detect((10, 10, 50, 50, 0.6, 0)),  # hit
        detect((10, 10, 20, 20, 0.5, 0)),  # miss
    ]
    # three objects; in order of score: hit, miss (the double), hit, miss
    # recall 1/3 at precision 1, 2/3 at precision 2/3
    area = score(load_voc("x", str(cats), "train", 2012), detections)
    assert area["AP50"] == pytest.approx(100 * (1 / 3 + 1 / 3 * 2 / 3))
    assert area["AP"] == area["AP50"] == area["AP75"] == area["AP-cat"]
    points = score(load_voc("x", str(cats), "train", 2007), detections)
    # recalls 0, 0.1, 0.2, 0.3 reach precision 1; 0.4, 0.5, 0.6 reach 2/3; four reach nothing
    assert points["AP50"] == pytest.approx(100 * (4 + 3 * 2 / 3) / 11)


def test_overlap_must_be_exceeded_and_counts_whole_pixels(tmp_path):
    write_voc(tmp_path, {"a": (90, 60, [voc_object("cat", (1, 1, 20, 10))])})
    dataset = load_voc("x", str(tmp_path), "train", 2012)
    # in VOC's pixels the object has 20 x 10, the detection x 1..w has w x 10
    exactly_half = score(dataset, [detect((0, 0, 10, 10, 1, 0))])
    assert exactly_half["AP50"] == 0
    more = score(dataset, [detect((0, 0, 11, 10, 1, 0))])
    assert more["AP50"] == 100
    assert more["AP"] == pytest.approx(10)  # 0.55 exceeds one of the ten thresholds


def test_scores_and_coordinates_are_rounded(cats):
    dataset = load_voc("x", str(cats), "train", 2012)
    rest = [detect(), detect()]
    # 0.9004 and 0.8996 both become 0.900: neither is before the other
    tied = score(dataset, [detect((0, 0, 40, 40, 0.9004, 0), (3, 3, 9, 9, 0.8996, 0)), *rest])
    swapped = score(dataset, [detect((0, 0, 40, 40, 0.8996, 0), (3, 3, 9, 9, 0.9004, 0)), *rest])
    assert tied["AP50"] == swapped["AP50"]
    near = score(dataset, [detect((0.04, 0, 39.96, 40.0499, 0.9, 0)), *rest])
    assert near["AP"] == pytest.approx(100 / 3)


def test_no_detections_are_a_legal_result(cats):
    dataset = load_voc("x", str(cats), "train", 2012)
    assert score(dataset, [detect()] * 3)["AP"] == 0
    assert build_evaluator(dataset).evaluate()["bbox"]["AP50"] == 0


@pytest.mark.parametrize("year", [2007, 2012])
def test_a_class_without_objects_counts_as_zero_and_is_named(cats, caplog, year):
    dataset = load_voc("x", str(cats), "train", year, ("cat", "dog"))
    with caplog.at_level("WARNING"):
        evaluator = build_evaluator(dataset)
    assert "no objects to find of: dog" in caplog.text
    assert evaluator.metric.endswith("; 1 of 2 classes without objects as 0")
    found = [(0, 0, 40, 40, 0.9, 0), (10, 10, 50, 50, 0.9, 0), (10, 10, 50, 50, 0.9, 0)]
    wrong = (1, 1, 5, 5, 0.3, 1)
    result = score(dataset, [detect(row, wrong) for row in found])
    assert result["AP-cat"] == pytest.approx(100)
    assert result["AP-dog"] == 0
    assert result["AP"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 0, math.nan, 4, 0.5, 0), "diverged"),
        ((0, 0, math.inf, 4, 0.5, 0), "diverged"),
        ((0, 0, 4, 4, math.nan, 0), "diverged"),
        ((0, 0, 4, 4, 0.5, 3), "have class 3, the data set has 1"),
    ],
)
def test_wrong_detections_are_refused(cats, row, message):
    dataset = load_voc("x", str(cats), "train", 2012)
    with pytest.raises(InputError, match=message) as caught:
        score(dataset, [detect(row), detect(), detect()])
    assert "JPEGImages/a.jpg" in str(caught.value)


def test_metric_says_what_ap_means(cats):
    custom = build_evaluator(get_dataset(f"voc:{cats}:train"))
    assert custom.metric == "VOC AP (area under curve), mean over IoU 0.50:0.95"
    old = build_evaluator(load_voc("x", str(cats), "train", 2007))
    assert old.metric == "VOC AP (11-point), mean over IoU 0.50:0.95"


@pytest.mark.parametrize("year", [2007, 2012])
def test_kind_of_ap_can_be_chosen(tmp_path, year):
    folder = str(random_voc(tmp_path, ["cat", "dog"], images=20))
    dataset = load_voc("x", folder, "train", year, ("cat", "dog"))
    detections = random_detections(dataset.records, 2)
    for metric, its_year, name in (("11-point", 2007, "11-point"), ("area", 2012, "area under")):
        evaluator = build_evaluator(dataset, metric)
        evaluator.process(dataset.records, detections)
        as_detectron2 = load_voc("x", folder, "train", its_year, ("cat", "dog"))
        assert evaluator.evaluate()["bbox"] == score(as_detectron2, detections)
        assert evaluator.metric.startswith(f"VOC AP ({name}")
    with pytest.raises(ValueError, match="metric must be one of auto, 11-point, area"):
        build_evaluator(dataset, "median")


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_slow_reference(tmp_path, year, seed):
    classes = ["cat", "dog", "eel"]
    folder = str(random_voc(tmp_path, classes, images=20, seed=seed))
    dataset = load_voc("x", folder, "train", year, tuple(classes))
    detections = random_detections(dataset.records, 3, seed)
    # no two scores are equal: no definition orders such detections
    distinct = iter(np.random.default_rng(seed).permutation(1000) / 1000)
    for found in detections:
        found["scores"] = torch.tensor([next(distinct) for _ in found["scores"]])
    result = score(dataset, detections)
    table = [
        [slow_ap(dataset.records, detections, c, t / 100, year) for t in range(50, 100, 5)]
        for c in range(3)
    ]
    assert result["AP"] == pytest.approx(100 * np.mean(table))
    assert result["AP75"] == pytest.approx(100 * np.mean([row[5] for row in table]))
    assert [result[f"AP-{c}"] for c in classes] == pytest.approx(
        [100 * np.mean(row) for row in table]
    )
    assert 5 < result["AP"] < 95


def slow_ap(records, detections, label, threshold, year):
    ranked = []
    for number, found in enumerate(detections):
        for box, confidence, c in zip(*(v.tolist() for v in found.values()), strict=True):
            if c == label:
                x1, y1, x2, y2 = (round(v, 1) for v in (box[0] + 1, box[1] + 1, box[2], box[3]))
                ranked.append((round(confidence, 3), len(ranked), number, (x1, y1, x2, y2)))
    ranked.sort(key=lambda entry: -entry[0])
    truth = [
        [
            [(b["bbox"][0] + 1, b["bbox"][1] + 1, *b["bbox"][2:]), b["difficult"], False]
            for b in record["annotations"]
            if b["category_id"] == label
        ]
        for record in records
    ]
    positives = sum(not hard for things in truth for _, hard, _ in things)
    hits, curve = 0, []
    seen = 0
    for _, _, number, box in ranked:
        best, overlap = None, -1.0
        for thing in truth[number]:
            if (value := slow_overlap(box, thing[0])) > overlap:
                best, overlap = thing, value
        if best is not None and overlap > threshold:
            if best[1]:
                continue
            hits += not best[2]
            best[2] = True
        seen += 1
        curve.append((hits / positives, hits / seen))
    if year == 2007:
        levels = [max((p for r, p in curve if r >= i * 0.1), default=0) for i in range(11)]
        return sum(levels) / 11
    area, before = 0.0, 0.0
    for recall, _ in curve:
        area += (recall - before) * max(p for r, p in curve if r >= recall)
        before = recall
    return area


def slow_overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(r[2] - r[0] + 1) * (r[3] - r[1] + 1) for r in (a, b)]
    return width * height / (sum(areas) - width * height)
