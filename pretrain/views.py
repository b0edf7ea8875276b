"""Random views of an image, distributed as those of the official code.

The draws are separate from the pixels: ``draw`` gives the parameters as a pure function of a
generator, ``pretrain/augment`` makes the pixels from them. So a view can be repeated, compared and
shown, and every way of making the pixels takes the same parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's RandomResizedCrop
CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class ViewRecipe:
    """What a view may look like. Defaults: MoCo v1 (official ``main_moco.py``).

    Attributes:
        crop_size: side of the square view in pixels.
        crop_scale: range of the crop's share of the image area.
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_prob, grayscale_prob, blur_prob, flip_prob: probability of each step.
        blur_sigma: range of the Gaussian's standard deviation in pixels.
        grayscale_first: v1 turns grey before the colour jitter, v2 after it.
    """

    crop_size: int = 224
    crop_scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.4)
    jitter_prob: float = 1.0
    grayscale_prob: float = 0.2
    grayscale_first: bool = True
    blur_prob: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip_prob: float = 0.5


@dataclass(frozen=True)
class View:
    """The parameters of one view. ``None`` leaves a step out."""

    crop: tuple[int, int, int, int]  # top, left, height, width in pixels
    jitter: tuple[tuple[str, float], ...]  # operations and factors in their random order
    grayscale: bool
    blur_sigma: float | None
    flip: bool


def draw(recipe: ViewRecipe, width: int, height: int, rng: np.random.Generator) -> View:
    """Draw the parameters of one view of a ``width`` x ``height`` image."""
    crop = _draw_crop(recipe, width, height, rng)
    jitter = _draw_jitter(recipe, rng) if rng.random() < recipe.jitter_prob else ()
    grayscale = bool(rng.random() < recipe.grayscale_prob)
    blur = rng.uniform(*recipe.blur_sigma) if rng.random() < recipe.blur_prob else None
    flip = bool(rng.random() < recipe.flip_prob)
    return View(crop, jitter, grayscale, blur, flip)


def _draw_crop(
    recipe: ViewRecipe, width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Torchvision's RandomResizedCrop: up to ten tries, then the central crop that fits."""
    log_ratio = (math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]))
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*recipe.crop_scale)
        ratio = math.exp(rng.uniform(*log_ratio))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            return top, int(rng.integers(0, width - w + 1)), h, w
    w, h = width, height
    if width / height < CROP_RATIO[0]:
        h = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        w = round(height * CROP_RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _draw_jitter(recipe: ViewRecipe, rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """Torchvision's ColorJitter: factors in [1 − s, 1 + s], hue in [−s, s], random order."""
    brightness, contrast, saturation, hue = recipe.jitter
    ranges = {
        "brightness": (max(0.0, 1 - brightness), 1 + brightness),
        "contrast": (max(0.0, 1 - contrast), 1 + contrast),
        "saturation": (max(0.0, 1 - saturation), 1 + saturation),
        "hue": (-hue, hue),
    }
    names = list(ranges)
    order = [names[i] for i in rng.permutation(len(names))]
    return tuple((name, rng.uniform(*ranges[name])) for name in order if _acts(ranges[name]))


def _acts(bounds: tuple[float, float]) -> bool:
    return bounds[0] != bounds[1]
