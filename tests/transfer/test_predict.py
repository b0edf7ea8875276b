"""Predictions are those of the evaluation, on any images, and nothing is left out silently."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from PIL import Image
from pycocotools import mask as mask_util

from runtime.errors import InputError
from transfer.data.dataset import Dataset
from transfer.data.folder import find_images, image_record
from transfer.run.finetune import finetune
from transfer.run.job import Job
from transfer.run.predict import Images, _rows, predict

FEW = ("SOLVER.MAX_ITER", "2", "TEST.PRECISE_BN.NUM_ITER", "1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with pictures, in ``run``."""
    folder = tmp_path_factory.mktemp("world")
    tiny.write_voc(folder / "voc")
    tiny.write_recipe(folder / "recipe.yaml", ROOT)
    finetune(training(folder, folder / "run"))
    return folder


def training(world: Path, output: Path, **changes: Any) -> Job:
    options = {
        "recipe": str(world / "recipe.yaml"),
        "weights": "random",
        "train_data": [f"voc:{world / 'voc'}:train"],
        "test_data": [f"voc:{world / 'voc'}:test"],
        "engine": "embedded",
        "seed": 1,
        "output": str(output),
        "overrides": FEW,
        "visualize": 2,
    }
    return Job(**(options | changes))


def job(world: Path, **changes: Any) -> Job:
    run = world / "run"
    options = {
        "recipe": str(run / "config.yaml"),
        "weights": str(run / "model_final.pth"),
        "engine": "embedded",
    }
    return Job(**(options | changes))


def test_predictions_are_those_of_the_evaluation(world: Path, tmp_path: Path) -> None:
    predict(job(world), Images(str(world / "voc/JPEGImages"), tmp_path / "out", 0.0))
    found = json.loads((tmp_path / "out/detections.json").read_text())
    evaluated = json.loads((world / "run/inference/coco_instances_results.json").read_text())
    tested = {row["file_name"] for row in evaluated}
    assert len(tested) == 2
    keys = ("file_name", "bbox", "score", "category_id")
    pick = [[row[k] for k in keys] for row in found if row["file_name"] in tested]
    assert pick == [[row[k] for k in keys] for row in evaluated]
    names = ("disc", "square")
    assert all(row["category_name"] == names[row["category_id"]] for row in found)
    pictures = sorted(path.name for path in (tmp_path / "out/pictures").iterdir())
    assert pictures == [f"{i}.jpg" for i in range(8)]
    drawn, plain = (
        np.array(Image.open(folder / "7.jpg"), dtype=int)
        for folder in (tmp_path / "out/pictures", world / "voc/JPEGImages")
    )
    assert drawn.shape == plain.shape
    assert np.abs(drawn - plain).max() > 100


def test_a_damaged_image_is_named_and_the_others_are_done(world: Path, tmp_path: Path) -> None:
    for name in ("a/0.jpg", "b/0.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        shutil.copy(world / "voc/JPEGImages/0.jpg", tmp_path / "in" / name)
    half = (world / "voc/JPEGImages/1.jpg").read_bytes()
    (tmp_path / "in/half.jpg").write_bytes(half[: len(half) // 2])
    (tmp_path / "in/text.jpg").write_text("no image")
    (tmp_path / "in/notes.txt").write_text("not looked at")
    with pytest.raises(InputError, match=r"2 of 4 images could not be read.*half\.jpg"):
        predict(job(world), Images(str(tmp_path / "in"), tmp_path / "out"))
    assert (tmp_path / "out/pictures/a/0.jpg").is_file()
    assert (tmp_path / "out/pictures/b/0.jpg").is_file()
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert {Path(row["file_name"]).parent.name for row in found} == {"a", "b"}


def test_images_are_found_and_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # stored lying, shown upright
    for name in ("x.jpg", "sub/y.JPEG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name, exif=exif)
    (tmp_path / "sub/._y.jpg").write_bytes(b"what macOS leaves beside a file")
    root, files = find_images(str(tmp_path))
    assert (root, [f.name for f in files]) == (tmp_path, ["y.JPEG", "x.jpg"])
    assert find_images(str(tmp_path / "*.jpg")) == (tmp_path, [tmp_path / "x.jpg"])
    assert find_images(str(tmp_path / "x.jpg")) == (tmp_path, [tmp_path / "x.jpg"])
    record = image_record(tmp_path / "x.jpg", 3)
    assert (record["height"], record["width"], record["image_id"]) == (40, 30, 3)
    for nothing in ("gone", "*.png"):
        with pytest.raises(InputError, match="no images at"):
            find_images(str(tmp_path / nothing))


def test_wrong_requests_write_nothing(world: Path, tmp_path: Path) -> None:
    source = str(world / "voc/JPEGImages")
    weights = str(shutil.copy(world / "run/model_final.pth", tmp_path / "model.pth"))
    other = tmp_path / "other"
    tiny.write_voc(other)
    (other / "labels.txt").write_text("square\ndisc\n")
    output = tmp_path / "out"
    for wrong, message in (
        (job(world, weights=weights), "names of the classes are not known"),
        (job(world, test_data=[f"voc:{other}:test"]), "leave --test-data out"),
        (job(world, overrides=["INPUT.FORMAT", "BGR"]), r"trained with INPUT\.FORMAT 'RGB'"),
        (job(world, overrides=["MODEL.MASK_ON", "True"]), "does not fit this recipe's model"),
    ):
        with pytest.raises(InputError, match=message):
            predict(wrong, Images(source, output))
    with pytest.raises(InputError, match="between 0 and 1"):
        predict(job(world), Images(source, output, 50))
    assert not output.exists()
    with pytest.raises(InputError, match="not empty"):
        predict(job(world), Images(source, Path(source)))


def test_command_line_with_classes_from_a_data_set(world: Path, tmp_path: Path) -> None:
    weights = shutil.copy(world / "run/model_final.pth", tmp_path / "model.pth")
    command = [sys.executable, str(ROOT / "tools/predict.py"), "--engine", "embedded"]
    command += ["--config", str(world / "run/config.yaml"), "--weights", str(weights)]
    command += ["--input", str(world / "voc/JPEGImages/0.jpg"), "--output", str(tmp_path / "out")]
    command += ["--test-data", f"voc:{world / 'voc'}:test"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/pictures/0.jpg").is_file()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: --output")


def test_masks_and_keypoints_in_coco_form() -> None:
    masks = torch.zeros(1, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 3:7] = True
    found = {
        "boxes": torch.tensor([[3.0, 2, 7, 4]]),
        "scores": torch.tensor([0.5]),
        "classes": torch.tensor([1]),
        "masks": masks,
        "keypoints": torch.tensor([[[3.5, 2.5, 0.9]]]),
    }
    data = Dataset("d", [], ("cat", "dog"), "coco", {})
    (row,) = _rows({"image_id": 1, "file_name": "a.jpg"}, found, data)
    row = json.loads(json.dumps(row))
    assert np.array_equal(mask_util.decode(row["segmentation"]), masks[0].numpy())
    assert mask_util.toBbox(row["segmentation"]).tolist() == row["bbox"] == [3, 2, 4, 2]
    assert row["keypoints"] == pytest.approx([3, 2, 0.9])
    assert row["category_name"] == "dog"


def test_a_run_leaves_its_pictures(world: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = world / "run"
    batch = np.array(Image.open(run / "train_batch.png"))
    assert batch.shape[2] == 3
    assert sorted(p.name for p in (run / "visualize").iterdir()) == ["01_6.png", "02_7.png"]
    tags: set[str] = set()
    for events in run.glob("events*"):
        accumulator = EventAccumulator(str(events))
        accumulator.Reload()
        tags |= set(accumulator.Tags()["images"])
    assert tags == {"train_batch", "visualize/01", "visualize/02"}


@pytest.mark.detectron2
def test_detectron2_predicts_the_same(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    overrides = [*FEW, "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    overrides += ["MODEL.RESNETS.STEM_OUT_CHANNELS", "64", "MODEL.DEVICE", "cpu"]
    run = tmp_path / "run"
    finetune(training(world, run, engine="detectron2", overrides=overrides))
    assert (run / "train_batch.png").is_file()
    assert len(list((run / "visualize").iterdir())) == 2
    contents = []
    for engine in ("detectron2", "embedded"):
        request = job(world, engine=engine, recipe=str(run / "config.yaml"))
        request = Job(**{**vars(request), "weights": str(run / "model_final.pth")})
        output = tmp_path / engine
        predict(request, Images(str(world / "voc/JPEGImages"), output, 0.0))
        contents.append((output / "detections.json").read_text())
    assert contents[0] == contents[1]
    assert json.loads(contents[0])
