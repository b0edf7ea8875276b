"""Mistakes that give a plausible number: each is planted here and must be refused or said."""

from __future__ import annotations

import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from conftest import ROOT, write_images

from convert import seen_images
from convert.backbone_file import read_backbone
from convert.to_detectron2 import convert_file
from pretrain.config import load_cfg
from pretrain.trainer import pretrain
from runtime.errors import InputError
from runtime.files import sha256
from transfer.engines.embedded.engine import EmbeddedEngine
from transfer.run.finetune import finetune
from transfer.run.job import Job, Options
from transfer.run.resolve import Resolved, resolve

PRETRAIN = """
MODEL.ARCH resnet18w0.125x MODEL.DIM 8 MODEL.QUEUE_SIZE 12 MODEL.BN_GROUP_SIZE 4
VIEWS.CROP_SIZE 32 SOLVER.BATCH_SIZE 8 SOLVER.EPOCHS 1 DATA.NUM_WORKERS 0 DEVICE cpu"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_world(tmp_path_factory.mktemp("world"), ROOT)


def job(world: Path, *overrides: str, weights: str = "random", **options: object) -> Job:
    options = {"weights": weights, "options": Options(**options)}
    return tiny.job(world, world / "run", *overrides, **options)


def resolved(world: Path, *overrides: str, **options: object) -> Resolved:
    return resolve(EmbeddedEngine(), job(world, *overrides, **options), None)


def test_frozen_random_stages(world: Path) -> None:
    frozen = ("MODEL.BACKBONE.FREEZE_AT", "2")
    with pytest.raises(InputError, match="FREEZE_AT 2 never trains the first stages"):
        resolved(world, *frozen)
    allowed = resolved(world, *frozen, allow_deviation=True)
    assert allowed.deviations == ("MODEL.BACKBONE.FREEZE_AT: 0 -> 2",)


def test_frozen_norms_on_random_weights(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "moco"):
        resolved(world, "MODEL.RESNETS.NORM", "FrozenBN")
    assert "FrozenBN with random weights normalises nothing" in caplog.text


def test_the_recipes_own_weights_are_not_used(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Detectron2's Cityscapes recipe starts from a COCO detector."""
    with caplog.at_level(logging.INFO, "moco"):
        found = resolved(world, "MODEL.WEIGHTS", "detectron2://COCO/model_final.pkl")
    assert "not used: MODEL.WEIGHTS 'detectron2://COCO/model_final.pkl'" in caplog.text
    assert found.cfg.MODEL.WEIGHTS == ""


def test_a_detector_as_initial_weights(world: Path, tmp_path: Path) -> None:
    content = pickle.loads((world / "backbone.pkl").read_bytes())
    arrays = {f"backbone.bottom_up.{name}": value for name, value in content["model"].items()}
    path = tmp_path / "detector.pkl"
    path.write_bytes(pickle.dumps(content | {"model": arrays}))
    with pytest.raises(InputError, match="is a trained detector"):
        finetune(job(world, weights=str(path)))
    assert not (world / "run").exists()


@pytest.mark.parametrize("most", [10_000, 24])
def test_test_images_among_the_pretraining_images(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch, most: int
) -> None:
    """From pretraining to the refusal; copies under other names are the same images."""
    monkeypatch.setattr(seen_images, "MOST", most)
    write_images(tmp_path / "images", 24)
    for i in (6, 7):  # the test set
        shutil.copy(world / f"voc/JPEGImages/{i}.jpg", tmp_path / f"images/copy{i}.jpg")
    recipe = f"DATA.ROOT {tmp_path / 'images'} OUTPUT_DIR {tmp_path / 'pretraining'} {PRETRAIN}"
    checkpoint = pretrain(load_cfg(ROOT / "configs/moco_v1_R50_200ep.yaml", recipe.split()))
    remembered = convert_file(checkpoint, tmp_path / "moco.pkl").backbone.seen_images
    assert remembered.total == 26
    assert len(remembered.digests) == min(26, most)

    leaking = job(world, weights=str(tmp_path / "moco.pkl"))
    tested = [bytes.fromhex(sha256(world / f"voc/JPEGImages/{i}.jpg")) for i in (6, 7)]
    seen = sum(seen_images.digest(each) in remembered.digests for each in tested)
    with pytest.raises(InputError, match=f"{seen} of 2 test images were among the images of pre"):
        finetune(leaking)
    assert not (world / "run").exists()
    backbone = read_backbone(tmp_path / "moco.pkl")
    on_purpose = replace(leaking, options=Options(allow_deviation=True))
    capsys.readouterr()
    assert resolve(EmbeddedEngine(), on_purpose, backbone).seen == seen
    assert "test images were among the images of pretraining" in capsys.readouterr().err
    innocent = replace(leaking, test_data=[f"voc:{world / 'voc'}:train"])
    assert resolve(EmbeddedEngine(), innocent, backbone).seen == 0


def test_every_trap_of_the_page_has_its_test() -> None:
    rows = (ROOT / "docs/traps.md").read_text().split("|---|---|---|\n")[1].splitlines()
    for row in rows:
        file, _, name = row.rsplit("`", 2)[1].partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), row


def test_a_depth_sets_the_width_that_belongs_to_it(world: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"_BASE_: {ROOT / 'transfer/Base_C4.yaml'}\n")
    base = job(world, "MODEL.RESNETS.DEPTH", "18")
    found = resolve(EmbeddedEngine(), Job(**(vars(base) | {"recipe": str(recipe)})), None)
    assert found.cfg.MODEL.RESNETS.RES2_OUT_CHANNELS == 64
    assert found.deviations == (
        "MODEL.RESNETS.DEPTH: 50 -> 18",
        "MODEL.RESNETS.RES2_OUT_CHANNELS: 256 -> 64 (follows from MODEL.RESNETS.DEPTH 18)",
    )
