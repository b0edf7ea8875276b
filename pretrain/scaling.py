"""Another batch for a recipe: the rate follows it, all lengths in steps its inverse."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fvcore.common.config import CfgNode

from runtime.config import get, set_value
from runtime.errors import InputError

BATCH, RATE = "SOLVER.BATCH_SIZE", "SOLVER.BASE_LR"
KEPT = (
    *("SOLVER.EPOCHS", "SOLVER.WEIGHT_DECAY", "MODEL.QUEUE_SIZE", "MODEL.MOMENTUM"),
    *("MODEL.TEMPERATURE", "MODEL.BN_GROUP_SIZE"),
)
TOLERANCE = 0.02  # of a rate that a user has rounded


def settle_batch(
    cfg: CfgNode, recipe: CfgNode, named: Collection[str], batch: int | None
) -> list[str]:
    """Scale ``cfg`` in place to the global ``batch``, if one is given; return what to tell.

    ``recipe`` is the recipe's file alone, ``named`` the keys that overrides have set: they keep
    their values. The linear rule is Goyal et al.'s (2017), which both MoCo papers use: rate times
    batch / recipe's batch; as many images in the warm-up as before, and in the whole run where its
    length counts steps. Without ``batch``, a batch overridden alone is told of.

    Raises InputError where ``batch`` and an override both choose the batch.
    """
    if batch is None:
        return _partial_changes(cfg, recipe, named)
    if BATCH in named:
        raise InputError(f"--batch and {BATCH} both choose the batch: give one of them")
    if batch < 1:
        raise InputError(f"--batch {batch} must be at least 1")
    ratio = batch / recipe.SOLVER.BATCH_SIZE
    lines = []
    for key, value in _scaled(recipe, ratio).items():
        old = get(recipe, key)
        if key in named:
            lines.append(f"--batch {batch}: {key} stays {get(cfg, key)!r}, as you have set it")
        elif value != old:
            set_value(cfg, key, value)
            lines.append(f"--batch {batch}: {key} {old!r} -> {value!r}")
    kept = ", ".join(f"{key} {get(cfg, key)!r}" for key in KEPT)
    return [*lines, f"--batch {batch} leaves as they are: {kept}"]


def _scaled(recipe: CfgNode, ratio: float) -> dict[str, Any]:
    """The values for a batch ``ratio`` times the recipe's."""
    solver = recipe.SOLVER

    def steps(count: int) -> int:
        return max(1, round(count / ratio)) if count else 0

    values: dict[str, Any] = {
        BATCH: round(solver.BATCH_SIZE * ratio),
        RATE: float(f"{solver.BASE_LR * ratio:.12g}"),  # 0.0075, not 0.007500000000000001
        "SOLVER.WARMUP_STEPS": steps(solver.WARMUP_STEPS),
    }
    if solver.MAX_STEPS:
        values["SOLVER.MAX_STEPS"] = steps(solver.MAX_STEPS)
        if solver.SCHEDULE == "exponential":
            values["SOLVER.DECAY_PERIOD"] = steps(solver.DECAY_PERIOD)
        if solver.SCHEDULE == "multistep":
            values["SOLVER.MILESTONES"] = [steps(milestone) for milestone in solver.MILESTONES]
    return values


def _partial_changes(cfg: CfgNode, recipe: CfgNode, named: Collection[str]) -> list[str]:
    before, batch = recipe.SOLVER.BATCH_SIZE, cfg.SOLVER.BATCH_SIZE
    if BATCH not in named or batch == before:
        return []
    scaled = _scaled(recipe, batch / before)
    rate, steps = scaled[RATE], scaled.get("SOLVER.MAX_STEPS", 0)
    lines = []
    if abs(cfg.SOLVER.BASE_LR - rate) > TOLERANCE * rate:
        lines.append(
            f"warning: {BATCH} {before} -> {batch} with {RATE} {cfg.SOLVER.BASE_LR:g}: the "
            f"recipe's rate is {rate:g} at this batch; --batch {batch} sets both"
        )
    if steps and steps != cfg.SOLVER.MAX_STEPS:
        lines.append(
            f"warning: {BATCH} {before} -> {batch} with SOLVER.MAX_STEPS {cfg.SOLVER.MAX_STEPS}: "
            f"as many images as the recipe shows are {steps} steps; --batch {batch} sets both"
        )
    return lines
