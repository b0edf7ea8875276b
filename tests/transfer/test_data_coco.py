"""The COCO reader: what it reads, what it refuses, what it remarks."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from data_synthetic import SHARED, make_cfg, needs_shared, random_coco, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from transfer.data.catalog import get_dataset, training_records
from transfer.data.coco import load_coco

POLYGON = [1, 1, 9, 1, 9, 9.5]


def content(**annotation: Any) -> dict[str, Any]:
    base = {"id": 1, "image_id": 4, "category_id": 3, "bbox": [1, 2, 8, 7.5], "area": 30}
    return {
        "images": [{"id": 4, "file_name": "sub/a.jpg", "height": 20, "width": 30}],
        "annotations": [{**base, **annotation}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def read(folder, data):
    if not (folder / "images/sub/a.jpg").exists():
        write_image(folder / "images/sub/a.jpg", 30, 20)
    path = folder / "data.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return get_dataset(f"coco:{path}:{folder / 'images'}")


def test_reads_a_file_without_info_and_with_gaps_in_the_ids(tmp_path):
    data = content(segmentation=[POLYGON], keypoints=[3, 4, 2, 0.5, 6, 0])
    dataset = read(tmp_path, data)
    assert dataset.classes == ("cat", "dog")
    assert dataset.metadata["category_ids"] == [3, 9]
    assert dataset.metadata["notes"] == []
    assert dataset.records == [
        {
            "file_name": str(tmp_path / "images/sub/a.jpg"),
            "image_id": 4,
            "height": 20,
            "width": 30,
            "annotations": [
                {
                    "category_id": 0,
                    "bbox": [1, 2, 8, 7.5],
                    "bbox_mode": 1,
                    "iscrowd": 0,
                    "area": 30,
                    "segmentation": [POLYGON],
                    "keypoints": [3.5, 4.5, 2, 1, 6.5, 0],
                }
            ],
        }
    ]


def test_images_come_in_the_order_of_their_ids_also_those_without_objects(tmp_path):
    dataset = get_dataset("coco:{}:{}".format(*random_coco(tmp_path, images=7)))
    assert [r["image_id"] for r in dataset.records] == list(range(7))
    assert dataset.records[3]["annotations"] == []
    cfg = make_cfg("DATASETS.TRAIN", (dataset.name,))
    trained = training_records(cfg)
    assert 3 not in {r["image_id"] for r in trained}
    assert all(any(not a["iscrowd"] for a in r["annotations"]) for r in trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "bbox must be four numbers"),
        ({"bbox": None}, "bbox must be four numbers"),
        ({"bbox": [1, 2, -3, 4]}, "negative side"),
        ({"bbox": [1, 2, "3", 4]}, "list of numbers"),
        ({"bbox": [1, 2, True, 4]}, "list of numbers"),
        ({"bbox": [1, 2, 1e8, 4]}, "within 10 image sizes"),
        ({"bbox": [10**400, 2, 3, 4]}, "within 10 image sizes"),
        ({"category_id": 4}, "category_id 4 is not among"),
        ({"category_id": "3"}, "must be whole numbers"),
        ({"image_id": 4.0}, "must be whole numbers"),
        ({"iscrowd": 2}, "iscrowd must be 0 or 1"),
        ({"ignore": 1}, "'ignore' is not supported"),
        ({"area": -1}, "area must be"),
        ({"area": "big"}, "area must be"),
        ({"keypoints": [1, 2]}, "triples"),
        ({"segmentation": "mask"}, "polygons or a run-length mask"),
        ({"segmentation": POLYGON}, "list of numbers"),
        ({"segmentation": [[1, 1, 9, 1, 9, 1e6]]}, "within 10 image sizes"),
        ({"segmentation": [[1.0] * 200002]}, "more than 100000 points"),
        ({"id": "x"}, "annotation id 'x' must be a whole number"),
    ],
)
def test_wrong_annotations_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, content(**change))
    assert str(tmp_path / "data.json") in str(caught.value)


@pytest.mark.parametrize(
    ("part", "items", "message"),
    [
        ("images", [], "lists no images"),
        ("images", None, "'images' must be a list"),
        ("images", [1], "'images' must be a list of objects"),
        ("images", [{"id": True}], "image id True must be a whole number"),
        ("images", [{"id": 4}, {"id": 4}], "image id 4 occurs more than once"),
        ("images", [{"id": 4, "height": 0, "width": 3}], "positive whole numbers"),
        ("images", [{"id": 4, "height": 2**20, "width": 2**20}], "pixels are more than"),
        ("categories", [], "at least one"),
        ("categories", [{"id": 3}], "each with a name"),
        ("categories", [{"id": 3, "name": "a"}, {"id": 4, "name": "a"}], "the same name"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, part, items, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, {**content(), part: items})


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "sub/../../secret.jpg", "/etc/passwd", "", 3, "a\0b", "nothing.jpg"]
)
def test_images_must_lie_in_the_folder(tmp_path, name):
    write_image(tmp_path / "secret.jpg", 30, 20)
    data = content()
    data["images"][0]["file_name"] = name
    with pytest.raises(InputError, match=r"must stay inside|is missing|must be a string"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": NaN}', "[" * 200_000, '{"a": 1', '{"a": ' + "1" * 5000 + "}", "\ud83d"],
)
def test_text_that_is_no_coco_file_is_refused(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"data\.json"):
        load_coco("x", str(path), str(tmp_path))


def test_infinite_numbers_of_valid_json_are_refused(tmp_path):
    text = json.dumps(content(segmentation=[POLYGON])).replace("9.5]", "1e999]")
    with pytest.raises(InputError, match="finite"):
        read(tmp_path, text)


def test_what_detectron2_drops_without_a_word_is_noted(tmp_path):
    data = content()
    base = data["annotations"][0]
    changes: list[dict[str, Any]] = [
        {"bbox": [5, 5, 0, 3]},
        {"bbox": [40, 5, 3, 3]},
        {"bbox": [20, 5, 15, 3]},
        {"segmentation": [[1, 1, 5, 5], POLYGON]},
        {"segmentation": [[1, 1, 5, 5]]},
        {"image_id": 77},
    ]
    data["annotations"] = [{**base, **change, "id": i} for i, change in enumerate(changes)]
    data["annotations"].append({k: v for k, v in base.items() if k != "area"} | {"id": 99})
    dataset = read(tmp_path, data)
    assert dataset.metadata["notes"] == [
        "2 boxes are empty or outside their image: not trained on",
        "1 boxes reach more than a pixel outside their image: clipped in training",
        "2 polygons with fewer than 3 points or a half point: left out",
        "1 annotations without any valid polygon: left out",
        "1 annotations of images that the file does not list: left out",
        "1 annotations without area: the box's is used (for APs, APm and APl)",
    ]
    kept = dataset.records[0]["annotations"]
    assert len(kept) == 5
    assert kept[3]["segmentation"] == [POLYGON]
    assert kept[4]["area"] == 60


def test_masks_are_required_before_training_starts(tmp_path):
    runs = random_coco(tmp_path / "rle", rle=True)
    cfg = make_cfg("DATASETS.TRAIN", ("coco:{}:{}".format(*runs),), "MODEL.MASK_ON", True)
    with pytest.raises(InputError, match="MASK_FORMAT bitmask"):
        training_records(cfg)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    assert training_records(cfg)
    read(tmp_path, content())
    cfg.DATASETS.TRAIN = (f"coco:{tmp_path / 'data.json'}:{tmp_path / 'images'}",)
    with pytest.raises(InputError, match="no segmentation"):
        training_records(cfg)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 50) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=300)
@given(data=st.data())
def test_any_json_is_read_or_refused_never_a_crash(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("coco")
    rle = {"size": [20, 30], "counts": [600]}
    segmentation = data.draw(st.sampled_from([[list(POLYGON)], rle]))
    # A copy: what is changed below must not leak into the next example.
    tree = copy.deepcopy(content(segmentation=segmentation, keypoints=[1, 2, 2]))
    target: Any = tree
    while isinstance(target, (dict, list)) and target and data.draw(st.integers(0, 4)):
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        holder, key = target, data.draw(st.sampled_from(keys))
        target = holder[key]
    if target is not tree:
        holder[key] = data.draw(JSON)
    try:
        dataset = read(folder, tree)
    except InputError as error:
        named = "data.json" in str(error)
    else:
        named = len(dataset.records) == 1
    assert named


@needs_shared
@pytest.mark.parametrize(("split", "empty", "objects"), [("train", 1, 470), ("val", 2, 382)])
def test_real_coco_photos(split, empty, objects):
    root = SHARED / "tiny_coco"
    path = root / f"annotations/instances_{split}2017.json"
    dataset = get_dataset(f"coco:{path}:{root / f'{split}2017'}")
    assert len(dataset.classes) == 80
    assert dataset.classes[-1] == "toothbrush"
    assert dataset.metadata["category_ids"][-1] == 90
    assert sum(len(r["annotations"]) for r in dataset.records) == objects
    assert sum(a["iscrowd"] for r in dataset.records for a in r["annotations"]) == 5
    assert sum(not r["annotations"] for r in dataset.records) == empty
    assert dataset.metadata["notes"] == []


@needs_shared
def test_real_nuts():
    dataset = get_dataset(f"coco:{SHARED / 'nuts/trainval.json'}:{SHARED / 'nuts/images'}")
    assert dataset.classes == ("date", "fig", "hazelnut")
    assert len(dataset.records) == 18
    assert sum(len(r["annotations"]) for r in dataset.records) == 165
