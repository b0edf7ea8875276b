"""Which image is trained on when: a pure function of seed, batch size and data set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch

Place = tuple[int, int]  # position in the training stream, index of the image


def train_stream(size: int, seed: int, shuffle: bool = True) -> Iterator[int]:
    """Endless indices below ``size``, each epoch permuted anew: Detectron2's ``TrainingSampler``.

    Unlike there, ``seed`` must not be negative: -1 would mean the same order in every run.
    """
    if size < 1 or seed < 0:
        raise ValueError(f"size must be positive and seed not negative: {size}, {seed}")
    return _epochs(size, seed, shuffle)


def _epochs(size: int, seed: int, shuffle: bool) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(size, generator=generator).tolist() if shuffle else range(size)


def rank_stream(size: int, seed: int, rank: int, world: int) -> Iterator[Place]:
    """What process ``rank`` of ``world`` trains on: each ``world``-th element of the stream."""
    return itertools.islice(enumerate(train_stream(size, seed)), rank, None, world)


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
