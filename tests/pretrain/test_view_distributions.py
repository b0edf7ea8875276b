"""Views against torchvision's own transforms: each parameter's distribution, and the pixels.

All seeds are fixed, so that the tests give the same every time. Each is also given recipes that
are a little wrong, and must tell them from the right one.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image, ImageFilter
from scipy import stats
from torchvision import transforms
from torchvision.transforms import functional as TF

from pretrain.augment import PIPELINES
from pretrain.augment.on_device import finish
from pretrain.augment.rows import WIDTH, pack
from pretrain.config import load_cfg, view_recipe
from pretrain.source.open_source import open_source
from pretrain.views import ViewRecipe, draw
from runtime.randomness import generator

DRAWS = 3000
SMALLEST_P = 1e-3  # some fifty comparisons, all of them fixed
WRONG_P = 1e-6
SIZES = ((500, 375), (160, 240), (64, 64), (900, 100), (30, 400))  # the last two seldom fit
REAL = Path("/work/shared/data/imagenet1000_s160")


def recipe(name: str) -> ViewRecipe:
    return view_recipe(load_cfg(ROOT / f"configs/moco_{name}_R50_200ep.yaml", []))


V1, V2 = recipe("v1"), recipe("v2")


def official(name: str, size: int) -> transforms.Compose:
    """The transforms of the official main_moco.py up to ToTensor, with Pillow's Gaussian blur."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    crop, flip = transforms.RandomResizedCrop(size, (0.2, 1.0)), transforms.RandomHorizontalFlip()
    grey = transforms.RandomGrayscale(p=0.2)
    if name == "v1":
        return transforms.Compose([crop, grey, transforms.ColorJitter(0.4, 0.4, 0.4, 0.4), flip])
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return transforms.Compose([crop, jitter, grey, transforms.RandomApply([blur], p=0.5), flip])


@cache
def drawn(of: ViewRecipe, width: int, height: int) -> list:
    return [draw(of, width, height, generator(1, "test", i)) for i in range(DRAWS)]


def p_values(left: np.ndarray, right: np.ndarray) -> list[float]:
    """Of the two-sample Kolmogorov-Smirnov test of each column."""
    return [stats.ks_2samp(a, b).pvalue for a, b in zip(left.T, right.T, strict=True)]


def crops(of: ViewRecipe, width: int, height: int) -> np.ndarray:
    """DRAWS x (top, left, height, width, area, height / width)."""
    return with_shape(np.array([view.crop for view in drawn(of, width, height)], dtype=float))


def with_shape(crops: np.ndarray) -> np.ndarray:
    height, width = crops[:, 2], crops[:, 3]
    return np.column_stack([crops, height * width, height / width])


@cache
def torchvision_crops(width: int, height: int) -> np.ndarray:
    torch.manual_seed(0)
    image = Image.new("L", (width, height))
    params = transforms.RandomResizedCrop.get_params
    out = [params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)]
    return with_shape(np.array(out, dtype=float))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crops(size: tuple[int, int]) -> None:
    assert min(p_values(crops(V2, *size), torchvision_crops(*size))) > SMALLEST_P


def test_wrong_crops_are_noticed() -> None:
    for scale in ((0.3, 1.0), (0.2, 0.7), (0.08, 1.0)):
        wrong = dataclasses.replace(V2, crop_scale=scale)
        assert min(p_values(crops(wrong, 500, 375), torchvision_crops(500, 375))) < WRONG_P


NAMES = ("brightness", "contrast", "saturation", "hue")


def factors(of: ViewRecipe) -> np.ndarray:
    """Views with jitter x the four factors."""
    views = [dict(view.jitter) for view in drawn(of, 64, 64) if view.jitter]
    return np.array([[view[name] for name in NAMES] for view in views])


@cache
def torchvision_factors(hue: float) -> np.ndarray:
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, hue)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    return np.array([transforms.ColorJitter.get_params(*ranges)[1:] for _ in range(DRAWS)])


@pytest.mark.parametrize(("of", "hue"), [(V1, 0.4), (V2, 0.1)], ids=["v1", "v2"])
def test_jitter_factors(of: ViewRecipe, hue: float) -> None:
    assert min(p_values(factors(of), torchvision_factors(hue))) > SMALLEST_P
    correlation = np.corrcoef(factors(of).T) - np.eye(4)
    assert np.abs(correlation).max() < 4 / np.sqrt(len(factors(of)))
    wrong = dataclasses.replace(of, jitter=(0.4, 0.4, 0.33, hue))
    assert min(p_values(factors(wrong), torchvision_factors(hue))) < WRONG_P


def test_all_orders_of_the_jitter_are_equally_likely() -> None:
    """As of torch.randperm, which torchvision orders them by."""
    orders = [tuple(name for name, _ in view.jitter) for view in drawn(V1, 64, 64)]
    counts = [orders.count(order) for order in permutations(NAMES)]
    assert sum(counts) == DRAWS
    assert stats.chisquare(counts).pvalue > SMALLEST_P


def test_blur_widths() -> None:
    random.seed(0)
    official_widths = [random.uniform(0.1, 2.0) for _ in range(DRAWS)]
    widths = [v.blur_sigma for v in drawn(V2, 64, 64) if v.blur_sigma is not None]
    assert stats.ks_2samp(widths, official_widths).pvalue > SMALLEST_P
    assert all(view.blur_sigma is None for view in drawn(V1, 64, 64))


STEPS: dict[str, Callable] = {
    "jitter": lambda view: bool(view.jitter),
    "grayscale": lambda view: view.grayscale,
    "blur": lambda view: view.blur_sigma is not None,
    "flip": lambda view: view.flip,
}
PROBABILITIES = {"v1": (1.0, 0.2, 0.0, 0.5), "v2": (0.8, 0.2, 0.5, 0.5)}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_steps_are_as_likely_as_in_the_official_code_and_independent(name: str) -> None:
    views = drawn(recipe(name), 64, 64)
    done = np.array([[step(view) for step in STEPS.values()] for view in views])
    for column, probability in zip(done.T, PROBABILITIES[name], strict=True):
        p = stats.binomtest(int(column.sum()), DRAWS, probability).pvalue
        assert p > SMALLEST_P, (column.mean(), probability)
    varying = done[:, (done.mean(0) > 0) & (done.mean(0) < 1)].astype(float)
    correlation = np.corrcoef(varying.T) - np.eye(varying.shape[1])
    assert np.abs(correlation).max() < 4 / np.sqrt(DRAWS)


def test_the_two_views_of_an_image_are_independent() -> None:
    pairs = [
        [draw(V1, 500, 375, generator(1, "augmentation", 0, i, view)) for view in (0, 1)]
        for i in range(DRAWS)
    ]
    values = np.array(
        [[[*v.crop, *dict(v.jitter).values(), v.grayscale, v.flip] for v in p] for p in pairs],
        dtype=float,
    )
    for left, right in zip(values[:, 0].T, values[:, 1].T, strict=True):
        assert abs(np.corrcoef(left, right)[0, 1]) < 4 / np.sqrt(DRAWS)


IMAGES, VIEWS_EACH, SIDE = 40, 20, 32


def noise_images() -> list[Image.Image]:
    """Coloured noise with as much at each scale, roughly as photographs have."""
    out = []
    for i in range(IMAGES):
        rng = np.random.default_rng(i)
        octaves = [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (s, s, 3), dtype=np.uint8)).resize((96, 80)),
                dtype=float,
            )
            for s in (2, 4, 8, 16, 32, 64)
        ]
        out.append(Image.fromarray(np.mean(octaves, axis=0).clip(0, 255).astype(np.uint8)))
    return out


def real_images() -> list[Image.Image]:
    source = open_source(REAL)
    return [source.load(i) for i in range(0, len(source.files), len(source.files) // IMAGES)]


def measure(image: Image.Image) -> list[float]:
    """Mean of each channel, contrast, saturation and log-gradient of a view."""
    pixels = np.asarray(image, dtype=float) / 255
    grey = pixels.mean(2)
    gradient = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    saturation = (pixels.max(2) - pixels.min(2)).mean()
    return [*pixels.mean((0, 1)), grey.std(), saturation, np.log(gradient + 1e-3)]


def ours(of: ViewRecipe, images: list[Image.Image], pipeline: str = "reference") -> np.ndarray:
    """Images x views x measures."""
    of = dataclasses.replace(of, crop_size=SIDE)
    pixels = np.empty((len(images), VIEWS_EACH, 3, SIDE, SIDE), dtype=np.uint8)
    rows = np.empty((len(images), VIEWS_EACH, WIDTH), dtype=np.float32)
    for i, image in enumerate(images):
        for j in range(VIEWS_EACH):
            view = draw(of, *image.size, generator(2, "test", i, j))
            PIPELINES[pipeline](of, np.asarray(image), view, pixels[i, j])
            rows[i, j] = pack(of, view)
    views = torch.from_numpy(pixels).flatten(0, 1)
    if pipeline == "split":
        views = finish(views, torch.from_numpy(rows).flatten(0, 1))
    measures = [measure(TF.to_pil_image(view)) for view in views]
    return np.array(measures).reshape(len(images), VIEWS_EACH, -1)


@cache
def pictures(kind: str) -> list[Image.Image]:
    return noise_images() if kind == "noise" else real_images()


@cache
def theirs(name: str, images: str) -> np.ndarray:
    torch.manual_seed(3)
    random.seed(3)
    transform = official(name, SIDE)
    return np.array(
        [[measure(transform(image)) for _ in range(VIEWS_EACH)] for image in pictures(images)]
    )


def smallest_p(left: np.ndarray, right: np.ndarray) -> float:
    """Of each measure's distribution, and of its mean and spread image by image."""
    views = p_values(left.reshape(-1, left.shape[2]), right.reshape(-1, right.shape[2]))
    means = stats.ttest_rel(left.mean(1), right.mean(1)).pvalue
    spreads = stats.ttest_rel(np.log(left.std(1) + 1e-4), np.log(right.std(1) + 1e-4)).pvalue
    return min(*views, *means, *spreads)


@pytest.mark.parametrize("images", ["noise", "real"])
@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pixels_are_distributed_as_torchvisions(pipeline: str, name: str, images: str) -> None:
    if images == "real" and not REAL.is_dir():
        pytest.skip(f"needs {REAL}")
    expected = theirs(name, images)
    assert smallest_p(ours(recipe(name), pictures(images), pipeline), expected) > SMALLEST_P
    wrong = {
        "other recipe": V1 if name == "v2" else V2,
        "no jitter": dataclasses.replace(recipe(name), jitter_prob=0.0),
        "no grey": dataclasses.replace(recipe(name), grayscale_prob=0.0),
        "more blur": dataclasses.replace(recipe(name), blur_prob=1.0),
    }
    for what, of in wrong.items():
        assert smallest_p(ours(of, pictures(images), pipeline), expected) < SMALLEST_P / 10, what
