"""Ways to make the pixels of a view; DATA.PIPELINE names one. All take the same draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pretrain.augment import fast, reference
from pretrain.views import View, ViewRecipe, draw

# (recipe, image uint8 H x W x 3 RGB, view, out uint8 3 x S x S): writes the view to ``out``
MakeView = Callable[[ViewRecipe, np.ndarray, View, np.ndarray], None]

# "split" leaves the colours, blur and flip to the training device (on_device.py)
PIPELINES: dict[str, MakeView] = {
    "fast": fast.make_view,
    "reference": reference.make_view,
    "split": fast.crop_view,
}


def drawn_view(
    recipe: ViewRecipe, image: np.ndarray, rng: np.random.Generator, pipeline: str = "reference"
) -> np.ndarray:
    """One random view of ``image`` (uint8 H x W x 3, RGB): uint8 3 x S x S."""
    out = np.empty((3, recipe.crop_size, recipe.crop_size), dtype=np.uint8)
    PIPELINES[pipeline](recipe, image, draw(recipe, image.shape[1], image.shape[0], rng), out)
    return out
