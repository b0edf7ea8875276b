"""What a network gives for every image of a folder, in order, none left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from pretrain.features import CentreCrops, stack
from pretrain.images import ImageSource
from pretrain.knn import knn_accuracy
from runtime.distributed import all_gather, is_main, rank, world_size
from runtime.errors import InputError
from runtime.stopping import leave_to_main

BATCH = 64  # images a process handles at once; decides speed only
KNN_ROWS = 1024  # test images compared at once: 1,024 x 1.28 M similarities are 5 GB


class _InOrder(Sampler[list[int]]):
    """This rank's part of each global batch; the last image fills up the last batch."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.count, BATCH * world_size()):
            first = start + BATCH * rank()
            yield [min(index, self.count - 1) for index in range(first, first + BATCH)]


@torch.no_grad()
def outputs(
    model: nn.Module,
    folder: ImageSource,
    size: int,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    num_workers: int,
) -> torch.Tensor:
    """``model``'s output for the test view of every image: images x C, float32, on the CPU.

    The processes share the work, and every one must call; only the main process gets the result,
    the others an empty tensor. The model's mode is the caller's. InputError for a damaged image.
    """
    device = next(model.parameters()).device
    loader = DataLoader(
        CentreCrops(folder, size),
        batch_sampler=_InOrder(len(folder.files)),
        collate_fn=stack,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=leave_to_main,
    )
    parts = []
    for images in loader:
        if isinstance(images, InputError):
            raise images
        found = all_gather(model(prepare(images.to(device, non_blocking=True))).float())
        if is_main():
            parts.append(found.cpu())
    return torch.cat(parts)[: len(folder.files)] if parts else torch.empty(0)


def accuracy(logits: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    """Share in percent of the N rows whose class (int64, N) is among the ``k`` highest logits."""
    found = logits.topk(k, dim=1).indices
    return float((found == labels[:, None]).any(1).double().mean() * 100)


def knn_in_parts(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    k: int,
    temperature: float,
) -> float:
    """:func:`pretrain.knn.knn_accuracy` of features of any length, with bounded memory."""
    train, test = nn.functional.normalize(train, dim=1), nn.functional.normalize(test, dim=1)
    right = 0.0
    for rows, labels in zip(test.split(KNN_ROWS), test_labels.split(KNN_ROWS), strict=True):
        right += len(rows) * knn_accuracy(train, train_labels, rows, labels, k, temperature)
    return right / len(test)
