"""Views in few passes over 8-bit pixels, compiled with numba. Single-threaded; no float images.

Importing this compiles the kernels (half a minute, once a machine) or loads them from numba's
cache. A view lies transposed, as S columns x 3 channels x S rows, until its last step.
"""

from __future__ import annotations

import numpy as np

from pretrain.augment.blur import blur_columns
from pretrain.augment.colour import GREY_FIRST, GREY_LAST, NO_GREY, jitter
from pretrain.augment.resize import resized_crop, upright
from pretrain.views import OPERATIONS, View, ViewRecipe

CODES = {name: code for code, name in enumerate(OPERATIONS)}


def make_view(recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
    """Write ``view`` of ``pixels`` (uint8 H x W x 3, RGB) to ``out`` (uint8 3 x S x S)."""
    columns = np.empty((recipe.crop_size, 3, recipe.crop_size), np.uint8)
    resized_crop(pixels, *view.crop, view.flip, columns)
    if view.jitter or view.grayscale:
        rest = len(CODES) - len(view.jitter)
        grey = (GREY_FIRST if recipe.grayscale_first else GREY_LAST) if view.grayscale else NO_GREY
        operations = tuple([CODES[name] for name, _ in view.jitter] + [-1] * rest)
        factors = tuple([factor for _, factor in view.jitter] + [1.0] * rest)
        jitter(columns, operations, factors, grey)
    if view.blur_sigma is not None:
        blur_columns(columns.reshape(1, recipe.crop_size, -1), view.blur_sigma)  # along x
    upright(columns, out)
    if view.blur_sigma is not None:  # along y: lines of all channels, which take less time as one
        lines = out.transpose(1, 0, 2).copy()
        blur_columns(lines.reshape(1, recipe.crop_size, -1), view.blur_sigma)
        out[:] = lines.transpose(1, 0, 2)


def crop_view(recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
    """Write the crop of ``view``, resized and not flipped, to ``out`` (uint8 3 x S x S)."""
    columns = np.empty((recipe.crop_size, 3, recipe.crop_size), np.uint8)
    resized_crop(pixels, *view.crop, False, columns)
    upright(columns, out)
