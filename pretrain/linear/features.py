"""What a network gives for every image of a folder, in order, none left out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pretrain.features import CentreCrops, encode
from pretrain.knn import knn_accuracy
from pretrain.source.images import ImageSource
from runtime.distributed import is_main

KNN_ROWS = 1024  # test images compared at once: 1,024 x 1.28 M similarities are 5 GB


def outputs(
    model: nn.Module,
    folder: ImageSource,
    size: int,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    num_workers: int,
) -> torch.Tensor:
    """``model``'s output for the test view of every image: images x C, float32, on the CPU.

    Every process must call, only the main process gets the result, the others an empty tensor:
    the features of all of ImageNet are 10 GB. InputError for a damaged image.
    """
    parts = []
    for batch in encode(model, CentreCrops(folder, size), prepare, workers=num_workers):
        if is_main():
            parts.append(batch.cpu())
    return torch.cat(parts) if parts else torch.empty(0)


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
