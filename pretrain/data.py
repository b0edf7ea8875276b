"""Batches of views. Which image, in which order and how augmented: pure functions of the seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pretrain.augment import PIPELINES, fast
from pretrain.augment.on_device import finish
from pretrain.augment.rows import pack
from pretrain.images import ImageSource, UnreadableImageError
from pretrain.order import Window, permutation
from pretrain.views import ViewRecipe, draw
from runtime.errors import InputError
from runtime.randomness import generator
from runtime.stopping import leave_to_main

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
        unreadable: name and reason of the images that others took the places of.
        rows: of views that are only cropped yet, what is left to do: float32 view_count x N x
            WIDTH (``pretrain/augment/rows.py``), always on the CPU.
    """

    views: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    indices: torch.Tensor
    unreadable: tuple[tuple[str, str], ...] = ()
    rows: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; the host does not wait for the copies."""
        views = tuple(view.to(device, non_blocking=True) for view in self.views)
        labels, indices = (x.to(device, non_blocking=True) for x in (self.labels, self.indices))
        return Batch(views, labels, indices, self.unreadable, self.rows)

    def finished(self) -> Batch:
        """The batch with finished views, made on the device that it is on."""
        if self.rows is None:
            return self
        views = tuple(finish(*pair) for pair in zip(self.views, self.rows, strict=True))
        return Batch(views, self.labels, self.indices, self.unreadable)


class Sample(NamedTuple):
    """The views of one image, its label and index, and what had to be left out before it.

    ``rows``: what is left to do with the views, as in :class:`Batch`, of one image.
    """

    views: list[torch.Tensor]
    label: int
    image_index: int
    unreadable: list[tuple[str, str]]
    rows: torch.Tensor | None

    def finished(self) -> list[torch.Tensor]:
        """The views, finished here."""
        if self.rows is None:
            return self.views
        return list(finish(torch.stack(self.views), self.rows))


class ViewDataset(Dataset):
    """``dataset[epoch, index]``: the views of image ``index`` in that epoch.

    Another image takes the place of an unreadable one, with its own label; which one is a function
    of (seed, epoch, index), and the views are drawn as for that place, so that they repeat nothing.
    An InputError is returned, not raised: in a worker its one line would drown in a traceback.
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

    def __getitem__(self, where: tuple[int, int]) -> Sample | InputError:
        unreadable = []
        for candidate in self._candidates(*where):
            try:
                image = self.source.pixels(candidate)
            except UnreadableImageError as error:
                unreadable.append((self.source.files[candidate], error.reason))
            except InputError as error:
                return error
            else:
                views, rows = self._views(image, *where)
                label = self.labels[candidate] if self.labels is not None else -1
                return Sample(views, label, candidate, unreadable, rows)
        name, reason = unreadable[0]
        return InputError(
            f"cannot read image {name!r} ({reason}), nor {REPLACEMENTS} others drawn in its place: "
            f"look at the images of {str(self.source.root)!r}"
        )

    def _views(
        self, image: np.ndarray, *place: int
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        height, width = image.shape[:2]
        views = [
            draw(self.recipe, width, height, generator(self.seed, "augmentation", *place, number))
            for number in range(self.view_count)
        ]
        size = self.recipe.crop_size
        out = torch.empty(self.view_count, 3, size, size, dtype=torch.uint8)
        for view, pixels in zip(views, out.numpy(), strict=True):
            PIPELINES[self.pipeline](self.recipe, image, view, pixels)
        if self.pipeline != "split":
            return list(out), None
        return list(out), torch.from_numpy(np.stack([pack(self.recipe, view) for view in views]))

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        rng = generator(self.seed, "replacement", epoch, index)
        for _ in range(REPLACEMENTS):
            yield int(rng.integers(len(self.source.files)))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) pairs of this rank's share of every global batch from ``start_step`` on.

    Each epoch is a permutation of all images (:mod:`pretrain.order`); the incomplete last batch is
    dropped, as in the official code. Rank r of W takes the r-th part of each global batch.
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
        share = self.batch_size // self.world_size
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.start_step, self.total_steps):
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order = permutation(self.count, self.seed, epoch, self.window)
                order_epoch = epoch
            first = position * self.batch_size + self.rank * share
            yield [(epoch, int(index)) for index in order[first : first + share]]


def collate(samples: list[Sample | InputError]) -> Batch | InputError:
    """Stack samples to a :class:`Batch`; the first InputError among them instead, if any."""
    good = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        good.append(sample)
    views, labels, indices, unreadable, rows = zip(*good, strict=True)
    return Batch(
        tuple(torch.stack(view) for view in zip(*views, strict=True)),
        torch.tensor(labels),
        torch.tensor(indices),
        tuple(itertools.chain.from_iterable(unreadable)),
        None if rows[0] is None else torch.stack(rows, 1),
    )


def build_loader(dataset: ViewDataset, batches: EpochBatches, num_workers: int) -> DataLoader:
    """DataLoader over the whole run; the number of workers changes speed and nothing else."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_to_main,
        # Workers draw nothing from torch's global generator; a fixed generator keeps it untouched.
        generator=torch.Generator().manual_seed(0),
    )


def normalise(images: torch.Tensor, channels_last: bool = True) -> torch.Tensor:
    """uint8 N x 3 x H x W to float32 with ImageNet's mean and standard deviation, on its device."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    out = (images.to(mean.dtype) / 255 - mean) / std
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out
