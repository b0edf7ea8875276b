"""Figures that tell what a set of features is worth. Pure functions of tensors.

Features are rows, N x C; "unit" means that each row has length 1. Every function returns a
float32 scalar on the features' device, so that nothing waits for the device until it is read.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn


@torch.no_grad()
def alignment(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of positive pairs, 0 (views agree) to 4. Wang & Isola 2020, eq. 3.

    ``a`` and ``b`` are unit features N x C of two views of the same images; the paper's α is 2.
    """
    return (a.float() - b.float()).square().sum(1).mean()


@torch.no_grad()
def uniformity(features: torch.Tensor) -> torch.Tensor:
    """Log of the mean Gaussian potential over all pairs. Wang & Isola 2020, eq. 4, t = 2.

    Of unit features N x C, N at least 2: 0 where all are equal, down to about −4 where they are
    spread evenly over a sphere of many dimensions.
    """
    return torch.pdist(features.float()).square().mul(-2).exp().mean().log()


@torch.no_grad()
def feature_spread(features: torch.Tensor) -> torch.Tensor:
    """Mean over dimensions of the standard deviation of the unit features, times √C.

    Of features N x C of any length. 0: all images have the same direction (collapse); 1: evenly
    spread over the sphere. Chen & He, "SimSiam", 2021, section 4.1, where it is not scaled.
    """
    unit = F.normalize(features.float(), dim=1)
    return unit.std(0, correction=0).mean() * features.shape[1] ** 0.5


@torch.no_grad()
def effective_rank(features: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the singular values' shares. Roy & Vetterli 2007, definition 1.

    Of features N x C, not centred: 1 (all rows on one line) to min(N, C). It counts the directions
    that are in use, and so sees a collapse to a few dimensions that the spread does not.
    """
    values = torch.linalg.svdvals(features.float())
    share = values / values.sum()
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def retrieval(a: torch.Tensor, b: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """Percent of rows of ``a`` whose nearest among all rows of ``b`` is their own partner.

    With ``others``, N x C: row i of them takes the place of row i of ``b`` for all rows but the
    i-th, so that there are as many to choose from.

    ``a`` and ``b`` are unit features N x C of two views of N images; chance is 100 / N. The nearest
    has the largest inner product; a tie counts for as much as a random pick among the equal ones
    would win, so that a collapsed encoder scores at chance.
    """
    similarity = a.float() @ b.float().T
    own = similarity.diagonal()[:, None]
    if others is not None:
        similarity = (a.float() @ others.float().T).diagonal_scatter(own[:, 0])
    is_best = (similarity <= own).all(1)
    return (is_best / (similarity == own).sum(1)).mean() * 100


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Euclidean length of all gradients together; 0 where there are none."""
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
