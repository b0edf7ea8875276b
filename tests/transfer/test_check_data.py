"""Data are described as they are, and the first fault ends in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from conftest import ROOT
from PIL import Image

from runtime.errors import InputError
from transfer.run.check_data import check_data
from transfer.run.job import Job


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny.write_voc(tmp_path / "voc", train=4, test=2)
    tiny.write_recipe(tmp_path / "recipe.yaml", ROOT)
    return tmp_path


def job(world: Path, train: str = "voc", test: str = "voc", *overrides: str) -> Job:
    return Job(
        recipe=str(world / "recipe.yaml"),
        weights="",
        overrides=overrides,
        train_data=[f"voc:{world / train}:train"],
        test_data=[f"voc:{world / test}:test"],
        engine="embedded",
    )


def test_what_is_in_the_data(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.remove(world / "voc/Annotations/0.xml")
    empty = "<annotation><size><width>80</width><height>60</height></size></annotation>"
    (world / "voc/Annotations/0.xml").write_text(empty)
    check_data(job(world))
    lines = capsys.readouterr().out.splitlines()
    assert "4 images, 3 of them with objects; 6 objects, 0 crowds" in lines[1]
    assert lines[2].split() == '"disc" 3 objects in 3 images'.split()
    assert "100% small" in lines[4]  # all are 25 x 25, the pixels at both ends counted
    assert "25, 25, 25 pixels" in lines[5]
    assert lines[-2:] == ["3 images to train on", "no fault found"]


def test_test_images_among_the_training_images(world: Path) -> None:
    images = world / "voc/JPEGImages"
    (images / "5.jpg").write_bytes((images / "2.jpg").read_bytes())
    with pytest.raises(InputError, match=r"1 of 2 test images .*5\.jpg is the same as .*2\.jpg"):
        check_data(job(world))
    with pytest.raises(InputError, match="1 of 2 test images"):
        check_data(job(world), decode=True)
    Image.open(images / "2.jpg").save(images / "5.png")  # the same pixels in another file
    os.remove(images / "5.jpg")
    check_data(job(world))
    with pytest.raises(InputError, match=r"5\.png is the same as .*2\.jpg"):
        check_data(job(world), decode=True)


def test_faults(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_voc(world / "other", train=2, test=2)
    (world / "other/labels.txt").write_text("square\ndisc\n")
    with pytest.raises(InputError, match="different classes: disc, square against square, disc"):
        check_data(job(world, test="other"))
    with pytest.raises(InputError, match="has no segmentation"):
        check_data(job(world, "voc", "voc", "MODEL.MASK_ON", "True"))
    image = world / "voc/JPEGImages/3.jpg"
    image.write_bytes(image.read_bytes()[:400])
    check_data(job(world))
    with pytest.raises(InputError, match=r"cannot read image .*3\.jpg"):
        check_data(job(world), decode=True)


def test_a_class_that_is_tested_and_never_trained_is_noted(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        path = world / f"voc/Annotations/{number}.xml"
        path.write_text(path.read_text().replace("disc", "square"))
    check_data(job(world))
    assert "note: tested but never trained: disc" in capsys.readouterr().out


def test_command_line(world: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/check_data.py"), "--engine", "embedded"]
    command += ["--config", str(world / "recipe.yaml"), "--images"]
    data = [f"voc:{world / 'voc'}:{split}" for split in ("train", "test")]
    good = [*command, "--train-data", data[0], "--test-data", data[1]]
    done = subprocess.run(good, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "no fault found"), done.stderr
    bad = [*command, "--train-data", data[0], "--test-data", f"voc:{world}:gone"]
    done = subprocess.run(bad, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: cannot read")
