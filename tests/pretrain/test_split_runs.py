"""Whole runs with DATA.PIPELINE split: the views that a run learns from are finished ones."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from linear_runs import run as run_linear
from PIL import Image
from test_on_device import pillow_crop
from test_trainer import CONFIG, run, tiny

from pretrain.augment import PIPELINES
from pretrain.loading.batches import Batch, EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.source.images import ImageFolder
from pretrain.views import ViewRecipe

pytest_plugins = ("linear_runs",)  # its fixtures

RECIPE = ViewRecipe(24, grayscale_first=False, jitter_prob=0.8, blur_prob=0.5)
SPLIT = ("DATA.PIPELINE", "split")
REFERENCE = ("DATA.PIPELINE", "reference")


def losses(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.json").open()]
    return [row["loss"] for row in rows if "loss" in row]


def batches(folder: Path, pipeline: str, workers: int = 0) -> list[Batch]:
    dataset = ViewDataset(ImageFolder.scan(folder), RECIPE, 2, 7, None, pipeline)
    return [batch.finished() for batch in Loader(dataset, EpochBatches(24, 8, 6, 7), workers)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_reference(image_folder: Path, workers: int) -> None:
    ours, expected = batches(image_folder, "split", workers), batches(image_folder, "reference")
    assert len(ours) == 6
    for batch, other in zip(ours, expected, strict=True):
        assert batch.rows is None
        assert torch.equal(batch.indices, other.indices)
        for view, wanted in zip(batch.views, other.views, strict=True):
            difference = (view.int() - wanted.int()).abs().float()
            assert difference.mean() < 0.5
            assert difference.mean((1, 2, 3)).max() < 2  # of no image another view


def test_moving_a_batch_leaves_its_views_to_be_finished(image_folder: Path) -> None:
    dataset = ViewDataset(ImageFolder.scan(image_folder), RECIPE, 2, 7, None, "split")
    batch = next(iter(Loader(dataset, EpochBatches(24, 8, 6, 7), 0)))
    moved = batch.to(torch.device("cpu"))
    assert moved.rows is batch.rows is not None
    assert batch.rows.shape[:2] == (2, 8)
    halves = [
        dataclasses.replace(
            batch, views=tuple(v[part] for v in batch.views), rows=batch.rows[:, part]
        ).finished()
        for part in (slice(0, 4), slice(4, 8))
    ]
    for number, view in enumerate(moved.finished().views):
        assert torch.equal(view, torch.cat([half.views[number] for half in halves]))


def test_two_processes_train_like_one(image_folder: Path, tmp_path: Path) -> None:
    """torchrun with two real processes on Gloo."""
    run(image_folder, tmp_path / "one", *SPLIT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["tools/pretrain.py", "--config", CONFIG]
    done = subprocess.run(
        command + tiny(image_folder, tmp_path / "two", *SPLIT),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two[0] == pytest.approx(one[0], rel=1e-5)  # BN magnifies the rounding in later steps
    assert len(one) == len(two) == 9
    run(image_folder, tmp_path / "reference", *REFERENCE)
    pictures = [
        np.asarray(Image.open(tmp_path / name / "views.png"), dtype=float)
        for name in ("one", "two", "reference")
    ]
    assert np.array_equal(pictures[0], pictures[1])
    assert 0 < abs(pictures[0] - pictures[2]).mean() < 0.5


def test_resumed_run_equals_the_unbroken_one(image_folder: Path, tmp_path: Path) -> None:
    whole = run(image_folder, tmp_path / "whole", *SPLIT)
    run(image_folder, tmp_path / "broken", *SPLIT)
    folder = tmp_path / "broken"
    (folder / "checkpoint_final.pth").unlink()  # as if killed in the third epoch
    (folder / "last_checkpoint").write_text("checkpoint_0001.pth")
    resumed = run(image_folder, folder, *SPLIT, "DATA.NUM_WORKERS", "1", resume=True)
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


@pytest.fixture
def exact_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops as the reference resizes them; without hue, split then has its pixels to the last bit.

    What differs in rounding only cannot be compared after a step of this tiny encoder.
    """
    monkeypatch.setitem(PIPELINES, "split", pillow_crop)


@pytest.mark.parametrize("method", ["moco", "supervised"])
def test_a_run_is_that_of_the_reference(
    method: str,
    image_folder: Path,
    tmp_path: Path,
    exact_crops: None,
) -> None:
    recipe = ("METHOD", method, "VIEWS.JITTER", "[0.4, 0.4, 0.4, 0.0]", "VIEWS.BLUR_PROB", "0.5")
    ours = run(image_folder, tmp_path / "split", *recipe, *SPLIT)["state_dict"]
    expected = run(image_folder, tmp_path / "reference", *recipe, *REFERENCE)["state_dict"]
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def test_linear_evaluation(
    folders: tuple[Path, Path],
    checkpoint: Path,
    tmp_path: Path,
    exact_crops: None,
) -> None:
    """Its training views are cropped and flipped only."""
    run_linear(folders, checkpoint, tmp_path / "split", *SPLIT)
    run_linear(folders, checkpoint, tmp_path / "reference", *REFERENCE)
    run_linear(folders, checkpoint, tmp_path / "no flip", *REFERENCE, "VIEWS.FLIP_PROB", "0.0")
    assert losses(tmp_path / "split") == losses(tmp_path / "reference")
    assert losses(tmp_path / "split") != losses(tmp_path / "no flip")
