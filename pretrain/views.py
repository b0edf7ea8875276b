"""Random views of an image, distributed as those of the official code.

The draws are separate from the pixels: ``draw`` gives the parameters as a pure function of a
generator, ``pretrain/augment`` makes the pixels from them. So a view can be repeated, compared and
shown, and every way of making the pixels takes the same parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np

CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's RandomResizedCrop
LOG_RATIO = math.log(CROP_RATIO[1])  # the ratio's logarithm is uniform, and symmetric
CROP_ATTEMPTS = 10
OPERATIONS = ("brightness", "contrast", "saturation", "hue")
ORDERS = tuple(permutations(range(len(OPERATIONS))))

# Which of a view's uniform numbers decide what
TRIES = slice(0, 2 * CROP_ATTEMPTS)  # area and ratio, in turn
PLACE = slice(TRIES.stop, TRIES.stop + 2)  # of the crop: top, left
JITTER = slice(PLACE.stop, PLACE.stop + 5)  # the order, and each operation's factor
STEPS = slice(JITTER.stop, JITTER.stop + 5)  # whether jitter, grey, blur; its width; whether flip
DRAWS = STEPS.stop


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
    """Draw the parameters of one view of a ``width`` x ``height`` image.

    All come from one vector of uniform numbers, each with its own place in it: calls of the
    generator would take longer than the arithmetic.
    """
    uniform = rng.random(DRAWS).tolist()
    order, *factors = uniform[JITTER]
    jitter, grayscale, blur, sigma, flip = uniform[STEPS]
    low, high = recipe.blur_sigma
    return View(
        _crop(recipe, width, height, uniform[TRIES], *uniform[PLACE]),
        _jitter(recipe, order, factors) if jitter < recipe.jitter_prob else (),
        grayscale < recipe.grayscale_prob,
        low + sigma * (high - low) if blur < recipe.blur_prob else None,
        flip < recipe.flip_prob,
    )


def _crop(
    recipe: ViewRecipe, width: int, height: int, tries: list[float], top: float, left: float
) -> tuple[int, int, int, int]:
    """Torchvision's RandomResizedCrop: up to ten tries, then the central crop that fits."""
    smallest, largest = recipe.crop_scale
    for scale, shape in zip(tries[::2], tries[1::2], strict=True):
        area = width * height * (smallest + scale * (largest - smallest))
        ratio = math.exp(LOG_RATIO * (2 * shape - 1))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w, h = width, height
    if width / height < CROP_RATIO[0]:
        h = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        w = round(height * CROP_RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _jitter(
    recipe: ViewRecipe, order: float, factors: list[float]
) -> tuple[tuple[str, float], ...]:
    """Torchvision's ColorJitter: factors in [1 − s, 1 + s], hue in [−s, s], random order."""
    drawn = []
    for i in ORDERS[int(order * len(ORDERS))]:
        strength = recipe.jitter[i]
        low = -strength if OPERATIONS[i] == "hue" else max(0.0, 1 - strength)
        high = strength if OPERATIONS[i] == "hue" else 1 + strength
        if strength:
            drawn.append((OPERATIONS[i], low + factors[i] * (high - low)))
    return tuple(drawn)
