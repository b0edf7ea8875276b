"""The published recipe to the letter: Pillow and torchvision, one operation after the other."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import functional as TF

from pretrain.views import View, ViewRecipe


def apply(recipe: ViewRecipe, view: View, image: Image.Image) -> Image.Image:
    """Make the view of an RGB image: ``crop_size`` x ``crop_size``, RGB, 8 bit."""
    size = [recipe.crop_size, recipe.crop_size]
    out = TF.resized_crop(image, *view.crop, size=size)
    if view.grayscale and recipe.grayscale_first:
        out = TF.rgb_to_grayscale(out, num_output_channels=3)
    for operation, factor in view.jitter:
        out = getattr(TF, f"adjust_{operation}")(out, factor)
    if view.grayscale and not recipe.grayscale_first:
        out = TF.rgb_to_grayscale(out, num_output_channels=3)
    if view.blur_sigma is not None:
        out = out.filter(ImageFilter.GaussianBlur(radius=view.blur_sigma))
    return TF.hflip(out) if view.flip else out


def make_view(recipe: ViewRecipe, image: np.ndarray, view: View, out: np.ndarray) -> None:
    """Write ``view`` of ``image`` (uint8 H x W x 3, RGB) to ``out`` (uint8 3 x S x S)."""
    out[...] = np.asarray(apply(recipe, view, Image.fromarray(image))).transpose(2, 0, 1)
