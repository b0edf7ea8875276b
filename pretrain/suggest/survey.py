"""What a person would want to know of a set of images before pretraining on it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from pretrain.source.images import ImageSource, UnreadableImageError
from runtime.errors import InputError
from runtime.randomness import generator

MOST_COMPARED = 4000  # files looked through for duplicates
MOST_DECODED = 500
GREY_TOLERANCE = 8  # grey levels between the channels of a grey JPEG


@dataclass(frozen=True)
class Survey:
    """Attributes:
    count: number of images.
    compared, duplicates: files looked through, and those of them that repeat another byte for byte.
    decoded, unreadable: images decoded, and those of them that could not be.
    grey, two_valued: readable ones without colour, and with two values at most, as masks have.
    short_side: median of the shorter side in pixels.
    """

    count: int
    compared: int
    duplicates: int
    decoded: int
    unreadable: int
    grey: int
    two_valued: int
    short_side: int

    @property
    def distinct(self) -> int:
        """Number of different images, as far as those looked through can tell."""
        return round(self.count * (1 - self.duplicates / self.compared))

    @property
    def grey_share(self) -> float:
        """Share of images without colour, of the readable ones."""
        return self.grey / (self.decoded - self.unreadable)


def survey(source: ImageSource) -> Survey:
    """Look at the images; of many at some thousand, the same ones each time.

    InputError where none of those looked at can be read.
    """
    compared, duplicates = _duplicates(source)
    chosen = generator(0, "survey").permutation(len(source.files))[:MOST_DECODED]
    sides, grey, two_valued = [], 0, 0
    for index in chosen:
        try:
            image = source.load(int(index))
        except UnreadableImageError:
            continue
        sides.append(min(image.size))
        pixels = np.asarray(image)
        grey += _is_grey(pixels)
        two_valued += len(np.unique(pixels)) <= 2
    if not sides:
        raise InputError(f"none of {len(chosen)} images of {source.place!r} can be read")
    return Survey(
        count=len(source.files),
        compared=compared,
        duplicates=duplicates,
        decoded=len(chosen),
        unreadable=len(chosen) - len(sides),
        grey=grey,
        two_valued=two_valued,
        short_side=round(float(np.median(sides))),
    )


def _duplicates(source: ImageSource) -> tuple[int, int]:
    """Files compared and those that repeat another.

    Equal files are equally long. So whole groups of one length are compared: of many images a part
    of the groups, which finds the same share of duplicates as all would.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, size in enumerate(source.file_sizes()):
        groups[size].append(index)
    sizes = sorted(groups)
    compared, duplicates = 0, 0
    for place in generator(0, "survey of duplicates").permutation(len(sizes)):
        if compared >= MOST_COMPARED:
            break
        group = groups[sizes[place]]
        compared += len(group)
        if len(group) > 1:
            digests = {hashlib.sha256(source.read(index)).digest() for index in group}
            duplicates += len(group) - len(digests)
    return compared, duplicates


def _is_grey(pixels: np.ndarray) -> bool:
    values = pixels.astype(np.int16)
    return bool((values.max(2) - values.min(2)).max() <= GREY_TOLERANCE)
