"""Folders with COCO annotations and a text file of class names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data_synthetic import random_coco

from runtime.errors import InputError
from transfer.data.catalog import get_dataset

CLASSES = ("class90", "class2", "class7")  # the file's ids and order are 7, 2, 90


def make(folder: Path, json_file: str, images: str) -> Path:
    made = random_coco(folder / "made", images=4)
    for source, place in zip(made, (json_file, images), strict=True):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, folder / place)
    (folder / "classes.txt").write_text("\ufeff" + "\r\n".join(CLASSES) + "\n\n")
    return folder


@pytest.mark.parametrize(
    ("json_file", "images"),
    [
        ("annotations/train.json", "images"),
        ("annotations/train.json", "images/train"),
        ("annotations/instances_train.json", "train"),
        ("train/_annotations.coco.json", "train/images"),
    ],
)
def test_class_order_is_that_of_the_text_file(tmp_path, json_file, images):
    folder = make(tmp_path, json_file, images)
    if images == "train/images":  # the layout that has all of a split in one folder
        for image in (folder / images).iterdir():
            image.rename(folder / "train" / image.name)
    dataset = get_dataset(f"folder:{folder}:train")
    assert dataset.classes == CLASSES
    assert dataset.metadata["category_ids"] == [90, 2, 7]
    plain = get_dataset(f"coco:{folder / json_file}:{dataset.metadata['image_root']}")
    assert plain.classes == ("class2", "class7", "class90")
    for mine, other in zip(dataset.records, plain.records, strict=True):
        names = [[d.classes[a["category_id"]] for a in r["annotations"]]
                 for d, r in ((dataset, mine), (plain, other))]  # fmt: skip
        assert names[0] == names[1]
    assert {r["file_name"] for r in dataset.records} == {r["file_name"] for r in plain.records}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class90\nclass2", "category 'class7' is not among the class names"),
        ("class90\nclass2\nclass7\nbird", "class 'bird' is not among the categories"),
        ("class90\nClass2\nclass7", "class 'Class2' is not among"),
        ("class90\nclass2\nclass7\nclass2", "lists a class more than once"),
        ("\n \n", "names no classes"),
    ],
)
def test_names_that_differ_are_refused(tmp_path, text, message):
    folder = make(tmp_path, "annotations/train.json", "images")
    (folder / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        get_dataset(f"folder:{folder}:train")


def test_what_is_missing_is_named(tmp_path):
    folder = make(tmp_path, "annotations/train.json", "images")
    with pytest.raises(InputError, match=r"neither .*annotations/val\.json nor .*_annotations\."):
        get_dataset(f"folder:{folder}:val")
    (folder / "images").rename(folder / "pictures")
    with pytest.raises(InputError, match=r"neither .*images/train nor .*/train nor .*/images$"):
        get_dataset(f"folder:{folder}:train")
    (folder / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"cannot read .*classes\.txt"):
        get_dataset(f"folder:{folder}:train")
    with pytest.raises(InputError, match="write folder:DIR:SPLIT"):
        get_dataset(f"folder:{folder}")
