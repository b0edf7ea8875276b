"""How long to train, and the learning rate at each step.

Length and schedule count epochs, as in the official code, whose rate changes once an epoch; or,
with ``SOLVER.MAX_STEPS``, steps, as for the paper's billion images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fvcore.common.config import CfgNode


def total_steps(solver: CfgNode, steps_per_epoch: int) -> int:
    """Steps of the whole run."""
    return solver.MAX_STEPS or solver.EPOCHS * steps_per_epoch


def rate(solver: CfgNode, step: int, steps_per_epoch: int) -> float:
    """Learning rate of ``step`` (0-based)."""
    if solver.MAX_STEPS:
        place, end = step, solver.MAX_STEPS
    else:
        place, end = step // steps_per_epoch, solver.EPOCHS
    if solver.SCHEDULE == "cosine":
        lr = cosine(solver.BASE_LR, place, end)
    elif solver.SCHEDULE == "exponential":
        lr = exponential(solver.BASE_LR, place, solver.DECAY_PERIOD, solver.GAMMA)
    else:
        lr = multistep(solver.BASE_LR, place, solver.MILESTONES, solver.GAMMA)
    return lr * warmup(step, solver.WARMUP_STEPS)


def cosine(base_lr: float, place: int, end: int) -> float:
    """Half a cosine from ``base_lr`` to 0 (MoCo v2)."""
    return base_lr * 0.5 * (1 + math.cos(math.pi * place / end))


def multistep(base_lr: float, place: int, milestones: Sequence[int], gamma: float) -> float:
    """``base_lr`` times ``gamma`` for every milestone reached (MoCo v1)."""
    return base_lr * gamma ** sum(place >= milestone for milestone in milestones)


def exponential(base_lr: float, place: int, period: int, gamma: float) -> float:
    """``base_lr`` times ``gamma`` after every ``period`` (MoCo v1 on a billion images)."""
    return base_lr * gamma ** (place // period)


def warmup(step: int, steps: int) -> float:
    """Factor of the rate at ``step`` (0-based): rises linearly to 1 over the first ``steps``."""
    return min(1.0, (step + 1) / steps) if steps else 1.0
