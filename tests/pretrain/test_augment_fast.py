"""The fast ways of making views against Pillow and torchvision, with the same draws.

The gate of every comparison: mean difference at most 0.5 grey levels, PSNR at least 48 dB, bias at
most 0.1, and of crops the gradients' energy within 2 %.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from pretrain.augment import fallback, reference
from pretrain.sources import open_source
from pretrain.views import View, ViewRecipe, draw
from runtime.randomness import generator

fused = pytest.importorskip("pretrain.augment.fused")
WAYS = {"numba": fused, "OpenCV": fallback}
REAL = Path("/work/shared/data/imagenet1000_s160")
IMAGES, SIDE = 24, 96
CROP = View((0, 0, 1, 1), (), False, None, False)


def photo_like(seed: int, height: int, width: int) -> np.ndarray:
    """Coloured noise with as much at each scale, and a few hard edges: uint8 H x W x 3."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for scale in (2, 4, 8, 16, 32, 64, 128):
        coarse = rng.normal(0, 28, (scale, scale, 3)) + rng.normal(0, 20, (scale, scale, 1))
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        corner, size = rng.integers(0, (height, width)), rng.integers(10, 120, 2)
        total[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] += rng.normal(
            0, 50, 3
        )
    return (128 + total).clip(0, 255).astype(np.uint8)


@cache
def images(kind: str) -> list[np.ndarray]:
    if kind == "generated":
        return [photo_like(i, 180 + 7 * i, 300 - 5 * i) for i in range(IMAGES)]
    if not REAL.is_dir():
        pytest.skip(f"needs {REAL}")
    source = open_source(REAL)
    return [source.pixels(i) for i in range(0, len(source.files), len(source.files) // IMAGES)]


def made(make: object, recipe: ViewRecipe, pixels: np.ndarray, view: View) -> np.ndarray:
    out = np.full((3, recipe.crop_size, recipe.crop_size), 77, dtype=np.uint8)
    make(recipe, pixels, view, out)  # type: ignore[operator]
    return out


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far views are from the reference, over all of them."""

    mean: float
    psnr: float
    bias: float
    sharpness: float  # ratio of the gradients' energies

    @classmethod
    def between(cls, left: list[np.ndarray], right: list[np.ndarray]) -> Gap:
        a, b = (np.stack(side).astype(float) for side in (left, right))
        square = ((a - b) ** 2).mean()
        energies = [(np.diff(side, axis=-1) ** 2).sum() for side in (a, b)]
        return cls(
            abs(a - b).mean(),
            10 * np.log10(255**2 / max(square, 1e-9)),
            (a - b).mean(),
            energies[0] / energies[1],
        )

    @property
    def small(self) -> bool:
        close = self.mean <= 0.5 and self.psnr >= 48 and abs(self.bias) <= 0.1
        return close and 0.98 <= self.sharpness <= 1.02


def crops(kind: str) -> list[tuple[np.ndarray, View]]:
    recipe = ViewRecipe(SIDE, flip_prob=0.0, jitter_prob=0.0, grayscale_prob=0.0)
    return [
        (image, draw(recipe, image.shape[1], image.shape[0], generator(0, "test", i, j)))
        for i, image in enumerate(images(kind))
        for j in range(2)
    ]


def linear_without_antialias(
    recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray
) -> None:
    top, left, height, width = view.crop
    crop = pixels[top : top + height, left : left + width]
    out[...] = cv2.resize(crop, (recipe.crop_size,) * 2).transpose(2, 0, 1)


def crop_gap(make: object, kind: str) -> Gap:
    recipe = ViewRecipe(SIDE)
    pairs = [
        (made(make, recipe, *pair), made(reference.make_view, recipe, *pair))
        for pair in crops(kind)
    ]
    return Gap.between(*map(list, zip(*pairs, strict=True)))


@pytest.mark.parametrize("kind", ["generated", "real"])
@pytest.mark.parametrize("way", WAYS)
def test_crops(way: str, kind: str) -> None:
    gap = crop_gap(WAYS[way].crop_view, kind)
    assert gap.small, gap


def test_aliased_crops_do_not_pass() -> None:
    gap = crop_gap(linear_without_antialias, "generated")
    assert gap.mean > 0.5
    assert gap.psnr < 48
    assert gap.sharpness > 1.02


ODD = {  # height, width of the image; crop; side of the view
    "one pixel": ((1, 1), (0, 0, 1, 1), 32),
    "one pixel of many": ((50, 60), (49, 59, 1, 1), 32),
    "one row": ((1, 300), (0, 3, 1, 290), 32),
    "one column": ((300, 1), (10, 0, 290, 1), 32),
    "as it is": ((32, 32), (0, 0, 32, 32), 32),
    "to one pixel": ((40, 30), (2, 3, 31, 22), 1),
    "to a few pixels": ((40, 30), (2, 3, 31, 22), 5),
    "enlarged": ((9, 7), (1, 2, 8, 3), 50),
    "shrunk a lot": ((1500, 1100), (0, 0, 1500, 1100), 20),
    "shrunk one way": ((1500, 5), (0, 0, 1500, 5), 33),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("way", WAYS)
def test_odd_crops(way: str, case: str) -> None:
    (height, width), crop, side = ODD[case]
    pixels = photo_like(1, height, width)
    pixels.flags.writeable = False  # as those of a file that is not copied
    view, recipe = dataclasses.replace(CROP, crop=crop), ViewRecipe(side)
    out = made(WAYS[way].crop_view, recipe, pixels, view).astype(int)
    assert abs(out - made(reference.make_view, recipe, pixels, view)).max() <= 2


def test_crops_are_not_flipped() -> None:
    pixels, view = crops("generated")[0]
    for way in WAYS.values():
        flipped = dataclasses.replace(view, flip=True)
        out = [made(way.crop_view, ViewRecipe(SIDE), pixels, v) for v in (view, flipped)]
        assert np.array_equal(*out)
