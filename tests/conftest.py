"""Shared by all tests: the checkout on the path, one thread, small images."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


def write_images(folder: Path, count: int, size: int = 24, seed: int = 0) -> None:
    """Write ``count`` different JPEGs: smooth colour noise, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size, size)).save(folder / f"{i:03d}.jpg", quality=95)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A nested folder of 24 images in two class folders."""
    write_images(tmp_path / "images" / "a", 12, seed=1)
    write_images(tmp_path / "images" / "b", 12, seed=2)
    return tmp_path / "images"
