"""Weighted nearest neighbours on frozen features (Wu et al., CVPR 2018, section 3.4).

What the monitor of MoCo's appendix (figure A.1) measures: no training, no parameters to tune.
"""

from __future__ import annotations

import torch


def knn_accuracy(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy in percent of the vote of the ``k`` nearest, weighted by exp(cos / τ).

    Features are unit rows; labels int64.
    """
    classes = int(train_labels.max()) + 1
    similarity, index = (test @ train.T).topk(min(k, len(train)), dim=1)
    votes = torch.zeros(len(test), classes)
    weights = ((similarity - similarity[:, :1]) / temperature).exp()  # no overflow: at most 1
    votes.scatter_add_(1, train_labels[index], weights)
    return float((votes.argmax(1) == test_labels).float().mean() * 100)
