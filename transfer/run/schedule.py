"""How long and how fast to train: epochs of the data, other batches, and half-changed schedules."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fvcore.common.config import CfgNode

from runtime.config import get, set_value
from runtime.errors import InputError
from transfer.run.job import Options

log = logging.getLogger("moco")

BATCH, RATE = "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR"
REFERENCE_GPUS = 8  # of the paper and of Detectron2's recipes
_LENGTHS = (
    *("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS"),
    *("SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
)
TOLERANCE = 0.02  # of a rate or length that a user has rounded


@dataclass(frozen=True)
class Given:
    """What the recipe file and the user say of the schedule.

    Attributes:
        original: the recipe's values by key, before any override.
        original_epochs: the recipe's SCHEDULE section; EPOCHS 0 where it counts iterations.
        epochs: that section after the overrides.
        named: keys that the overrides name; they keep their values.
        complete: whether the recipe states a length, so that a part of it can be changed.
    """

    original: dict[str, Any]
    original_epochs: CfgNode
    epochs: CfgNode
    named: frozenset[str]
    complete: bool


def apply_schedule(
    cfg: CfgNode, given: Given, images: int, options: Options, world: int
) -> dict[str, str]:
    """Settle the batch and the schedule of ``cfg`` in place; return why each key was changed.

    ``images`` is the number of training images, ``world`` that of processes. A recipe in epochs
    gets its iterations, in ``given.original`` too. Raises InputError for a schedule of which a
    part only is changed.
    """
    original = given.original
    if given.original_epochs.EPOCHS:
        batch = original["SOLVER.IMS_PER_BATCH"]
        original.update(_iterations(given.original_epochs, images / batch))
    reasons = _scale(cfg, given, options, world)
    if given.epochs.EPOCHS:
        reasons |= _from_epochs(cfg, given, images)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0  # applied: a trainer that reads it would scale again
    for line in _partial_changes(cfg, given) if given.complete else ():
        if not options.allow_deviation:
            raise InputError(
                f"{line}; --batch N scales the whole schedule, --allow-deviation runs it like this"
            )
        log.warning("%s", line)
    changed = {key: why for key, why in reasons.items() if get(cfg, key) != original[key]}
    for key, why in changed.items():
        log.info("schedule: %s %r -> %r (%s)", key, original[key], get(cfg, key), why)
    if given.complete and not given.epochs.EPOCHS:
        _warn_of_trial(cfg.SOLVER.MAX_ITER, _length(cfg, original))
    return changed


def _scale(cfg: CfgNode, given: Given, options: Options, world: int) -> dict[str, str]:
    """Detectron2's DefaultTrainer.auto_scale_workers for any batch, except what a user has named.

    The rate follows the batch, all lengths its inverse (Goyal et al. 2017).
    """
    batch, before = _asked_batch(cfg, given.named, options, world), given.original[BATCH]
    if batch is None or batch == before:
        return {}
    ratio = batch / before
    values = {BATCH: batch, RATE: given.original[RATE] * ratio}
    for key in _LENGTHS:
        value = given.original[key]
        shortest = int(key in ("SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"))
        values[key] = (
            tuple(round(step / ratio) for step in value)
            if isinstance(value, tuple)
            else max(shortest, round(value / ratio))
        )
    return _set(cfg, values, given.named, f"batch {before} -> {batch}")


def _asked_batch(cfg: CfgNode, named: frozenset[str], options: Options, world: int) -> int | None:
    """The global batch to scale to, by option or SOLVER.REFERENCE_WORLD_SIZE; None for neither."""
    reference, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if options.batch is not None:
        if options.scale_to_gpus or BATCH in named:
            other = "--scale-to-gpus" if options.scale_to_gpus else BATCH
            raise InputError(f"--batch and {other} both choose the batch: give one of them")
        if options.batch < 1:
            raise InputError(f"--batch {options.batch} must be at least 1")
        return options.batch
    if not options.scale_to_gpus and not reference:
        return None
    reference = reference or REFERENCE_GPUS
    if batch % reference or BATCH in named:
        raise InputError(
            f"{BATCH} {batch} is not the recipe's batch for {reference} GPUs, so there is no scale "
            "to the GPUs of this run: use --batch N instead"
        )
    return batch // reference * world


def _from_epochs(cfg: CfgNode, given: Given, images: int) -> dict[str, str]:
    """Iterations for a schedule in epochs; a MAX_ITER that a user has named shrinks all of it."""
    epochs, batch, total = given.epochs, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER
    trial = "SOLVER.MAX_ITER" in given.named
    reason = f"{epochs.EPOCHS:g} epochs" + ("" if trial else f" of {images} images")
    per_epoch = total / epochs.EPOCHS if trial else images / batch
    reasons = _set(cfg, _iterations(epochs, per_epoch), given.named, reason)
    solver = cfg.SOLVER
    log.info(
        "schedule: %s are %d iterations of %d images, steps %s, warm-up %d",
        *(reason, solver.MAX_ITER, batch, solver.STEPS, solver.WARMUP_ITERS),
    )
    return reasons


def _iterations(epochs: CfgNode, per_epoch: float) -> dict[str, Any]:
    """SOLVER's lengths for a schedule in epochs of ``per_epoch`` iterations."""
    total = max(1, round(epochs.EPOCHS * per_epoch))
    steps = dict.fromkeys(round(step * per_epoch) for step in epochs.STEPS)
    return {
        "SOLVER.MAX_ITER": total,
        "SOLVER.STEPS": tuple(step for step in steps if 0 < step < total),
        "SOLVER.WARMUP_ITERS": min(total, round(epochs.WARMUP_EPOCHS * per_epoch)),
    }


def _set(
    cfg: CfgNode, values: dict[str, Any], named: frozenset[str], reason: str
) -> dict[str, str]:
    """Set the values whose keys the user has not named; each of these keys with the reason."""
    free = {key: value for key, value in values.items() if key not in named}
    for key, value in free.items():
        set_value(cfg, key, value)
    return dict.fromkeys(free, reason)


def check_epochs(epochs: CfgNode, stated: set[str], where: str) -> None:
    """InputError where a recipe's SCHEDULE makes no sense, or counts iterations as well."""
    steps = epochs.STEPS
    if not epochs.EPOCHS:
        if steps or epochs.WARMUP_EPOCHS:
            raise InputError(f"{where}: SCHEDULE has no EPOCHS: say how long to train")
        return
    both = stated & {"SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS"}
    if both:
        raise InputError(
            f"{where}: SCHEDULE gives the schedule in epochs and {min(both)} in iterations: "
            "keep one of them"
        )
    numbers = all(isinstance(step, (int, float)) for step in steps)
    if not numbers or list(steps) != sorted(set(steps)) or epochs.EPOCHS < 0:
        raise InputError(
            f"{where}: SCHEDULE.STEPS {tuple(steps)} must be rising epochs before "
            f"EPOCHS {epochs.EPOCHS:g}"
        )
    if any(not 0 < step < epochs.EPOCHS for step in (*steps, epochs.WARMUP_EPOCHS or 1e-9)):
        raise InputError(
            f"{where}: SCHEDULE.STEPS {tuple(steps)} and WARMUP_EPOCHS {epochs.WARMUP_EPOCHS:g} "
            f"must lie before EPOCHS {epochs.EPOCHS:g}"
        )


def _length(cfg: CfgNode, original: dict[str, Any]) -> float:
    """The iterations that show as many images as the recipe, at the batch of this run."""
    return original["SOLVER.MAX_ITER"] * original[BATCH] / cfg.SOLVER.IMS_PER_BATCH


def _partial_changes(cfg: CfgNode, given: Given) -> Iterator[str]:
    """Overrides that change a batch or a length and leave what belongs to it, a line each."""
    solver, original = cfg.SOLVER, given.original
    length, before, batch = _length(cfg, original), original[BATCH], solver.IMS_PER_BATCH
    if BATCH in given.named and batch != before:
        rate = original[RATE] * batch / before
        if not _near(solver.BASE_LR, rate):
            yield (
                f"{BATCH} {before} -> {batch} with {RATE} {solver.BASE_LR:g}: the recipe's rate is "
                f"{rate:g} at this batch"
            )
        if not given.epochs.EPOCHS and not _near(solver.MAX_ITER, length):
            yield (
                f"{BATCH} {before} -> {batch} with SOLVER.MAX_ITER {solver.MAX_ITER}: the recipe's "
                f"{original['SOLVER.MAX_ITER']} iterations are {length:.0f} of this batch"
            )
    elif _exceeds(solver.MAX_ITER, length) and original["SOLVER.STEPS"] == solver.STEPS:
        yield (
            f"SOLVER.MAX_ITER {original['SOLVER.MAX_ITER']} -> {solver.MAX_ITER}, but SOLVER.STEPS "
            f"stays {solver.STEPS}: override it, too"
        )


def _warn_of_trial(iterations: int, length: float) -> None:
    if _exceeds(length, iterations):
        log.warning(
            "a trial: %d iterations instead of %d; later steps of the learning rate never come",
            *(iterations, round(length)),
        )


def _exceeds(value: float, expected: float) -> bool:
    return value > expected * (1 + TOLERANCE)


def _near(value: float, expected: float) -> bool:
    return abs(value - expected) <= TOLERANCE * expected
