"""Small runs of the linear protocol, for tests; fixtures are imported by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_images

from pretrain.linear.config import load_cfg
from pretrain.linear.evaluate import evaluate
from pretrain.moco import MoCo

CONFIG = ROOT / "configs/linear_imagenet.yaml"
FINETUNE = ROOT / "configs/finetune_inat18.yaml"
TINY = """
VIEWS.CROP_SIZE 32 SOLVER.BATCH_SIZE 8 SOLVER.EPOCHS 3 SOLVER.MILESTONES (2,) SOLVER.BASE_LR 0.5
KNN.K 3 LOG_PERIOD 1 DATA.NUM_WORKERS 0 DEVICE cpu
""".split()
ARCH = "resnet18w0.125x"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """20 training and 7 test images in three classes; the last test batch is incomplete."""
    for split, counts in (("train", (8, 7, 5)), ("test", (3, 3, 1))):
        for seed, (name, count) in enumerate(zip("abc", counts, strict=True)):
            write_images(tmp_path / split / name, count, 40, seed + 10 * (split == "test"))
    return tmp_path / "train", tmp_path / "test"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An official MoCo checkpoint whose BN has seen data."""
    torch.manual_seed(1)
    moco = MoCo(ARCH, 8, 16)
    moco.encoder_q(torch.randn(8, 3, 32, 32))
    state = {f"module.{name}": value for name, value in moco.state_dict().items()}
    torch.save({"epoch": 1, "arch": ARCH, "state_dict": state}, tmp_path / "moco.pth.tar")
    return tmp_path / "moco.pth.tar"


def recipe(folders: tuple[Path, Path], weights: object, output: Path, *more: str) -> list[str]:
    train, test = map(str, folders)
    return [*TINY, "DATA.TRAIN", train, "DATA.TEST", test, "OUTPUT_DIR", str(output), *more]


def run(
    folders: tuple[Path, Path],
    weights: object,
    output: Path,
    *more: str,
    config: Path = CONFIG,
    resume: bool = False,
) -> dict:
    overrides = recipe(folders, weights, output, *more)
    return json.loads(evaluate(load_cfg(str(config), str(weights), overrides), resume).read_text())


def saved(output: Path) -> dict:
    name = (output / "last_checkpoint").read_text()
    return torch.load(output / name, weights_only=True)
