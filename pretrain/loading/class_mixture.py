"""Whether a shuffle window mixes the classes, or passes on the order that they lie in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pretrain.loading.order import permutation, window_of
from pretrain.source.images import ImageSource
from pretrain.source.shards import Shards
from runtime.randomness import generator

BATCHES = 100  # that are looked at, spread over the first epoch
ENOUGH = 0.75  # of the classes that are expected; ten batches of 8 differ by a tenth by chance


def poor_mixture(source: ImageSource, window: int, batch: int, seed: int) -> Iterator[str]:
    """A line where batches of DATA.SHUFFLE_WINDOW ``window`` hold too few classes.

    Too few against images drawn from all. Of shards without classes nothing is known.
    """
    if not window or not isinstance(source, Shards) or source.given.max() < 0:
        return
    order = permutation(len(source.files), seed, 0, window_of(source, window))
    steps = len(order) // batch
    batches = order[: steps * batch].reshape(steps, batch)[:: -(-steps // BATCHES)]
    drawn = generator(seed, "class mixture").integers(len(order), size=(BATCHES, batch))
    found, expected = (_classes_of_each(source.given[images]) for images in (batches, drawn))
    if found < ENOUGH * expected:
        yield (
            f"DATA.SHUFFLE_WINDOW {window}: a batch holds {found:.1f} classes, and would hold "
            f"{expected:.1f} if all images were mixed: the shards are sorted by class; "
            "tools/make_shards.py SHARDS OUT_DIR mixes them; or take a larger window, or 0"
        )


def _classes_of_each(labels: np.ndarray) -> float:
    """The mean number of different values in a row."""
    return float((np.diff(np.sort(labels)) != 0).sum(1).mean()) + 1
