"""Batches of views. Which image, in which order and how augmented: pure functions of the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from pretrain.augment import PIPELINES, fast
from pretrain.augment.on_device import finish
from pretrain.augment.rows import WIDTH, pack
from pretrain.loading.order import Window, permutation
from pretrain.source.flaws import Flaw
from pretrain.source.images import ImageSource, UnreadableImageError
from pretrain.views import ViewRecipe, draw
from runtime.errors import InputError
from runtime.randomness import generator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
REPLACEMENTS = 20  # images tried in place of an unreadable one


@dataclass(frozen=True)
class Batch:
    """Views of N images on one process.

    Attributes:
        views: ``view_count`` tensors N x 3 x S x S, uint8, RGB.
        labels: int64 N; the class index, or -1 without classes.
        indices: int64 N; which image of the source.
        flaws: of unreadable images, which others took the places of, and of damaged ones.
        rows: of views that are only cropped yet, what is left to do: float32 view_count x N x
            WIDTH (``pretrain/augment/rows.py``), always on the CPU.
    """

    views: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    indices: torch.Tensor
    flaws: tuple[Flaw, ...] = ()
    rows: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; the host does not wait for the copies."""
        views = tuple(view.to(device, non_blocking=True) for view in self.views)
        labels, indices = (x.to(device, non_blocking=True) for x in (self.labels, self.indices))
        return Batch(views, labels, indices, self.flaws, self.rows)

    def finished(self) -> Batch:
        """The batch with finished views, made on the device that it is on."""
        if self.rows is None:
            return self
        views = finish(torch.cat(self.views), self.rows.flatten(0, 1)).chunk(len(self.views))
        return Batch(views, self.labels, self.indices, self.flaws)


class Sample(NamedTuple):
    """The views of one image, its label and index, and flaws of it and those left out before.

    ``rows``: what is left to do with the views, as in :class:`Batch`, of one image.
    """

    views: list[torch.Tensor]
    label: int
    image_index: int
    flaws: list[Flaw]
    rows: torch.Tensor | None

    def finished(self) -> list[torch.Tensor]:
        """The views, finished here."""
        if self.rows is None:
            return self.views
        return list(finish(torch.stack(self.views), self.rows))


class ViewDataset:
    """``dataset[epoch, index]``: the views of image ``index`` in that epoch.

    Another image takes the place of an unreadable one, with its own label; which one is a function
    of (seed, epoch, index), and the views are drawn as for that place, so that they repeat nothing.
    InputError where the storage fails, or the images in its place are unreadable, too.
    """

    def __init__(
        self,
        source: ImageSource,
        recipe: ViewRecipe,
        view_count: int,
        seed: int,
        labels: list[int] | None,
        pipeline: str = "reference",
    ) -> None:
        self.source = source
        self.recipe = recipe
        self.view_count = view_count
        self.seed = seed
        self.labels = labels
        self.pipeline = pipeline
        if pipeline != "reference":
            fast.warm_up()  # once, not in each worker

    def __getitem__(self, where: tuple[int, int]) -> Sample:
        size = self.recipe.crop_size
        views = np.empty((self.view_count, 3, size, size), dtype=np.uint8)
        rows = np.empty((self.view_count, self.row_width), dtype=np.float32)
        image_index, flaws = self.write(*where, views, rows)
        return Sample(
            list(torch.from_numpy(views)),
            self.label(image_index),
            image_index,
            flaws,
            torch.from_numpy(rows) if self.row_width else None,
        )

    @property
    def row_width(self) -> int:
        """Numbers that say what is left to do with a view; 0 where it is finished."""
        return WIDTH if self.pipeline == "split" else 0

    def write(
        self, epoch: int, index: int, views: np.ndarray, rows: np.ndarray
    ) -> tuple[int, list[Flaw]]:
        """Write views and what is left to do with them to ``views`` and ``rows``.

        uint8 view_count x 3 x S x S and float32 view_count x ``row_width``. Returns which image
        they are of, its flaw if it has one, and those of images that it took the place of.
        """
        flaws: list[Flaw] = []
        for candidate in self._candidates(epoch, index):
            name, damage = self.source.files[candidate], list[str]()
            try:
                image = self.source.pixels(candidate, damage)
            except UnreadableImageError as error:
                flaws.append(Flaw(name, error.reason))
                continue
            flaws += [Flaw(name, reason, used=True) for reason in damage]
            for number in range(self.view_count):
                rng = generator(self.seed, "augmentation", epoch, index, number)
                self._make(image, rng, views[number], rows[number])
            return candidate, flaws
        name, reason, _ = flaws[0]
        raise InputError(
            f"cannot read image {name!r} ({reason}), nor {REPLACEMENTS} others drawn in its place: "
            f"look at the images of {self.source.place!r}"
        )

    def label(self, index: int) -> int:
        """Class of image ``index``; -1 without classes."""
        return self.labels[index] if self.labels is not None else -1

    def _make(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray, row: np.ndarray
    ) -> None:
        height, width = image.shape[:2]
        view = draw(self.recipe, width, height, rng)
        PIPELINES[self.pipeline](self.recipe, image, view, out)
        if self.row_width:
            row[:] = pack(self.recipe, view)

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        rng = generator(self.seed, "replacement", epoch, index)
        for _ in range(REPLACEMENTS):
            yield int(rng.integers(len(self.source.files)))


class EpochBatches:
    """The (epoch, index) pairs of this rank's share of every global batch from ``start_step`` on.

    Each epoch is a permutation of all images (:mod:`pretrain.loading.order`); the incomplete last
    batch is dropped, as in the official code. Rank r of W takes the r-th part of each global batch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        total_steps: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        window: Window | None = None,
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.share = batch_size // world_size  # images of a batch on this rank
        self.total_steps = total_steps
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size
        self.window = window

    def __len__(self) -> int:
        return self.total_steps - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps_per_epoch = self.count // self.batch_size
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.start_step, self.total_steps):
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order = permutation(self.count, self.seed, epoch, self.window)
                order_epoch = epoch
            first = position * self.batch_size + self.rank * self.share
            yield [(epoch, int(index)) for index in order[first : first + self.share]]


def normalise(images: torch.Tensor, channels_last: bool = True) -> torch.Tensor:
    """uint8 N x 3 x H x W to float32 with ImageNet's mean and standard deviation, on its device."""
    mean, std = _mean_and_std(images.device, torch.get_default_dtype())
    out = (images.to(mean.dtype) / 255 - mean) / std
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out


@cache  # a copy from Python's numbers makes the host wait for all that the device has to do
def _mean_and_std(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=dtype, device=device)
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
