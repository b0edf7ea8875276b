"""LVIS's average precision against the lvis package, and the cases that set it apart from COCO."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from data_synthetic import SHARED, needs_shared, random_detections, random_lvis
from evaluation_reference import results_of, score
from lvis import LVIS, LVISEval, LVISResults

import transfer.evaluation.lvis as ours
from runtime.errors import InputError
from transfer.data.catalog import get_dataset
from transfer.evaluation import build_evaluator

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]


def reference(dataset, detections, task, monkeypatch):
    """The lvis package, called as Detectron2 does."""
    monkeypatch.setattr(np, "float", float, raising=False)  # of numpy 1, which the package uses
    results = results_of(dataset, detections, task)
    truth = LVIS(dataset.metadata["json_file"])
    run = LVISEval(truth, LVISResults(truth, results, max_dets=300), task)
    run.run()
    numbers = run.get_results()
    return {n: float(numbers[n] * 100) if numbers[n] > -1 else math.nan for n in NAMES}


def assert_equal(found, expected):
    """Equal but for the last bit: the package adds an epsilon to what it divides by."""
    assert list(found) == list(expected)
    values = list(found.values()), list(expected.values())
    np.testing.assert_allclose(*values, rtol=0, atol=1e-12, equal_nan=True)


def compare(dataset, detections, monkeypatch):
    results = score(dataset, detections)
    assert set(results) == {"bbox", "segm"}
    for task, found in results.items():
        assert_equal(found, reference(dataset, detections, task, monkeypatch))
    return results


def load(folder, **options):
    return get_dataset("lvis:{}:{}".format(*random_lvis(folder, **options)))


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_lvis_package(tmp_path, seed, monkeypatch, capsys):
    dataset = load(tmp_path, images=25, seed=seed)
    detections = random_detections(dataset.records, 8, seed, masks=True)
    for found in compare(dataset, detections, monkeypatch).values():
        assert 5 < found["AP"] < 95
        assert not math.isnan(sum(found.values()))
    assert capsys.readouterr().out == ""


def repeat(found, times, generator):
    """More detections than are counted, slightly moved, with many equal scores."""
    many = {key: torch.cat([value] * times) for key, value in found.items()}
    many["boxes"] = many["boxes"] + torch.rand(many["boxes"].shape, generator=generator)
    many["scores"] = (torch.rand(len(many["scores"]), generator=generator) * 20).round() / 20
    return many


@pytest.mark.parametrize("seed", range(2))
def test_only_the_300_best_of_an_image_count(tmp_path, seed, monkeypatch):
    dataset = load(tmp_path, images=6, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    detections = random_detections(dataset.records, 8, seed, masks=True)
    many = [repeat(found, 80, generator) for found in detections]
    assert max(len(found["scores"]) for found in many) > 600
    compare(dataset, many, monkeypatch)
    fewer = [{k: v[found["scores"].argsort(descending=True, stable=True)[:300]]
              for k, v in found.items()} for found in many]  # fmt: skip
    assert str(score(dataset, many)) == str(score(dataset, fewer))


def test_empty_boxes_and_masks(tmp_path, monkeypatch):
    dataset = load(tmp_path, images=12, seed=3)
    detections = random_detections(dataset.records, 8, 3, masks=True)
    for found in detections:
        found["boxes"][::3, 2] = found["boxes"][::3, 0]
        found["masks"][::4] = False
    compare(dataset, detections, monkeypatch)


def test_objects_without_area_do_not_count(tmp_path, monkeypatch):
    path, root = random_lvis(tmp_path, images=12, seed=4)
    content = json.loads(Path(path).read_text())
    for annotation in content["annotations"][::3]:
        annotation["area"] = 0
    Path(path).write_text(json.dumps(content))
    dataset = get_dataset(f"lvis:{path}:{root}")
    compare(dataset, random_detections(dataset.records, 8, 4, masks=True), monkeypatch)


def test_category_ids_with_gaps(tmp_path, monkeypatch):
    path, root = random_lvis(tmp_path, images=12, seed=5)
    content = json.loads(Path(path).read_text())
    for image in content["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [7 * c for c in image[key]]
    for part, key in (("annotations", "category_id"), ("categories", "id")):
        for item in content[part]:
            item[key] *= 7
    Path(path).write_text(json.dumps(content))
    dataset = get_dataset(f"lvis:{path}:{root}")
    compare(dataset, random_detections(dataset.records, 8, 5, masks=True), monkeypatch)


def test_classes_may_be_scored_in_parts(tmp_path, monkeypatch):
    dataset = load(tmp_path, images=10)
    detections = random_detections(dataset.records, 8, masks=True)
    whole = score(dataset, detections)
    for classes in (1, 3):
        monkeypatch.setattr(ours, "_AT_ONCE", classes)
        assert str(score(dataset, detections)) == str(whole)


def one_image(tmp_path):
    """Image 0 with a single object of class 1; classes 2 and 3 were looked for; 4 was not."""
    path, root = random_lvis(tmp_path, images=1)
    content = json.loads(Path(path).read_text())
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0].update(category_id=1, bbox=[5, 5, 20, 20], area=400)
    content["images"][0].update(neg_category_ids=[2, 3], not_exhaustive_category_ids=[])
    Path(path).write_text(json.dumps(content))
    return get_dataset(f"lvis:{path}:{root}"), content, path


def detect(*rows):
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return [{"boxes": table[:, :4], "scores": table[:, 4], "classes": table[:, 5].long()}]


def test_by_hand(tmp_path):
    dataset, content, path = one_image(tmp_path)
    hit, wrong = (5, 5, 25, 25, 0.5, 0), (50, 50, 60, 60, 0.9, 0)
    assert score(dataset, detect(hit))["bbox"]["AP"] == pytest.approx(100)
    # a class that nobody looked for in the image is neither right nor wrong there
    assert score(dataset, detect(hit, (0, 0, 9, 9, 0.9, 3)))["bbox"]["AP"] == pytest.approx(100)
    assert score(dataset, detect(hit, wrong))["bbox"]["AP"] == pytest.approx(50)
    content["images"][0]["not_exhaustive_category_ids"] = [1]
    Path(path).write_text(json.dumps(content))
    dataset = get_dataset(dataset.name)
    assert score(dataset, detect(hit, wrong))["bbox"]["AP"] == pytest.approx(100)
    results = score(dataset, detect(hit))["bbox"]
    assert results["APc"] == results["AP"]  # class 1 is common
    assert math.isnan(results["APr"])
    assert math.isnan(results["APl"])


def test_no_detections_are_a_legal_result(tmp_path):
    dataset = load(tmp_path)
    assert build_evaluator(dataset).evaluate()["bbox"]["AP"] == 0
    results = score(dataset, detect() * len(dataset.records))
    assert list(results) == ["bbox"]
    assert list(results["bbox"]) == NAMES
    assert results["bbox"]["AP"] == 0


def test_evaluating_twice_changes_nothing(tmp_path):
    dataset = load(tmp_path)
    before = copy.deepcopy(dataset.records)
    detections = random_detections(dataset.records, 8, masks=True)
    evaluator = build_evaluator(dataset)
    evaluator.process(dataset.records, detections)
    assert str(evaluator.evaluate()) == str(evaluator.evaluate())
    assert dataset.records == before
    assert evaluator.metric.startswith("LVIS AP (101-point, at most 300 detections")


def test_diverged_detections_are_refused(tmp_path):
    dataset = load(tmp_path, images=1)
    with pytest.raises(InputError, match="are not finite: training diverged"):
        score(dataset, detect((0, 0, 9, math.inf, 0.5, 0)))
    with pytest.raises(InputError, match="have class 8, the data set has 8"):
        score(dataset, detect((0, 0, 9, 9, 0.5, 8)))


@needs_shared
def test_real_photos(monkeypatch):
    root = SHARED / "lvis3"
    dataset = get_dataset(f"lvis:{root}/lvis_v0.5_dev_3.json:{root}")
    detections = random_detections(dataset.records, 1230, masks=True)
    results = compare(dataset, detections, monkeypatch)
    assert 5 < results["bbox"]["AP"] < 95
