"""The learning rate: a function of the epoch as in the official code, and a warm-up."""

from __future__ import annotations

import math
from collections.abc import Sequence


def cosine(base_lr: float, epoch: int, epochs: int) -> float:
    """Half a cosine from ``base_lr`` to 0 (MoCo v2)."""
    return base_lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def multistep(base_lr: float, epoch: int, milestones: Sequence[int], gamma: float) -> float:
    """``base_lr`` times ``gamma`` for every milestone (epoch) reached (MoCo v1)."""
    return base_lr * gamma ** sum(epoch >= milestone for milestone in milestones)


def warmup(step: int, steps: int) -> float:
    """Factor of the rate at ``step`` (0-based): rises linearly to 1 over the first ``steps``."""
    return min(1.0, (step + 1) / steps) if steps else 1.0
