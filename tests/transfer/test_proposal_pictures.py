"""VIS_PERIOD shows the same image at the same iterations in both engines, and changes nothing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from transfer.engines.embedded.proposal_pictures import NAME
from transfer.run.finetune import finetune
from transfer.run.job import Job

# both engines' ResNet-18 has these widths, whatever the recipe says of ResNet-50's
WIDTHS = ("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.STEM_OUT_CHANNELS", "64")


def run(world: Path, name: str, engine: str, period: int) -> Path:
    output = world / name
    finetune(
        Job(
            recipe=str(world / "recipe.yaml"),
            weights="random",
            train_data=[f"voc:{world / 'voc'}:train"],
            test_data=[f"voc:{world / 'voc'}:test"],
            engine=engine,
            seed=1,
            output=str(output),
            overrides=(
                *("SOLVER.MAX_ITER", "3", "TEST.PRECISE_BN.NUM_ITER", "1"),
                *("MODEL.DEVICE", "cpu", "VIS_PERIOD", str(period), *WIDTHS),
            ),
        )
    )
    return output


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny.write_voc(tmp_path / "voc")
    tiny.write_recipe(tmp_path / "recipe.yaml", ROOT)
    return tmp_path


def pictures(run: Path) -> dict[int, np.ndarray]:
    """Iteration: the picture, H x W x 3."""
    found = {}
    for events in run.glob("events*"):
        board = EventAccumulator(str(events))
        board.Reload()
        if NAME in board.Tags()["images"]:
            for event in board.Images(NAME):
                image = Image.open(io.BytesIO(event.encoded_image_string))
                found[event.step] = np.asarray(image.convert("RGB"))
    return found


def test_pictures_at_the_period_and_the_same_training(world: Path) -> None:
    shown, plain = run(world, "shown", "embedded", 2), run(world, "plain", "embedded", 0)
    assert sorted(pictures(shown)) == [0, 2]
    assert not pictures(plain)
    for picture in pictures(shown).values():
        left, right = np.split(picture, 2, axis=1)
        lime = [((half == (0, 255, 0)).all(2)).sum() for half in (left, right)]
        assert 0 < lime[0] < lime[1]  # one or two objects left, up to twenty proposals right
    states = [torch.load(r / "model_final.pth", weights_only=True)["model"] for r in (shown, plain)]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


@pytest.mark.detectron2
def test_detectron2_shows_the_same_images(world: Path) -> None:
    pytest.importorskip("detectron2")
    ours, theirs = (
        pictures(run(world, engine, engine, 2)) for engine in ("embedded", "detectron2")
    )
    assert sorted(ours) == sorted(theirs)
    for iteration, picture in ours.items():
        # left, where few boxes are drawn, most pixels are the photo's own
        halves = [np.split(x.astype(int), 2, axis=1)[0] for x in (picture, theirs[iteration])]
        left, reference = halves
        assert (np.abs(left - reference).max(2) <= 2).mean() > 0.6, iteration
