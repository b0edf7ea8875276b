"""The evaluators against Detectron2's, detections of equal score included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_synthetic import (
    SHARED,
    needs_shared,
    random_coco,
    random_detections,
    random_lvis,
    random_voc,
)

detectron2 = pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.data import MetadataCatalog  # noqa: E402
from detectron2.evaluation import (  # noqa: E402
    COCOEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.structures import Boxes, Instances  # noqa: E402

from transfer.data.catalog import get_dataset  # noqa: E402
from transfer.data.voc import load_voc  # noqa: E402
from transfer.evaluation import build_evaluator  # noqa: E402


def run(evaluator, dataset, detections, convert):
    if hasattr(evaluator, "reset"):
        evaluator.reset()
    for record, found in zip(dataset.records, detections, strict=True):
        evaluator.process([record], [convert(record, found)])
    return evaluator.evaluate()


def ours(dataset, detections):
    return run(build_evaluator(dataset), dataset, detections, lambda _, found: found)


def as_instances(record, found):
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(found["boxes"])
    instances.scores = found["scores"]
    instances.pred_classes = found["classes"]
    if "masks" in found:
        instances.pred_masks = found["masks"]
    return {"instances": instances}


def compare_voc(dataset, detections):
    meta = MetadataCatalog.get(f"{dataset.name}:{dataset.metadata['dirname']}")
    keys = ("dirname", "split", "year")
    meta.set(thing_classes=list(dataset.classes), **{k: dataset.metadata[k] for k in keys})
    theirs = run(PascalVOCDetectionEvaluator(meta.name), dataset, detections, as_instances)
    found = ours(dataset, detections)["bbox"]
    expected = dict(theirs["bbox"])
    assert {key: found[key] for key in expected} == expected
    assert found["AP"] == pytest.approx(np.mean([found[f"AP-{c}"] for c in dataset.classes]))
    return found


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(4))
def test_voc(tmp_path, year, seed):
    classes = ["cat", "dog", "eel"]
    folder = str(random_voc(tmp_path, classes, images=40, seed=seed))
    dataset = load_voc(f"voc{year}", folder, "train", year, tuple(classes))
    found = compare_voc(dataset, random_detections(dataset.records, 3, seed))
    assert 5 < found["AP"] < 95


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_classes_without_objects_or_without_detections(tmp_path, year):
    folder = str(random_voc(tmp_path, ["cat", "dog"]))
    dataset = load_voc(f"empty{year}", folder, "train", year, ("ant", "cat", "dog"))
    detections = random_detections(dataset.records, 2)
    for found in detections:
        found["classes"] = found["classes"] * 0 + 1  # only cats
    compare_voc(dataset, detections)


def compare_coco(dataset, detections):
    meta = MetadataCatalog.get(dataset.name)
    contiguous = {c: i for i, c in enumerate(dataset.metadata["category_ids"])}
    meta.set(
        json_file=dataset.metadata["json_file"],
        thing_classes=list(dataset.classes),
        thing_dataset_id_to_contiguous_id=contiguous,
    )
    assert_equal(dataset, detections, COCOEvaluator(dataset.name, distributed=False))


def assert_equal(dataset, detections, evaluator):
    theirs = run(evaluator, dataset, detections, as_instances)
    found = ours(dataset, detections)
    assert set(found) == set(theirs) == {"bbox", "segm"}
    for task, expected in theirs.items():
        assert list(found[task]) == list(expected)
        # LVIS's -1 for what the data set does not have comes out there as -100
        values = (
            list(found[task].values()),
            [np.nan if value == -100 else value for value in expected.values()],
        )
        # but for the last bit: the same precisions are added up in another order
        np.testing.assert_allclose(*values, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("seed", range(2))
def test_coco(tmp_path, seed):
    paths = random_coco(tmp_path, images=25, seed=seed, rle=bool(seed))
    path = Path(paths[0])  # Detectron2 would take the annotation of id 0 for none
    path.write_text(path.read_text().replace('"id": 0, "image_id"', '"id": 9999, "image_id"'))
    dataset = get_dataset("coco:{}:{}".format(*paths))
    compare_coco(dataset, random_detections(dataset.records, 3, seed, masks=True))


def compare_lvis(dataset, detections, monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)  # of numpy 1, which lvis uses
    meta = MetadataCatalog.get(dataset.name)
    meta.set(json_file=dataset.metadata["json_file"], thing_classes=list(dataset.classes))
    assert_equal(dataset, detections, LVISEvaluator(dataset.name, distributed=False))


@pytest.mark.parametrize("seed", range(2))
def test_lvis(tmp_path, seed, monkeypatch):
    dataset = get_dataset("lvis:{}:{}".format(*random_lvis(tmp_path, images=25, seed=seed)))
    compare_lvis(dataset, random_detections(dataset.records, 8, seed, masks=True), monkeypatch)


@needs_shared
def test_real_lvis(monkeypatch):
    root = SHARED / "lvis3"
    dataset = get_dataset(f"lvis:{root}/lvis_v0.5_dev_3.json:{root}")
    compare_lvis(dataset, random_detections(dataset.records, 1230, masks=True), monkeypatch)


@needs_shared
def test_real_data():
    dataset = get_dataset(f"voc:{SHARED / 'bccd'}:test")
    found = compare_voc(dataset, random_detections(dataset.records, 3))
    assert 5 < found["AP"] < 95
    root = SHARED / "tiny_coco"
    dataset = get_dataset(f"coco:{root}/annotations/instances_val2017.json:{root}/val2017")
    compare_coco(dataset, random_detections(dataset.records, 80, masks=True))
