from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import folder
from demo.folder import DataRecipe, make
from demo.scenes import CLASSES, scene
from pretrain.source.images import ImageFolder
from runtime.errors import InputError
from runtime.randomness import generator
from transfer.data.voc import load_voc

SMALL = DataRecipe(portraits_per_class=2, train_scenes=8, test_scenes=3)
TOOL = Path(__file__).parents[2] / "tools/make_demo_data.py"


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_pretraining_folder_has_one_folder_a_class(tmp_path: Path) -> None:
    make(tmp_path / "data", SMALL)
    images = ImageFolder.scan(tmp_path / "data/pretrain")
    assert images.classes() == tuple(CLASSES)
    assert images.labels() == [number for number in range(len(CLASSES)) for _ in range(2)]
    assert images.load(0).size == (80, 80)


def test_voc_reader_finds_the_boxes_that_were_drawn(tmp_path: Path) -> None:
    make(tmp_path / "data", SMALL)
    data = load_voc("demo", str(tmp_path / "data/voc"), "train", 2007)
    assert data.classes == tuple(CLASSES)
    assert len(data.records) == 8
    for index, record in enumerate(data.records):
        name = data.classes[index % len(data.classes)]
        rng = generator(0, "train scene", index)
        image, boxes = scene(name, 128, 160, SMALL.object_radii, rng)
        got = [(a["category_id"], *a["bbox"]) for a in record["annotations"]]
        assert got == [(data.classes.index(b.name), b.x0, b.y0, b.x1, b.y1) for b in boxes]
        stored = np.asarray(Image.open(record["file_name"]), np.float32)
        assert np.abs(stored - image).mean() < 4  # JPEG; swapped channels would give more
        assert np.abs(stored - image[:, :, ::-1]).mean() > np.abs(stored - image).mean()


def test_same_seed_same_bytes_other_seed_other_pictures(tmp_path: Path) -> None:
    make(tmp_path / "a", SMALL)
    make(tmp_path / "b", SMALL)
    make(tmp_path / "c", DataRecipe(1, portraits_per_class=2, train_scenes=8, test_scenes=3))
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a if name.endswith(".jpg"))


def test_a_picture_does_not_depend_on_how_many_are_made(tmp_path: Path) -> None:
    make(tmp_path / "a", SMALL)
    make(tmp_path / "b", DataRecipe(portraits_per_class=3, train_scenes=9, test_scenes=5))
    few, many = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert all(many[name] == few[name] for name in few if name.endswith((".jpg", ".xml")))


def test_pictures_of_different_splits_and_folders_all_differ(tmp_path: Path) -> None:
    make(tmp_path / "data", SMALL)
    pictures = [d for name, d in digests(tmp_path / "data").items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 2 * len(CLASSES) + 8 + 3


def test_replaces_its_own_folder_only(tmp_path: Path) -> None:
    make(tmp_path / "data", DataRecipe(portraits_per_class=4, train_scenes=8, test_scenes=3))
    make(tmp_path / "data", SMALL)
    assert json.loads((tmp_path / "data/demo_data.json").read_text())["portraits_per_class"] == 2
    assert len(ImageFolder.scan(tmp_path / "data/pretrain").files) == 2 * len(CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]

    (tmp_path / "data/notes.txt").write_text("mine")
    before = digests(tmp_path / "data")
    with pytest.raises(InputError, match="holds more than the demo's data"):
        make(tmp_path / "data", SMALL)
    assert digests(tmp_path / "data") == before


def test_refuses_a_foreign_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/pretrain").mkdir()
    with pytest.raises(InputError, match="not empty"):
        make(tmp_path / "photos", SMALL)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        make(tmp_path / "file", SMALL)
    assert (tmp_path / "photos/pretrain").is_dir()


def test_a_failure_half_way_leaves_the_earlier_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "data", SMALL)
    before = digests(tmp_path / "data")

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(folder, "_write_voc", full_disk)
    with pytest.raises(OSError, match="no space"):
        make(tmp_path / "data", SMALL)
    with pytest.raises(OSError, match="no space"):
        make(tmp_path / "new", SMALL)
    assert digests(tmp_path / "data") == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_command_line_refuses_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    done = subprocess.run(
        [sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
