"""The LVIS reader: where images lie, what the classes are, what is refused."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_synthetic import SHARED, needs_shared, random_lvis, write_image

from runtime.errors import InputError
from transfer.data.catalog import get_dataset
from transfer.data.lvis import load_lvis


def content(**annotation: Any) -> dict[str, Any]:
    mask = [[1, 1, 9, 1, 9, 9.5]]
    base = {"id": 1, "image_id": 4, "category_id": 3, "bbox": [1, 2, 8, 7.5], "area": 30}
    url = "http://images.cocodataset.org/train2017/000000000004.jpg"
    image = {"id": 4, "coco_url": url, "height": 20, "width": 30}
    lists = {"neg_category_ids": [9], "not_exhaustive_category_ids": [3]}
    cat = {"name": "cat", "synonyms": ["tabby", "cat"], "frequency": "r", "image_count": 3}
    dog = {"name": "dog", "frequency": "f", "image_count": 300}
    return {
        "images": [image | lists],
        "annotations": [base | {"segmentation": mask} | annotation],
        "categories": [dog | {"id": 9}, cat | {"id": 3}],
    }


def read(folder: Path, data: dict[str, Any]) -> Any:
    write_image(folder / "coco/train2017/000000000004.jpg", 30, 20)
    path = folder / "data.json"
    path.write_text(json.dumps(data))
    return get_dataset(f"lvis:{path}:{folder / 'coco'}")


def test_reads_records_classes_and_their_frequency(tmp_path):
    dataset = read(tmp_path, content())
    assert dataset.evaluator == "lvis"
    assert dataset.classes == ("tabby", "dog")  # in the order of the ids
    assert dataset.metadata["category_ids"] == [3, 9]
    assert dataset.metadata["frequency"] == ("r", "f")
    assert dataset.metadata["image_count"] == (3, 300)
    (record,) = dataset.records
    assert record["file_name"] == str(tmp_path / "coco/train2017/000000000004.jpg")
    assert record["neg_category_ids"] == [9]
    assert record["not_exhaustive_category_ids"] == [3]
    assert record["annotations"] == [
        {
            "bbox": [1, 2, 8, 7.5],
            "bbox_mode": 1,
            "category_id": 0,
            "iscrowd": 0,
            "area": 30,
            "segmentation": [[1, 1, 9, 1, 9, 9.5]],
        }
    ]


@pytest.mark.parametrize(
    ("url", "file_name", "place"),
    [
        ("http://x/train2017/a.jpg", "other.jpg", "train2017/a.jpg"),
        ("http://x/train2017/a.jpg", None, "a.jpg"),
        (None, "a.jpg", "a.jpg"),
        (None, "val2017/a.jpg", "val2017/a.jpg"),
        (None, "COCO_val2014_a.jpg", "a.jpg"),
        (None, "sub/COCO_train2014_a.jpg", "sub/a.jpg"),
        (None, "COCO_val2014_a.jpg", "COCO_val2014_a.jpg"),
    ],
)
def test_where_an_image_lies(tmp_path, url, file_name, place):
    data = content()
    data["images"][0].update(coco_url=url, file_name=file_name)
    write_image(tmp_path / "coco" / place, 30, 20)
    assert read(tmp_path, data).records[0]["file_name"] == str(tmp_path / "coco" / place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].pop("segmentation"), "annotation 1 has no segmentation"),
        (lambda d: d["annotations"][0].update(segmentation=[]), "has no segmentation"),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "fewer than 3 points"),
        (lambda d: d["annotations"][0].update(segmentation=[[1.0] * 7]), "a half point"),
        (lambda d: d["annotations"][0].update(segmentation=[3]), "list of numbers"),
        (lambda d: d["annotations"][0].update(iscrowd=1), "is a crowd, which LVIS does not have"),
        (lambda d: d["annotations"][0].update(category_id=4), "4 is not among"),
        (lambda d: d["categories"][0].update(frequency="x"), "category 9: frequency must be"),
        (lambda d: d["categories"][0].pop("image_count"), "category 9: image_count must be"),
        (lambda d: d["categories"][1].update(synonyms=["dog"]), "the same name"),
        (lambda d: d["categories"][1].update(synonyms=[], name=None), "each with a name"),
        (lambda d: d["images"][0].update(neg_category_ids=[4]), "image 4: neg_category_ids must"),
        (lambda d: d["images"][0].update(not_exhaustive_category_ids=3), "image 4: not_exhaustive"),
        (lambda d: d["images"][0].update(coco_url="http://x/../a.jpg"), "must stay inside"),
        (lambda d: d["images"][0].update(coco_url=None), "file_name must be a string"),
        (lambda d: d["images"][0].update(coco_url="a/b.jpg"), "a/b.jpg is missing"),
        (lambda d: d.pop("annotations"), "'annotations' must be a list"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, change, message):
    data = content()
    change(data)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, data)
    assert str(tmp_path / "data.json") in str(caught.value)


def test_built_in_names_lie_below_detectron2_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    data = content()
    (tmp_path / "lvis").mkdir()
    for name, count in (("lvis_v1_train", 1203), ("lvis_v0.5_val_rand_100", 1230)):
        full = copy.deepcopy(data)
        full["categories"] = [
            {"id": i, "name": f"class {i}", "frequency": "rcf"[i % 3], "image_count": i}
            for i in range(1, count + 1)
        ]
        write_image(tmp_path / "coco/train2017/000000000004.jpg", 30, 20)
        path = tmp_path / "lvis" / f"{name}.json"
        path.write_text(json.dumps(full))
        dataset = get_dataset(name)
        assert len(dataset.classes) == count
        assert dataset.records[0]["annotations"][0]["category_id"] == 2
        path.write_text(json.dumps(data))
        with pytest.raises(InputError, match=f"must have the categories 1 to {count} of {name}"):
            get_dataset(name)
    with pytest.raises(InputError, match=r"cannot read .*lvis_v1_val\.json"):
        get_dataset("lvis_v1_val")
    with pytest.raises(InputError, match="unknown data set 'lvis_v2_val'"):
        get_dataset("lvis_v2_val")
    with pytest.raises(InputError, match="write lvis:JSON:IMAGE_DIR"):
        get_dataset("lvis:only.json")


def test_generated_data(tmp_path):
    dataset = get_dataset("lvis:{}:{}".format(*random_lvis(tmp_path, images=6)))
    assert [r["image_id"] for r in dataset.records] == list(range(6))
    assert Counter(dataset.metadata["frequency"]) == {"r": 2, "c": 3, "f": 3}


@needs_shared
@pytest.mark.parametrize("folder", ["", "/val2017"])
def test_real_photos(folder):
    root = SHARED / "lvis3"
    dataset = load_lvis("x", str(root / "lvis_v0.5_dev_3.json"), f"{root}{folder}", 1230)
    assert [r["image_id"] for r in dataset.records] == [505573, 527220, 577932]
    assert sum(len(r["annotations"]) for r in dataset.records) == 39
    assert dataset.records[1]["not_exhaustive_category_ids"] == [560]
    assert Counter(dataset.metadata["frequency"]) == {"c": 461, "r": 454, "f": 315}
    assert dataset.classes[0] == "acorn"
    assert dataset.metadata["notes"] == []
