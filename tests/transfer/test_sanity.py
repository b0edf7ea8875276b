"""One batch is learnt by heart where everything fits, and the fault is named where not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import ROOT
from PIL import Image, ImageDraw

from transfer.run import sanity
from transfer.run.job import Job, Options


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny.write_voc(folder / "voc")
    tiny.write_recipe(folder / "recipe.yaml", ROOT)
    return folder


def job(world: Path, data: str, *overrides: str, engine: str = "embedded") -> Job:
    return Job(
        recipe=str(world / "recipe.yaml"),
        weights="random",
        overrides=overrides,
        train_data=[data],
        test_data=[data],
        engine=engine,
        seed=1,
        output=str(world / "output"),
    )


def coco(folder: Path, boxes: list[list[tuple[list[int], int]]]) -> str:
    """A COCO file of equal images of a red square; (box, category) of each."""
    image = Image.new("RGB", (80, 60), (128, 128, 128))
    ImageDraw.Draw(image).rectangle((20, 15, 44, 39), fill=(220, 30, 30))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, objects in enumerate(boxes, start=1):
        image.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 80})
        for box, category in objects:
            common = {"id": len(annotations) + 1, "image_id": number, "area": box[2] * box[3]}
            annotations.append({**common, "bbox": box, "category_id": category, "iscrowd": 0})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return f"coco:{folder / 'a.json'}:{folder}"


SQUARE = [20, 15, 25, 25]


@pytest.mark.parametrize(
    "engine", ["embedded", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_sound_recipe_passes_and_writes_nothing(
    world: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    width = "MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.STEM_OUT_CHANNELS 64".split()
    overrides = width if engine == "detectron2" else []
    assert sanity.sanity(job(world, f"voc:{world / 'voc'}:train", *overrides, engine=engine))
    assert "sanity: passed" in capsys.readouterr().err
    assert not (world / "output").exists()


def failure(capsys: pytest.CaptureFixture[str], request: Job) -> str:
    assert not sanity.sanity(request)
    return capsys.readouterr().err.splitlines()[-1]


def test_contradicting_classes_are_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanity, "ITERATIONS", 100)
    data = coco(tmp_path, [[(SQUARE, 1)], [(SQUARE, 2)]])  # the same picture, another class
    assert "found but not their classes" in failure(capsys, job(world, data))


def test_boxes_without_area_are_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanity, "ITERATIONS", 25)
    flat = ([50, 15, 0, 25], 1)
    data = coco(tmp_path, [[(SQUARE, 1), flat], [(SQUARE, 1), flat]])
    assert "2 of 4 objects have boxes without area" in failure(capsys, job(world, data))


def test_what_is_not_finite_is_named(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"voc:{world / 'voc'}:train"
    message = failure(capsys, job(world, data, "MODEL.PIXEL_STD", "[0.0, 0.0, 0.0]"))
    assert "not finite at iteration 0" in message
    assert "MODEL.PIXEL_STD" in message


def test_frozen_parts_are_named(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanity, "ITERATIONS", 25)
    monkeypatch.setattr(sanity, "ENOUGH", 101.0)  # whatever was learnt is not enough
    request = job(world, f"voc:{world / 'voc'}:train", "MODEL.BACKBONE.FREEZE_AT", "5")
    request = replace(request, options=Options(allow_deviation=True))
    assert "res5 are frozen: lower MODEL.BACKBONE.FREEZE_AT 5" in failure(capsys, request)


def test_exit_code_of_the_command_line(world: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/train_det.py"), "--sanity", "--weights", "random"]
    command += ["--config", str(world / "recipe.yaml"), "--engine", "embedded"]
    for option in ("--train-data", "--test-data"):
        command += [option, f"voc:{world / 'voc'}:train"]
    wrong = ["OUTPUT_DIR", str(world / "output"), "MODEL.PIXEL_STD", "[0.0, 0.0, 0.0]"]
    mixed = [*command[:2], *wrong, *command[2:]]  # keys before options
    done = subprocess.run(mixed, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command, "MODEL.X", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--sanity does nothing with --resume" in done.stderr
    assert not (world / "output").exists()
