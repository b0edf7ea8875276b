"""Batches of samples for training and testing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from runtime.data_workers import start_worker
from runtime.errors import InputError
from transfer.data.dataset import Dataset, Record
from transfer.data.mapper import Mapper, Sample, sample_rng
from transfer.data.order import (
    Place,
    grouped_batches,
    plain_batches,
    rank_stream,
    repeat_factors,
    train_stream,
)
from transfer.data.packed import PackedList

_REPEATING = "RepeatFactorTrainingSampler"
SAMPLERS = ("TrainingSampler", _REPEATING)


def build_train_loader(
    cfg: Any,
    records: list[Record],
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    num_workers: int | None = None,
) -> Batches:
    """Endless batches (lists of SOLVER.IMS_PER_BATCH // ``world`` samples) of process ``rank``.

    Begins with iteration ``start``. Batch i is a pure function of (cfg, records, rank, world, i),
    so an interrupted run goes on exactly. Order (DATALOADER.SAMPLER_TRAIN) and grouping
    (DATALOADER.ASPECT_RATIO_GROUPING) are Detectron2's with no workers: there, workers change the
    grouping; here, they change nothing. ``num_workers`` is DATALOADER.NUM_WORKERS if None, at most
    one for each CPU.
    """
    check_train_settings(cfg, world)
    loading = cfg.DATALOADER
    wide = [r["width"] > r["height"] for r in records] if loading.ASPECT_RATIO_GROUPING else None
    repeats = None
    if loading.SAMPLER_TRAIN == _REPEATING:
        repeats = repeat_factors(records, loading.REPEAT_THRESHOLD, loading.REPEAT_SQRT)
    stream = partial(train_stream, len(records), cfg.SEED, repeats=repeats)
    order = _TrainOrder(stream, cfg.SOLVER.IMS_PER_BATCH // world, rank, world, start, wide)
    samples = _Samples(records, Mapper(cfg, is_train=True), cfg.SEED)
    return Batches(samples, order, _workers(cfg, num_workers))


def check_train_settings(cfg: Any, world: int) -> None:
    """:class:`InputError` where :func:`build_train_loader` cannot do what the recipe says."""
    images, sampler = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.SAMPLER_TRAIN
    if images < world or images % world:
        raise InputError(f"SOLVER.IMS_PER_BATCH {images} is not a multiple of {world} processes")
    if cfg.SEED < 0:
        raise InputError(f"SEED {cfg.SEED} must not be negative here: draw one and record it")
    if sampler not in SAMPLERS:
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN {sampler} is not supported; use {' or '.join(SAMPLERS)}"
        )
    if sampler == _REPEATING and cfg.DATALOADER.REPEAT_THRESHOLD <= 0:
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN {sampler} repeats nothing with REPEAT_THRESHOLD "
            f"{cfg.DATALOADER.REPEAT_THRESHOLD}; LVIS is trained with 0.001"
        )


def build_test_loader(cfg: Any, dataset: Dataset, num_workers: int | None = None) -> Batches:
    """All images of ``dataset`` in order, one to a batch, resized to INPUT.MIN_SIZE_TEST."""
    samples = _Samples(dataset.records, Mapper(cfg, is_train=False), seed=None)
    order = [[(index, index)] for index in range(len(dataset.records))]
    return Batches(samples, order, _workers(cfg, num_workers))


class Batches:
    """Iterates over lists of samples; each ``iter`` begins anew."""

    def __init__(self, samples: _Samples, order: Iterable[list[Place]], num_workers: int) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=order,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=start_worker,
            # A generator of its own: the global one would be drawn from whenever iteration begins.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """The number of batches, where it is finite."""
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Sample]]:
        for batch in self._loader:
            for sample in batch:
                if isinstance(sample, InputError):
                    raise sample
            yield batch


def _as_it_is(batch: list[Any]) -> list[Any]:
    return batch


class _Samples:
    """Maps the place of a sample in the order to the sample; a wrong image to its error.

    Raised inside a worker, the error would come back with the worker's traceback in its text.
    """

    def __init__(self, records: list[Record], mapper: Mapper, seed: int | None) -> None:
        self._records = PackedList(records)
        self._mapper = mapper
        self._seed = seed

    def __getitem__(self, place: Place) -> Sample | InputError:
        position, index = place
        generator = None if self._seed is None else sample_rng(self._seed, position)
        try:
            return self._mapper(self._records[index], generator)
        except InputError as error:
            return error


class _TrainOrder:
    """The batches of one process, from iteration ``start`` on."""

    def __init__(
        self,
        stream: Callable[[], Iterator[int]],
        batch_size: int,
        rank: int,
        world: int,
        start: int,
        wide: list[bool] | None,
    ) -> None:
        self._stream = stream
        self._share = (rank, world)
        self._batch_size = batch_size
        self._start = start
        self._wide = wide

    def __iter__(self) -> Iterator[list[Place]]:
        stream = rank_stream(self._stream(), *self._share)
        if self._wide is None:
            batches = plain_batches(stream, self._batch_size)
        else:
            batches = grouped_batches(stream, self._batch_size, self._wide)
        return itertools.islice(batches, self._start, None)


def _workers(cfg: Any, wanted: int | None) -> int:
    number = cfg.DATALOADER.NUM_WORKERS if wanted is None else wanted
    return min(number, os.cpu_count() or 1)
