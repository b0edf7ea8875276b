"""A data set, weights and a recipe so small that a whole run takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw

from convert.to_detectron2 import convert_file
from pretrain.encoder import build_encoder
from transfer.run.job import Job

ARCH = "resnet18w0.125x"
RECIPE = {
    "MODEL": {
        "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 8, "STEM_OUT_CHANNELS": 8, "NORM": "BN"},
        "FPN": {"OUT_CHANNELS": 16, "NORM": "BN"},
        "RPN": {"POST_NMS_TOPK_TRAIN": 50, "POST_NMS_TOPK_TEST": 20, "BATCH_SIZE_PER_IMAGE": 32},
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 16},
        "ROI_BOX_HEAD": {"FC_DIM": 16},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {"IMS_PER_BATCH": 2, "BASE_LR": 0.01, "STEPS": [4], "MAX_ITER": 6},
    "TEST": {"PRECISE_BN": {"ENABLED": True, "NUM_ITER": 2}},
}


def write_world(folder: Path, root: Path, train: int = 6, test: int = 2) -> Path:
    """``folder`` with all that a run needs: ``voc``, ``backbone.pkl`` and ``recipe.yaml``."""
    write_voc(folder / "voc", train, test)
    write_backbone(folder / "backbone.pkl")
    write_recipe(folder / "recipe.yaml", root)
    return folder


def job(world: Path, output: Path, *overrides: str, **changes: Any) -> Job:
    """A run of the embedded engine in that world."""
    options: dict[str, Any] = {
        "recipe": str(world / "recipe.yaml"),
        "weights": str(world / "backbone.pkl"),
        "train_data": [f"voc:{world / 'voc'}:train"],
        "test_data": [f"voc:{world / 'voc'}:test"],
        "engine": "embedded",
        "seed": 1,
        "output": str(output),
        "overrides": overrides,
    }
    return Job(**(options | changes))


def write_voc(folder: Path, train: int = 6, test: int = 2) -> None:
    """A VOC layout of grey images with one red square and one blue disc each."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(train + test):
        image = Image.new("RGB", (80, 60), (128, 128, 128))
        draw, objects = ImageDraw.Draw(image), ""
        for name, left in (("disc", 2), ("square", 42)):
            x, y, size = left + int(rng.integers(8)), int(rng.integers(2, 30)), 24
            box = (x, y, x + size, y + size)
            getattr(draw, "ellipse" if name == "disc" else "rectangle")(
                box, fill=(30, 30, 220) if name == "disc" else (220, 30, 30)
            )
            x1, y1, x2, y2 = (v + 1 for v in box)
            objects += (
                f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin>"
                f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            )
        image.save(folder / "JPEGImages" / f"{i}.jpg")
        size = "<size><width>80</width><height>60</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{i}.xml").write_text(
            f"<annotation>{size}{objects}</annotation>"
        )
    for split, ids in (("train", range(train)), ("test", range(train, train + test))):
        lines = "".join(f"{i}\n" for i in ids)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text(lines)


def write_recipe(path: Path, root: Path) -> Path:
    """The tiny recipe, on top of the shipped FPN base."""
    recipe = {"_BASE_": str(root / "transfer" / "Base_FPN.yaml")} | RECIPE
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_backbone(path: Path, seed: int = 0) -> Path:
    """A ``backbone.pkl`` of the tiny architecture."""
    torch.save(touched(ARCH, seed), path.with_suffix(".pth"))
    convert_file(path.with_suffix(".pth"), path)
    return path


def touched(arch: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights whose BN has seen one batch: the converter refuses an untrained network."""
    torch.manual_seed(seed)
    encoder = build_encoder(arch, 10)
    with torch.no_grad():
        encoder.train()(torch.randn(2, 3, 64, 64))
    return encoder.state_dict()
