"""Which image is trained on when: a pure function of seed, batch size and data set."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch

from transfer.data.dataset import Record

Place = tuple[int, int]  # position in the training stream, index of the image


def train_stream(
    size: int, seed: int, shuffle: bool = True, repeats: torch.Tensor | None = None
) -> Iterator[int]:
    """Endless indices below ``size``, each epoch permuted anew: Detectron2's ``TrainingSampler``.

    With ``repeats`` (:func:`repeat_factors`) its ``RepeatFactorTrainingSampler``: an index comes
    in an epoch as often as its factor says, rounded up or down at random in each epoch anew.
    Unlike there, ``seed`` must not be negative: -1 would mean the same order in every run.
    """
    if size < 1 or seed < 0:
        raise ValueError(f"size must be positive and seed not negative: {size}, {seed}")
    return _epochs(size, seed, shuffle, repeats)


def _epochs(size: int, seed: int, shuffle: bool, repeats: torch.Tensor | None) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        indices = torch.arange(size)
        if repeats is not None:
            whole = repeats.trunc()
            up = torch.rand(size, generator=generator) < repeats - whole
            indices = indices.repeat_interleave(whole.long() + up)
        if shuffle:
            indices = indices[torch.randperm(len(indices), generator=generator)]
        yield from indices.tolist()


def repeat_factors(records: Sequence[Record], threshold: float, sqrt: bool = True) -> torch.Tensor:
    """How often each image comes in an epoch, float32, at least 1 (LVIS paper, appendix B.2).

    Detectron2's ``repeat_factors_from_category_frequency``: f(c) is the share of the images that
    show class c, r(c) = max(1, sqrt(``threshold`` / f(c))), or without the root, and an image's
    factor is the largest r(c) of its classes.
    """
    shown = [{a["category_id"] for a in record["annotations"]} for record in records]
    images = Counter(label for labels in shown for label in labels)
    factors = {}
    for label, count in images.items():
        ratio = threshold / (count / len(records))
        factors[label] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
    return torch.tensor([max((factors[c] for c in labels), default=1.0) for labels in shown])


def rank_stream(stream: Iterable[int], rank: int, world: int) -> Iterator[Place]:
    """What process ``rank`` of ``world`` trains on: each ``world``-th element of ``stream``."""
    return itertools.islice(enumerate(stream), rank, None, world)


def plain_batches(stream: Iterable[Place], batch_size: int) -> Iterator[list[Place]]:
    """Batches in the order of the stream; an incomplete one at its end is dropped."""
    stream = iter(stream)
    while len(batch := list(itertools.islice(stream, batch_size))) == batch_size:
        yield batch


def grouped_batches(
    stream: Iterable[Place], batch_size: int, wide: Sequence[bool]
) -> Iterator[list[Place]]:
    """Batches of only wide or only other images (``wide[index]``), each given out once full.

    The same as Detectron2's ``AspectRatioGroupedDataset``, but before any image is loaded.
    """
    buckets: dict[bool, list[Place]] = {True: [], False: []}
    for place in stream:
        bucket = buckets[wide[place[1]]]
        bucket.append(place)
        if len(bucket) == batch_size:
            yield bucket.copy()
            bucket.clear()
