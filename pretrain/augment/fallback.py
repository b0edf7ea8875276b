"""Views without numba: torch's antialiased resize, then OpenCV and NumPy. Single-threaded."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

from pretrain.views import View, ViewRecipe

LEVELS = np.arange(256, dtype=np.float32)
TINY = np.float32(1e-4)  # so that what should be whole is not cut off to less


def make_view(recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
    """Write ``view`` of ``pixels`` (uint8 H x W x 3, RGB) to ``out`` (uint8 3 x S x S)."""
    image = np.ascontiguousarray(_crop(recipe, pixels, view).transpose(1, 2, 0))
    if view.grayscale and recipe.grayscale_first:
        image = _grey_in_colour(image)
    for operation, factor in view.jitter:
        image = JITTER[operation](image, factor)
    if view.grayscale and not recipe.grayscale_first:
        image = _grey_in_colour(image)
    if view.blur_sigma is not None:
        image = _blur(image, view.blur_sigma)
    out[...] = (image[:, ::-1] if view.flip else image).transpose(2, 0, 1)


def crop_view(recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
    """Write the crop of ``view``, resized and not flipped, to ``out`` (uint8 3 x S x S)."""
    out[...] = _crop(recipe, pixels, view)


def _crop(recipe: ViewRecipe, pixels: np.ndarray, view: View) -> np.ndarray:
    top, left, height, width = view.crop
    crop = torch.tensor(pixels[top : top + height, left : left + width])
    images = crop.permute(2, 0, 1)[None]  # channels_last has the fast kernel
    size = (recipe.crop_size, recipe.crop_size)
    return interpolate(images, size, mode="bilinear", antialias=True)[0].numpy()


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _grey_in_colour(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)


def _cut_off(levels: np.ndarray) -> np.ndarray:
    """As Pillow makes bytes of the results of a blend."""
    return levels.clip(0, 255).astype(np.uint8)


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.LUT(image, _cut_off(LEVELS * np.float32(factor)))


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    mean = np.float32(int(_grey(image).mean() + 0.5))
    return cv2.LUT(image, _cut_off(mean + np.float32(factor) * (LEVELS - mean)))


def _saturation(image: np.ndarray, factor: float) -> np.ndarray:
    grey = _grey(image)[..., None].astype(np.float32)
    return _cut_off(grey + np.float32(factor) * (image - grey))


def _hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Hue and saturation become bytes in between, as in Pillow: OpenCV's own bytes are others."""
    hue, saturation, value = cv2.split(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV))
    steps = (hue * np.float32(255 / 360) + TINY).astype(np.uint8) + np.uint8(
        int(factor * 255) % 256
    )
    hue = steps * np.float32(360 / 255)
    saturation = np.floor(saturation * 255 + TINY) / np.float32(255)
    turned = cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB)
    return (turned + np.float32(0.5)).astype(np.uint8)


JITTER = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Pillow's three boxes along x and then along y (see ``blur.py``), rounded after each."""
    variance = sigma * sigma / 3
    whole = int((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) ** 2)
    box = np.full(2 * whole + 3, 1 / (2 * (whole + part) + 1), np.float32)
    box[0] = box[-1] = part * box[1]
    one = np.ones(1, np.float32)
    for along_x, along_y in 3 * [(box, one)] + 3 * [(one, box)]:
        image = cv2.sepFilter2D(image, -1, along_x, along_y, borderType=cv2.BORDER_REPLICATE)
    return image
