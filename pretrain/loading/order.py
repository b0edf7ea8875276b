"""In which order an epoch takes the images: a pure function of the seed and the epoch.

So a resumed run goes on exactly, and the number of processes and workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.source.images import ImageSource
from pretrain.source.shards import Shards
from runtime.errors import InputError
from runtime.randomness import generator


@dataclass(frozen=True)
class Window:
    """Images are mixed within a window, for shards on disks where random access is slow.

    Attributes:
        images: length of the window; none of the images moves as far as that.
        shards: number of images in each shard, in the order of the source.
    """

    images: int
    shards: Sequence[int]


def window_of(source: ImageSource, images: int) -> Window | None:
    """The window of DATA.SHUFFLE_WINDOW ``images``; None for 0, a full shuffle.

    From now on the shards are read ahead. InputError where the source is not in shards: a folder
    lists one class after the other, which no window would mix.
    """
    if not images:
        return None
    if not isinstance(source, Shards):
        raise InputError(
            f"DATA.SHUFFLE_WINDOW {images} is for shards, and {source.place!r} has none: make "
            "some with tools/make_shards.py, or set it to 0"
        )
    source.open_files.ahead = True
    return Window(images, source.images_in_shards())


def permutation(count: int, seed: int, epoch: int, window: Window | None = None) -> np.ndarray:
    """The images of ``epoch`` in their order: int64 ``count``, each index once.

    Without a window all orders are equally likely. With one, the shards are put in random order and
    their images after one another; then each goes back by a random distance of less than the
    window, as in a shuffle buffer. A window of 1 leaves the order of the shards.
    """
    if window is None:
        return generator(seed, "sample order", epoch).permutation(count)
    sizes = np.asarray(window.shards, dtype=np.int64)
    first = np.cumsum(sizes) - sizes
    shards = generator(seed, "shard order", epoch).permutation(len(sizes))
    in_a_row = np.concatenate([np.arange(first[s], first[s] + sizes[s]) for s in shards])
    distance = generator(seed, "shuffle window", epoch).random(count) * window.images
    return in_a_row[np.argsort(np.arange(count) + distance, kind="stable")]
