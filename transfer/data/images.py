"""Image files to Pillow images, upright and in the recipe's colour mode."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, features

from runtime.errors import InputError
from transfer.data.dataset import Record

_DECODERS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # Pillow knows some that run other programs
# simplejpeg has libjpeg-turbo: the pixels are those of a Pillow that was built with it as well.
_JPEG_COLOURS = {"RGB": "RGB", "L": "GRAY"} if features.check_feature("libjpeg_turbo") else {}
_ORIENTATION = 274  # the Exif tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(record: Record, mode: str) -> Image.Image:
    """The image of ``record`` in Pillow's ``mode`` ("RGB" or "L"), its Exif rotation undone.

    Raises :class:`InputError` if the file is missing, damaged, of more than 8 bits a channel, or
    not of the size that the annotations were made for.
    """
    path, size = record["file_name"], (record["width"], record["height"])
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(data), formats=_DECODERS) as image:
            if sorted(image.size) != sorted(size):
                raise _wrong_size(path, image.size, size)  # before a huge image is decoded
            if image.mode[0] in "IF":
                raise InputError(f"image {path} has mode {image.mode}; convert it to 8 bits")
            upright = _turn_upright(image, _decode(image, data))
            if upright.mode != mode:
                upright = upright.convert(mode)
    except InputError:
        raise
    except Exception as error:  # decoders raise many types on damaged files
        raise InputError(f"cannot read image {path}: {error}") from error
    if upright.size != size:
        raise _wrong_size(path, upright.size, size)
    return upright


def colour_planes(pixels: npt.NDArray[np.uint8], reverse: bool) -> torch.Tensor:
    """H x W or H x W x C to C x H x W, channels in reverse order if ``reverse``; uint8, a copy."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    planes = np.empty((channels, *pixels.shape[:2]), dtype=np.uint8)
    cv2.split(pixels, list(planes[::-1] if reverse else planes))  # 10 times np.transpose's speed
    return torch.from_numpy(planes)


def _decode(image: Image.Image, data: bytes) -> Image.Image:
    """The pixels of ``image``, which was opened from ``data``.

    Ordinary JPEG files by simplejpeg, in two thirds of Pillow's time. Damaged and unusual ones
    (CMYK, 12 bits) are left to Pillow, which is also Detectron2's judge of what can be read.
    """
    if image.format == "JPEG" and image.mode in _JPEG_COLOURS:
        with contextlib.suppress(ValueError):
            pixels = simplejpeg.decode_jpeg(data, _JPEG_COLOURS[image.mode])
            return Image.frombytes(image.mode, image.size, pixels)
    image.load()
    return image


def _wrong_size(path: str, found: tuple[int, int], expected: tuple[int, int]) -> InputError:
    return InputError(
        f"image {path} is {found[0]} x {found[1]}, its annotation says "
        f"{expected[0]} x {expected[1]}; repair the annotation"
    )


def _turn_upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """``pixels`` turned as the Exif block of ``image`` says."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # cameras write damaged Exif blocks; the pixels are good, as Detectron2 holds
        orientation = None
    return pixels.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels
