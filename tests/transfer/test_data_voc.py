"""The VOC reader: what it reads, what it refuses, what it remarks."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_synthetic import SHARED, make_cfg, needs_shared, random_voc, voc_object, write_voc
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from transfer.data.catalog import get_dataset, training_records
from transfer.data.voc import VOC_CLASSES, load_voc

CAT = voc_object("cat", (1, 2, 30, 20))


def read(folder: Path, split: str = "train"):
    return get_dataset(f"voc:{folder}:{split}")


def test_reads_boxes_from_the_left_edge_and_keeps_difficult_objects(tmp_path):
    hard = voc_object("dog", (3, 4.25, 40.5, 30), difficult=1)
    write_voc(tmp_path, {"b": (50, 40, [CAT, hard]), "a": (30, 60, [])})
    dataset = read(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.evaluator == "voc"
    assert dataset.metadata["year"] == 2012
    assert [(r["image_id"], r["height"], r["width"]) for r in dataset.records] == [
        ("b", 40, 50),
        ("a", 60, 30),
    ]
    assert dataset.records[0]["file_name"] == str(tmp_path / "JPEGImages/b.jpg")
    shared = {"bbox_mode": 0, "iscrowd": 0}
    assert dataset.records[0]["annotations"] == [
        {"category_id": 0, "bbox": [0, 1, 30, 20], "difficult": 0, **shared},
        {"category_id": 1, "bbox": [2, 3.25, 40.5, 30], "difficult": 1, **shared},
    ]
    assert dataset.metadata["notes"] == []


def test_class_names_are_the_same_for_every_split(tmp_path):
    write_voc(tmp_path, {"a": (50, 40, [voc_object("zebra", (1, 1, 9, 9))])}, "val")
    write_voc(tmp_path, {"b": (50, 40, [CAT])}, "train")
    assert read(tmp_path, "train").classes == read(tmp_path, "val").classes == ("cat", "zebra")
    (tmp_path / "labels.txt").write_text("zebra\nant\n\ncat\n")
    assert read(tmp_path).classes == ("zebra", "ant", "cat")
    assert read(tmp_path).records[0]["annotations"][0]["category_id"] == 2


def test_built_in_names_lie_below_the_variable(tmp_path, monkeypatch):
    random_voc(tmp_path / "VOC2007", ["cat", "dog"])
    (tmp_path / "VOC2007/ImageSets/Main/train.txt").rename(
        tmp_path / "VOC2007/ImageSets/Main/test.txt"
    )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    dataset = get_dataset("voc_2007_test")
    assert dataset.classes == VOC_CLASSES
    assert len(dataset.classes) == 20
    assert dataset.metadata["year"] == 2007
    with pytest.raises(InputError, match=r"VOC2012/ImageSets/Main/val\.txt"):
        get_dataset("voc_2012_val")


@pytest.mark.parametrize("name", ["voc_2012_test", "voc_2007", "", "voc:here", "coco:x:", "voc::a"])
def test_unknown_names_are_refused(name):
    with pytest.raises(InputError, match="data set"):
        get_dataset(name)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (voc_object("cat", (10, 10, 9, 20)), "box .10, 10, 9, 20. is empty"),
        (voc_object("cat", (10, 10, 52, 20)), "outside the 50 x 40 image"),
        (voc_object("cat", (-1, 10, 20, 20)), "outside the 50 x 40 image"),
        (voc_object("cat", (51, 10, 51, 20)), "is empty"),
        (voc_object("cat", ("nan", 1, 5, 5)), "xmin> must be a number, not 'nan'"),
        (voc_object("cat", (1, 1, "1e999", 5)), "xmax> must be a number"),
        (voc_object("cat", (1, 1, 5, "x")), "ymax> must be a number, not 'x'"),
        (voc_object("cat", (1, 1, 5, 5), difficult=2), "difficult> must be 0 or 1"),
        ("<object><name>cat</name></object>", "bndbox/xmin> is missing"),
        ("<object/>", "name> is missing"),
        ("<size>", "cannot read annotation"),
    ],
)
def test_wrong_annotations_are_refused(tmp_path, thing, message):
    write_voc(tmp_path, {"good": (50, 40, [CAT]), "bad": (50, 40, [CAT, thing])})
    (tmp_path / "labels.txt").write_text("cat\n")
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert str(tmp_path / "Annotations/bad.xml") in str(caught.value)


def test_several_problems_are_counted_and_the_first_is_named(tmp_path):
    wrong = voc_object("bird", (1, 1, 5, 5))
    write_voc(tmp_path, {i: (50, 40, [wrong]) for i in "abc"})
    (tmp_path / "labels.txt").write_text("cat\n")
    with pytest.raises(InputError, match=r"a\.xml: class 'bird' is not one of: cat \(2 more"):
        read(tmp_path)


def test_missing_files_are_named(tmp_path):
    write_voc(tmp_path, {"a": (50, 40, [CAT])})
    with pytest.raises(InputError, match=r"Main/test\.txt"):
        read(tmp_path, "test")
    (tmp_path / "JPEGImages/a.jpg").rename(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"JPEGImages/a\.jpg is missing"):
        read(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_text("b\n")
    with pytest.raises(InputError, match=r"Annotations/b\.xml"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["a\na\n", "\n \n", "../Annotations/a\n"])
def test_wrong_splits_are_refused(tmp_path, content):
    write_voc(tmp_path, {"a": (50, 40, [CAT])})
    (tmp_path / "ImageSets/Main/train.txt").write_text(content)
    with pytest.raises(InputError, match=r"more than once|lists no images|must stay inside"):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_doctype_is_refused_before_it_expands(tmp_path, encoding):
    write_voc(tmp_path, {"a": (50, 40, [CAT])})
    path = tmp_path / "Annotations/a.xml"
    lines = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    bomb = f'<!DOCTYPE x [<!ENTITY l0 "ha">{lines}]><annotation>&l9;</annotation>'
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{bomb}'.encode(encoding))
    with pytest.raises(InputError, match=r"a\.xml has a DOCTYPE"):
        read(tmp_path)


def test_what_is_tolerated_is_noted(tmp_path):
    from_zero = voc_object("cat", (0, 0, 50, 40), difficult=None)
    write_voc(tmp_path, {"a": (50, 40, [from_zero, from_zero])})
    dataset = read(tmp_path)
    assert dataset.records[0]["annotations"][0]["bbox"] == [-1, -1, 50, 40]
    assert dataset.records[0]["annotations"][0]["difficult"] == 0
    assert dataset.metadata["notes"] == [
        "2 objects without <difficult> are taken as not difficult",
        "2 boxes reach up to a pixel outside their image (VOC counts from 1): clipped",
    ]


def test_training_uses_all_sets_without_empty_images(tmp_path):
    write_voc(tmp_path, {"a": (50, 40, [CAT]), "b": (50, 40, [])}, "one")
    write_voc(tmp_path, {"c": (50, 40, [CAT])}, "two")
    names = (f"voc:{tmp_path}:one", f"voc:{tmp_path}:two")
    cfg = make_cfg("DATASETS.TRAIN", names)
    assert [r["image_id"] for r in training_records(cfg)] == ["a", "c"]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert [r["image_id"] for r in training_records(cfg)] == ["a", "b", "c"]
    cfg.MODEL.MASK_ON = True
    with pytest.raises(InputError, match="no segmentation"):
        training_records(cfg)
    other = write_voc(tmp_path / "other", {"d": (50, 40, [voc_object("dog", (1, 1, 9, 9))])})
    with pytest.raises(InputError, match="different classes: cat against dog"):
        training_records(make_cfg("DATASETS.TRAIN", (*names, f"voc:{other}:train")))
    empty = write_voc(tmp_path / "empty", {"e": (50, 40, [])})
    (empty / "labels.txt").write_text("cat")
    with pytest.raises(InputError, match="no image"):
        training_records(make_cfg("DATASETS.TRAIN", (f"voc:{empty}:train",)))


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_xml_is_read_or_refused_never_a_crash(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder, {"a": (50, 40, [CAT])})
    path = folder / "Annotations/a.xml"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        end = at + data.draw(st.integers(0, 12))
        content[at:end] = data.draw(st.binary(max_size=6))
    path.write_bytes(content)
    (folder / "ImageSets/Main/train.txt").write_bytes(
        data.draw(st.sampled_from([b"a\n", b"a\n\xff", b"\0a\n", b"a b\n"]))
    )
    try:
        dataset = load_voc("x", str(folder), "train", 2012, ("cat",))
    except InputError as error:
        good = str(folder) in str(error)
    else:
        good = all(a["category_id"] == 0 for a in dataset.records[0]["annotations"])
    assert good


@needs_shared
def test_real_blood_cells():
    counts = {}
    for split, images in (("train", 205), ("val", 87), ("test", 72)):
        dataset = get_dataset(f"voc:{SHARED / 'bccd'}:{split}")
        assert len(dataset.records) == images
        assert dataset.classes == ("Platelets", "RBC", "WBC")
        assert dataset.metadata["notes"] == []
        for record in dataset.records:
            for annotation in record["annotations"]:
                name = dataset.classes[annotation["category_id"]]
                counts[name] = counts.get(name, 0) + 1
    assert counts == {"RBC": 4155, "WBC": 372, "Platelets": 361}


@needs_shared
def test_real_voc_photos(tmp_path):
    source = SHARED / "voc100"
    (tmp_path / "JPEGImages").symlink_to(source / "images")
    (tmp_path / "Annotations").symlink_to(source / "gts/pascalvoc_format")
    listing = tmp_path / "ImageSets/Main/all.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("\n".join(p.stem for p in sorted((source / "images").glob("*.jpg"))))
    dataset = read(tmp_path, "all")
    assert dataset.classes == VOC_CLASSES  # the names found, sorted, are VOC's own list
    annotations = [a for r in dataset.records for a in r["annotations"]]
    assert (len(annotations), sum(a["difficult"] for a in annotations)) == (273, 38)
