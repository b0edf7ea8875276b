"""The fast ways of making views against Pillow and torchvision, with the same draws.

The gate of every comparison: mean difference at most 0.5 grey levels, PSNR at least 48 dB, bias at
most 0.1, and of crops the gradients' energy within 2 %.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from torchvision import transforms

from pretrain.augment import MakeView, drawn_view, fallback, fast, reference
from pretrain.config import load_cfg, view_recipe
from pretrain.source.open_source import open_source
from pretrain.views import OPERATIONS, View, ViewRecipe, draw
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


def made(make: MakeView, recipe: ViewRecipe, pixels: np.ndarray, view: View) -> np.ndarray:
    out = np.full((3, recipe.crop_size, recipe.crop_size), 77, dtype=np.uint8)
    make(recipe, pixels, view, out)
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


Pairs = list[tuple[np.ndarray, View]]


def drawn(recipe: ViewRecipe, kind: str) -> Pairs:
    """Two views of each image."""
    return [
        (image, draw(recipe, image.shape[1], image.shape[0], generator(0, "test", i, j)))
        for i, image in enumerate(images(kind))
        for j in range(2)
    ]


def gap(make: MakeView, recipe: ViewRecipe, pairs: Pairs, exact: MakeView) -> Gap:
    both = [(made(make, recipe, *pair), made(exact, recipe, *pair)) for pair in pairs]
    return Gap.between(*map(list, zip(*both, strict=True)))


def linear_without_antialias(
    recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray
) -> None:
    top, left, height, width = view.crop
    crop = pixels[top : top + height, left : left + width]
    out[...] = cv2.resize(crop, (recipe.crop_size,) * 2).transpose(2, 0, 1)


CROPS = ViewRecipe(SIDE, jitter_prob=0.0, grayscale_prob=0.0, flip_prob=0.0)


@pytest.mark.parametrize("kind", ["generated", "real"])
@pytest.mark.parametrize("way", WAYS)
def test_crops(way: str, kind: str) -> None:
    found = gap(WAYS[way].crop_view, CROPS, drawn(CROPS, kind), reference.make_view)
    assert found.small, found


def test_aliased_crops_do_not_pass() -> None:
    found = gap(linear_without_antialias, CROPS, drawn(CROPS, "generated"), reference.make_view)
    assert found.mean > 0.5
    assert found.psnr < 48
    assert found.sharpness > 1.02


@pytest.mark.parametrize("kind", ["generated", "real"])
@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("way", WAYS)
def test_whole_views(way: str, name: str, kind: str) -> None:
    cfg = load_cfg(ROOT / f"configs/moco_{name}_R50_200ep.yaml", [])
    recipe = dataclasses.replace(view_recipe(cfg), crop_size=SIDE)
    found = gap(WAYS[way].make_view, recipe, drawn(recipe, kind), reference.make_view)
    assert found.small, found


FACTORS = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.2, "hue": -0.15}
STEPS: dict[str, dict[str, Any]] = {
    "flip": {"flip": True},
    "grey": {"grayscale": True},
    **{f"{name} {f}": {"jitter": ((name, f),)} for name in OPERATIONS[:3] for f in (0.6, 1, 1.4)},
    **{f"hue {f}": {"jitter": (("hue", f),)} for f in (-0.4, -0.05, 0.0, 0.1, 0.4)},
    **{f"blur {sigma}": {"blur_sigma": sigma} for sigma in (0.11, 0.42, 0.93, 1.77, 4.3)},
    "grey and blur": {"grayscale": True, "blur_sigma": 1.03},
    **{
        ", ".join(order): {"jitter": tuple((name, FACTORS[name]) for name in order)}
        for order in permutations(OPERATIONS)
    },
}


def uncropped(step: dict[str, Any]) -> Pairs:
    """The step alone, on images that are not resized."""
    view = View((0, 0, SIDE, SIDE), (), False, None, False)
    return [
        (
            np.ascontiguousarray(image[20 : 20 + SIDE, 30 : 30 + SIDE]),
            dataclasses.replace(view, **step),
        )
        for image in images("generated")
    ]


@pytest.mark.parametrize("grey_first", [True, False], ids=["grey first", "grey last"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", WAYS)
def test_each_step(way: str, step: str, grey_first: bool) -> None:
    """Far within the gate: the same arithmetic as Pillow's, but for its rounding of halves."""
    recipe = ViewRecipe(SIDE, grayscale_first=grey_first)
    found = gap(WAYS[way].make_view, recipe, uncropped(STEPS[step]), reference.make_view)
    assert found.mean <= 0.01, found
    assert found.small, found


@pytest.mark.parametrize("side", [1, 3, 4, 5, 11])
def test_colours_of_any_size(side: int) -> None:
    """They are made a few lines at a time."""
    pixels = np.ascontiguousarray(images("generated")[0][40 : 40 + side, 50 : 50 + side])
    for step in STEPS.values():
        if "blur_sigma" not in step:
            view = dataclasses.replace(View((0, 0, side, side), (), False, None, False), **step)
            recipe = ViewRecipe(side)
            out = made(fused.make_view, recipe, pixels, view).astype(int)
            # one level where a half is rounded, which the next operations enlarge
            assert abs(out - made(reference.make_view, recipe, pixels, view)).max() <= 4, step


def rounded(recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
    """Jitter in one go with floats: nothing is cut off or clipped in between."""
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    for name, factor in view.jitter:
        image = getattr(transforms.functional, f"adjust_{name}")(image, factor)
    out[...] = (image * 255).round().numpy()


WRONG: dict[str, tuple[MakeView, str]] = {
    "floats": (rounded, "hue 0.1"),
    "another factor": (
        lambda r, p, v, out: fused.make_view(
            r, p, dataclasses.replace(v, jitter=(("saturation", 1.37),)), out
        ),
        "saturation 1.4",
    ),
    "OpenCV's blur": (
        lambda r, p, v, out: np.copyto(
            out, cv2.GaussianBlur(p, (0, 0), v.blur_sigma).transpose(2, 0, 1)
        ),
        "blur 0.42",
    ),
    "no flip": (fused.crop_view, "flip"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_steps_do_not_pass(name: str) -> None:
    make, step = WRONG[name]
    found = gap(make, ViewRecipe(SIDE), uncropped(STEPS[step]), reference.make_view)
    assert not found.small, found


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
    pixels, view = drawn(CROPS, "generated")[0]
    for way in WAYS.values():
        flipped = dataclasses.replace(view, flip=True)
        out = [made(way.crop_view, ViewRecipe(SIDE), pixels, v) for v in (view, flipped)]
        assert np.array_equal(*out)


WITHOUT_NUMBA = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
sys.modules["numba"] = None
import numpy as np
from pretrain.augment import drawn_view, fast
from pretrain.views import ViewRecipe
from runtime.randomness import generator
fast.warm_up()
pixels = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
for i in range(3):
    view = drawn_view(ViewRecipe(24, blur_prob=0.5), pixels, generator(0, "test", i), "fast")
    print(view.tobytes().hex())
"""


def test_without_numba_other_kernels_make_the_same_views() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA], cwd=ROOT, capture_output=True, text=True, check=True
    )
    said, *views = done.stdout.splitlines()
    assert "OpenCV and torch" in said
    pixels = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    recipe = ViewRecipe(24, blur_prob=0.5)
    for i, view in enumerate(views):
        out = np.frombuffer(bytes.fromhex(view), np.uint8).reshape(3, 24, 24).astype(float)
        here = drawn_view(recipe, pixels, generator(0, "test", i), "fast")
        assert abs(out - here).mean() < 0.5
    assert len(views) == 3


def test_the_kernels_that_run_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    fast._kernels.cache_clear()
    with caplog.at_level("INFO", logger="moco"):
        fast.warm_up()
        fast.warm_up()
    [said] = [record.message for record in caplog.records]
    assert said.startswith("views: fused kernels, compiled by numba ")


def test_kernels_need_no_place_for_their_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package and the home belong to another: numba finds no folder to write to."""
    from numba import types
    from numba.core import caching

    from pretrain.augment.compiled import IMAGES, entry

    def fill(out: np.ndarray, value: int) -> None:
        out[:] = value

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    out = np.zeros((2, 3, 4), np.uint8)
    entry(IMAGES, types.int64)(fill)(out, 7)
    assert (out == 7).all()
