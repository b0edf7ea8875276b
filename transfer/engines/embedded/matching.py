"""Which ground truth a box belongs to, and which boxes are sampled for training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.errors import InputError


class Matcher:
    """Assigns each candidate box its best ground truth and a label by their overlap.

    ``thresholds`` cut the overlap into intervals, each closed below, that get ``labels`` (one
    more than thresholds): 1 foreground, 0 background, -1 ignored. With ``keep_best`` the best
    candidates of each ground truth are foreground however small the overlap.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], *, keep_best: bool
    ) -> None:
        rising = list(thresholds) == sorted(thresholds) and all(t > 0 for t in thresholds)
        if not rising or len(labels) != len(thresholds) + 1 or not {*labels} <= {-1, 0, 1}:
            raise InputError(
                f"IOU_THRESHOLDS {list(thresholds)} with IOU_LABELS {list(labels)}: thresholds "
                "must be positive and rising, labels one more, each of them 1, 0 or -1"
            )
        self.intervals = list(itertools.pairwise((-math.inf, *thresholds, math.inf)))
        self.labels = tuple(labels)
        self.keep_best = keep_best

    def __call__(self, overlaps: Tensor) -> tuple[Tensor, Tensor]:
        """From overlaps (ground truths x N): best ground truth (int64 N) and label (int8 N).

        Without any ground truth every candidate gets index 0 and the lowest interval's label.
        """
        if overlaps.numel() == 0:
            count = overlaps.shape[1]
            matches = overlaps.new_zeros(count, dtype=torch.int64)
            return matches, overlaps.new_full((count,), self.labels[0], dtype=torch.int8)
        best, matches = overlaps.max(dim=0)
        labels = torch.ones_like(matches, dtype=torch.int8)
        for label, (low, high) in zip(self.labels, self.intervals, strict=True):
            labels[(best >= low) & (best < high)] = label
        if self.keep_best:
            best_of_truth = overlaps.max(dim=1, keepdim=True).values
            labels[(overlaps == best_of_truth).any(dim=0)] = 1
        return matches, labels


def sample(
    labels: Tensor, count: int, positive_fraction: float, background: int
) -> tuple[Tensor, Tensor]:
    """Draw at most ``count`` indices: positives up to the fraction, backgrounds for the rest.

    ``labels`` is a vector in which -1 is ignored. Both results are in random order. The two draws
    happen even where there is nothing to draw from: the state of the random generator afterwards
    is Detectron2's.
    """
    positive = torch.nonzero((labels != -1) & (labels != background)).squeeze(1)
    negative = torch.nonzero(labels == background).squeeze(1)
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    chosen = torch.randperm(len(positive), device=labels.device)[:positives]
    rejected = torch.randperm(len(negative), device=labels.device)[:negatives]
    return positive[chosen], negative[rejected]
