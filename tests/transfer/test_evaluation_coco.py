"""COCO's average precision against pycocotools, and the cases that break it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from data_synthetic import SHARED, needs_shared, random_coco, random_detections
from evaluation_reference import results_of, score
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime.errors import InputError
from transfer.data.catalog import get_dataset
from transfer.evaluation import build_evaluator

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def reference(dataset, detections, task):
    """pycocotools on the file as it is, annotation ids moved from 0."""
    content = json.loads(Path(dataset.metadata["json_file"]).read_text())
    for annotation in content["annotations"]:
        annotation["id"] += 1
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    results = results_of(dataset, detections, task)
    run = COCOeval(truth, truth.loadRes(results), task)
    run.evaluate()
    run.accumulate()
    run.summarize()
    per_class = {}
    for i, name in enumerate(dataset.classes):
        values = run.eval["precision"][:, :, i, 0, -1]
        values = values[values > -1]
        per_class[f"AP-{name}"] = values.mean() * 100 if values.size else math.nan
    stats = [s * 100 if s >= 0 else math.nan for s in run.stats[:6]]
    return dict(zip(NAMES, stats, strict=True)) | per_class


def assert_equal(found, expected):
    """Equal but for the last bit: the two add up the same precisions in another order."""
    assert list(found) == list(expected)
    values = list(found.values()), list(expected.values())
    np.testing.assert_allclose(*values, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rle", [False, True])
def test_equals_pycocotools(tmp_path, seed, rle, capsys):
    path = random_coco(tmp_path, images=25, seed=seed, rle=rle)
    dataset = get_dataset("coco:{}:{}".format(*path))
    detections = random_detections(dataset.records, 3, seed, masks=True)
    results = score(dataset, detections)
    assert capsys.readouterr().out == ""
    assert set(results) == {"bbox", "segm"}
    for task, found in results.items():
        expected = reference(dataset, detections, task)
        assert_equal(found, expected)
        assert 5 < found["AP"] < 95


def test_annotation_id_zero_is_found(tmp_path):
    path = random_coco(tmp_path, images=1)
    dataset = get_dataset("coco:{}:{}".format(*path))
    assert '"id": 0, "image_id": 0' in Path(path[0]).read_text()
    assert score(dataset, perfect(dataset))["bbox"]["AP"] == pytest.approx(100)


def perfect(dataset):
    """Each object that is no crowd, found exactly."""
    results = []
    for record in dataset.records:
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
        results.append({"boxes": boxes, "scores": torch.ones(len(boxes)), "classes": classes})
    return results


def nothing(dataset, masks=False):
    empty = {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "classes": torch.zeros(0, dtype=torch.int64),
    }
    results = [dict(empty) for _ in dataset.records]
    for result, record in zip(results, dataset.records, strict=True):
        if masks:
            result["masks"] = torch.zeros(0, record["height"], record["width"], dtype=torch.bool)
    return results


def test_no_detections_are_a_legal_result(tmp_path):
    dataset = get_dataset("coco:{}:{}".format(*random_coco(tmp_path)))
    results = score(dataset, nothing(dataset, masks=True))
    assert set(results) == {"bbox", "segm"}
    for found in results.values():
        assert found["AP"] == found["AP50"] == found["AP75"] == found["AP-class7"] == 0
        assert math.isnan(found["APl"])  # no object is that large
    assert build_evaluator(dataset).evaluate()["bbox"]["AP"] == 0


def test_evaluating_twice_changes_nothing(tmp_path):
    dataset = get_dataset("coco:{}:{}".format(*random_coco(tmp_path)))
    before = copy.deepcopy(dataset.records)
    evaluator = build_evaluator(dataset)
    for record, found in zip(dataset.records, perfect(dataset), strict=True):
        evaluator.process([record], [found])
    assert str(evaluator.evaluate()) == str(evaluator.evaluate())
    assert dataset.records == before


def test_masks_need_masks_in_the_data_set(tmp_path):
    dataset = get_dataset("coco:{}:{}".format(*random_coco(tmp_path)))
    del dataset.records[0]["annotations"][0]["segmentation"]
    with pytest.raises(InputError, match="needs a segmentation of each object"):
        score(dataset, nothing(dataset, masks=True))


def test_diverged_detections_are_refused(tmp_path):
    dataset = get_dataset("coco:{}:{}".format(*random_coco(tmp_path)))
    detections = perfect(dataset)
    detections[1]["scores"][0] = math.nan
    with pytest.raises(InputError, match=r"images/1\.png are not finite: training diverged"):
        score(dataset, detections)


def test_metric_says_what_ap_means(tmp_path):
    dataset = get_dataset("coco:{}:{}".format(*random_coco(tmp_path)))
    assert build_evaluator(dataset).metric == "COCO AP (101-point), mean over IoU 0.50:0.95"


@needs_shared
def test_real_coco_photos():
    root = SHARED / "tiny_coco"
    path = f"coco:{root}/annotations/instances_val2017.json:{root}/val2017"
    dataset = get_dataset(path)
    assert score(dataset, perfect(dataset))["bbox"]["AP"] == pytest.approx(100)
    detections = random_detections(dataset.records, 80, 0, masks=True)
    for task, found in score(dataset, detections).items():
        expected = reference(dataset, detections, task)
        assert_equal(found, expected)
