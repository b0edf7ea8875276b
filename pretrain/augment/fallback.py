"""Views without numba: OpenCV, NumPy and torch's antialiased resize."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from pretrain.views import View, ViewRecipe


def crop_view(recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
    """Write the crop of ``view``, resized and not flipped, to ``out`` (uint8 3 x S x S)."""
    top, left, height, width = view.crop
    crop = torch.tensor(pixels[top : top + height, left : left + width])
    images = crop.permute(2, 0, 1)[None]  # channels_last has the fast kernel
    size = (recipe.crop_size, recipe.crop_size)
    out[...] = interpolate(images, size, mode="bilinear", antialias=True)[0].numpy()
