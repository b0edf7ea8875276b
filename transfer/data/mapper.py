"""One image of a data set to one sample: read, augment, make tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Philox, RandomState
from PIL import Image

from runtime.errors import InputError
from transfer.data.dataset import Record
from transfer.data.geometry import Geometry, shortest_edge_size
from transfer.data.images import colour_planes, read_image
from transfer.data.targets import build_targets

Sample = dict[str, Any]
_MODES = {"BGR": "RGB", "RGB": "RGB", "L": "L"}


def sample_rng(seed: int, position: int) -> RandomState:
    """The random numbers of the sample at ``position`` of the training stream.

    A pure function of both (Philox keyed by them), so neither the number of workers and
    processes nor an interruption changes an augmentation. numpy promises that ``RandomState``
    draws the same numbers in every version.
    """
    return RandomState(Philox(key=np.array([seed, position], dtype=np.uint64)))


class Mapper:
    """Bit for bit Detectron2's ``DatasetMapper``, given the same random draws.

    The shorter side is resized to one of INPUT.MIN_SIZE_TRAIN (Pillow, bilinear, on uint8), then
    the image is flipped with probability 1/2; that is also the order of the draws.

    Raises :class:`InputError` for settings that it does not implement.
    """

    def __init__(self, cfg: Any, is_train: bool) -> None:
        _check_settings(cfg)
        self.is_train = is_train
        self.format = cfg.INPUT.FORMAT
        sizes = cfg.INPUT.MIN_SIZE_TRAIN if is_train else cfg.INPUT.MIN_SIZE_TEST
        self.sizes = (sizes, sizes) if isinstance(sizes, int) else tuple(sizes)
        self.max_size = cfg.INPUT.MAX_SIZE_TRAIN if is_train else cfg.INPUT.MAX_SIZE_TEST
        self.sampling = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        self.flip = cfg.INPUT.RANDOM_FLIP
        self.mask_format = cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None
        self.keypoints = _keypoint_on(cfg)

    def __call__(self, record: Record, generator: RandomState | None = None) -> Sample:
        """Make the sample of ``record``; in training ``generator`` gives the draws.

        Returns ``file_name``, ``image_id``, ``height`` and ``width`` of the original, ``image``
        (uint8 C x H x W, channels as in INPUT.FORMAT) and in training ``targets``
        (:func:`~transfer.data.targets.build_targets`).
        """
        old = (record["height"], record["width"])
        geometry = self._draw(old, generator) if self.is_train else self._fixed(old)
        image = read_image(record, _MODES[self.format])
        pixels = geometry.image(image, Image.Resampling.BILINEAR)
        sample = {key: record[key] for key in ("file_name", "image_id", "height", "width")}
        sample["image"] = colour_planes(pixels, reverse=self.format == "BGR")
        if self.is_train:
            flip = record["keypoint_flip"] if self.keypoints else None
            sample["targets"] = build_targets(
                record["annotations"], geometry, self.mask_format, flip
            )
        return sample

    def _draw(self, old: tuple[int, int], generator: RandomState | None) -> Geometry:
        assert generator is not None, "training draws sizes and flips"
        if self.sampling == "range":
            shortest = int(generator.randint(self.sizes[0], self.sizes[1] + 1))
        else:
            shortest = int(generator.choice(self.sizes))
        flipped = self.flip != "none" and generator.uniform() < 0.5
        return Geometry(old, self._size(old, shortest), self.flip if flipped else "none")

    def _fixed(self, old: tuple[int, int]) -> Geometry:
        return Geometry(old, self._size(old, self.sizes[0]), "none")

    def _size(self, old: tuple[int, int], shortest: int) -> tuple[int, int]:
        # a shortest side of 0 means in Detectron2: do not resize
        return shortest_edge_size(*old, shortest, self.max_size) if shortest else old


def _check_settings(cfg: Any) -> None:
    allowed = {
        "FORMAT": tuple(_MODES),
        "MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
        "RANDOM_FLIP": ("none", "horizontal", "vertical"),
        "MASK_FORMAT": ("polygon", "bitmask"),
    }
    for key, values in allowed.items():
        if cfg.INPUT[key] not in values:
            raise InputError(f"INPUT.{key} must be one of {', '.join(values)}: {cfg.INPUT[key]!r}")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    ranged = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and not isinstance(sizes, int)
    if ranged and len(sizes) != 2:
        raise InputError(f"INPUT.MIN_SIZE_TRAIN must be two sizes for 'range', not {sizes}")
    if _keypoint_on(cfg) and cfg.INPUT.RANDOM_FLIP == "vertical":
        raise InputError(
            "INPUT.RANDOM_FLIP vertical does not suit keypoints: a mirrored person has left and "
            "right exchanged, but their names would stay; use horizontal or none"
        )
    # a recipe table may leave out what nothing implements
    if cfg.INPUT.get("CROP") and cfg.INPUT.CROP.ENABLED:
        raise InputError("INPUT.CROP is not supported by this toolkit's data pipeline")


def _keypoint_on(cfg: Any) -> bool:
    return bool(cfg.MODEL.get("KEYPOINT_ON", False))
