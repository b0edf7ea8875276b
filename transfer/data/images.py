"""Image files to Pillow images, upright and in the recipe's colour mode."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from runtime.errors import InputError
from transfer.data.dataset import Record

_DECODERS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # Pillow knows some that run other programs
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
_QUARTER_TURNS = (5, 6, 7, 8)  # height and width change places


def read_image(record: Record, mode: str) -> Image.Image:
    """The image of ``record`` in Pillow's ``mode`` ("RGB" or "L"), its Exif rotation undone.

    Raises :class:`InputError` if the file is missing, damaged, of more than 8 bits a channel, or
    not of the size that the annotations were made for.
    """
    path, size = record["file_name"], (record["width"], record["height"])
    try:
        with Image.open(path, formats=_DECODERS) as image:
            if sorted(image.size) != sorted(size):
                raise _wrong_size(path, image.size, size)  # before a huge image is decoded
            if image.mode[0] in "IF":
                raise InputError(f"image {path} has mode {image.mode}; convert it to 8 bits")
            image.load()
            upright = _turn_upright(image)
            if upright.mode != mode:  # else convert() would copy it
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


def upright_size(path: str) -> tuple[int, int]:
    """Height and width after the Exif rotation, read from the header; InputError as above."""
    try:
        with Image.open(path, formats=_DECODERS) as image:
            width, height = image.size
            return (width, height) if _orientation(image) in _QUARTER_TURNS else (height, width)
    except Exception as error:
        raise InputError(f"cannot read image {path}: {error}") from error


def _wrong_size(path: str, found: tuple[int, int], expected: tuple[int, int]) -> InputError:
    return InputError(
        f"image {path} is {found[0]} x {found[1]}, its annotation says "
        f"{expected[0]} x {expected[1]}; repair the annotation"
    )


def _turn_upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # cameras write damaged Exif blocks; the pixels are good, as Detectron2 holds
        return None
