"""What a recipe's values may be: a rule for each key, and what must fit the images and machine.

Types are checked where a recipe is read (:func:`runtime.config.merge`): they are those of the
defaults. All of it happens before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode

from pretrain.augment import PIPELINES
from pretrain.bn_groups import RUNNING_STATS
from pretrain.dictionaries import DICTIONARIES
from pretrain.loading.order import window_of
from pretrain.loading.prefetch import check_cache
from pretrain.precision import has_bfloat16
from pretrain.schedule import total_steps
from pretrain.source.images import ImageSource
from runtime.config import leaves, short
from runtime.device import run_device
from runtime.errors import InputError
from runtime.urls import is_url


class Rule(NamedTuple):
    """What a value must be; ``must`` completes the sentence "KEY VALUE must ..."."""

    must: str
    holds: Callable[[Any], bool]


def _one_of(*names: str) -> Rule:
    return Rule(f"be one of {', '.join(filter(None, names))}", lambda value: value in names)


def _at_least(low: float) -> Rule:
    return Rule(f"be at least {low}", lambda value: low <= value < math.inf)


def _above(low: float) -> Rule:
    return Rule(f"be a number above {low}", lambda value: low < value < math.inf)


def _within(low: float, high: float) -> Rule:
    return Rule(f"lie in [{low}, {high}]", lambda value: low <= value <= high)


def _numbers(must: str, count: int, holds: Callable[..., bool]) -> Rule:
    return Rule(
        must, lambda value: len(value) == count and all(map(_is_number, value)) and holds(*value)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rising_counts(value: list[Any]) -> bool:
    return all(type(x) is int and x > 0 for x in value) and value == sorted(set(value))


_ANY = Rule("be text", lambda value: True)  # names are checked where they are looked up
_PROBABILITY = _within(0, 1)

RULES: dict[str, Rule] = {
    "METHOD": _one_of("moco", "supervised"),
    "MODEL.ARCH": _ANY,
    "MODEL.INIT": _ANY,
    "MODEL.DIM": _at_least(1),
    "MODEL.MLP": _ANY,
    "MODEL.DICTIONARY": _one_of(*DICTIONARIES),
    "MODEL.QUEUE_SIZE": _at_least(1),
    "MODEL.MOMENTUM": _within(0, 1),
    "MODEL.TEMPERATURE": _above(0),
    "MODEL.BN_GROUP_SIZE": Rule("be at least 2: BN needs a batch", lambda value: value >= 2),
    "MODEL.RUNNING_STATS": _one_of(*RUNNING_STATS),
    "MODEL.SHUFFLE_BN": _ANY,
    "DATA.ROOT": _ANY,
    "DATA.PIPELINE": _one_of(*PIPELINES),
    "DATA.SHUFFLE_WINDOW": _at_least(0),
    "DATA.NUM_WORKERS": _at_least(-1),
    "DATA.SHARD_CACHE": Rule("be a folder of this machine", lambda value: not is_url(value)),
    "DATA.SHARD_CACHE_GIB": _above(0),
    "DATA.MAX_UNREADABLE": _within(0, 1),
    "VIEWS.CROP_SIZE": _at_least(1),
    "VIEWS.CROP_SCALE": _numbers(
        "be two shares of the area, 0 < low <= high <= 1", 2, lambda low, high: 0 < low <= high <= 1
    ),
    "VIEWS.JITTER": _numbers(
        "be brightness, contrast and saturation in [0, 1] and hue in [0, 0.5]",
        4,
        lambda *x: all(0 <= v <= 1 for v in x[:3]) and 0 <= x[3] <= 0.5,
    ),
    "VIEWS.JITTER_PROB": _PROBABILITY,
    "VIEWS.GRAYSCALE_PROB": _PROBABILITY,
    "VIEWS.GRAYSCALE_FIRST": _ANY,
    "VIEWS.BLUR_PROB": _PROBABILITY,
    "VIEWS.BLUR_SIGMA": _numbers(
        "be two widths in pixels, 0 < low <= high", 2, lambda low, high: 0 < low <= high < math.inf
    ),
    "VIEWS.FLIP_PROB": _PROBABILITY,
    "SOLVER.BATCH_SIZE": _at_least(1),
    "SOLVER.ACCUMULATE": _at_least(1),
    "SOLVER.BASE_LR": _above(0),
    "SOLVER.SCHEDULE": _one_of("multistep", "cosine", "exponential"),
    "SOLVER.MILESTONES": Rule("be rising whole numbers above 0", _rising_counts),
    "SOLVER.DECAY_PERIOD": _at_least(1),
    "SOLVER.GAMMA": Rule("lie in (0, 1]", lambda value: 0 < value <= 1),
    "SOLVER.WARMUP_STEPS": _at_least(0),
    "SOLVER.MOMENTUM": Rule("lie in [0, 1): at 1 nothing is forgotten", lambda x: 0 <= x < 1),
    "SOLVER.WEIGHT_DECAY": _at_least(0),
    "SOLVER.EPOCHS": _at_least(1),
    "SOLVER.MAX_STEPS": _at_least(0),
    "SOLVER.AMP": Rule("be bf16, or empty for float32", lambda value: value in ("", "bf16")),
    "SOLVER.COMPILE": _ANY,
    "MONITOR.PERIOD": _at_least(1),
    "MONITOR.KNN_DATA": _ANY,
    "MONITOR.RETRIEVAL_DATA": _ANY,
    "CHECKPOINT_PERIOD": _at_least(1),
    "CHECKPOINT_STEPS": _at_least(0),
    "CHECKPOINT_KEEP": Rule(
        "be 0 (all) or at least 2: the newest may be damaged", lambda value: value == 0 or value > 1
    ),
    "CHECKPOINT_KEEP_PERIOD": _at_least(0),
    "LOG_PERIOD": _at_least(1),
    "SEED": _within(0, 2**63 - 1),
    "DEVICE": _one_of("auto", "cpu", "cuda"),
    "OUTPUT_DIR": _ANY,
}


def check_values(cfg: CfgNode, rules: Mapping[str, Rule] = RULES) -> None:
    """InputError for the first value that breaks its key's rule or cannot run on this machine."""
    for key, value in leaves(cfg):
        rule = rules[key]
        if not rule.holds(value):
            raise InputError(f"{key} {short(value)} must {rule.must}")
    if cfg.DEVICE == "cuda" and not torch.cuda.is_available():
        raise InputError("DEVICE cuda, but torch sees no GPU here: use DEVICE cpu")


def check_data(cfg: CfgNode, folder: ImageSource, world_size: int) -> None:
    """Refuse a recipe that does not fit the images or the processes. One line each."""
    batch, group, count = cfg.SOLVER.BATCH_SIZE, cfg.MODEL.BN_GROUP_SIZE, len(folder.files)
    if batch > count:
        raise InputError(
            f"SOLVER.BATCH_SIZE {batch} exceeds the {count} images of {folder.place!r}"
        )
    root, output = Path(cfg.DATA.ROOT).resolve(), Path(cfg.OUTPUT_DIR).resolve()
    if cfg.OUTPUT_DIR and root.is_dir() and output.is_relative_to(root):
        raise InputError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} lies in DATA.ROOT: the run's pictures would be taken "
            "for images when it is resumed; name a folder elsewhere"
        )
    parts = cfg.SOLVER.ACCUMULATE
    if batch % (group * world_size * parts):
        in_parts = f" in SOLVER.ACCUMULATE {parts} parts" if parts > 1 else ""
        raise InputError(
            f"SOLVER.BATCH_SIZE {batch} does not divide into BN groups of {group} on {world_size} "
            f"process(es){in_parts}: make it a multiple of {group * world_size * parts}"
        )
    window_of(folder, cfg.DATA.SHUFFLE_WINDOW)
    check_cache(folder, cfg.DATA.SHUFFLE_WINDOW, batch)
    if cfg.METHOD == "moco":
        _check_moco(cfg, count)


def _check_moco(cfg: CfgNode, count: int) -> None:
    batch, queue = cfg.SOLVER.BATCH_SIZE, cfg.MODEL.QUEUE_SIZE
    if cfg.MODEL.DICTIONARY == "end_to_end":
        _check_end_to_end(cfg)
    elif queue > count - batch:
        raise InputError(
            f"MODEL.QUEUE_SIZE {queue} is too large for {count} images and batch {batch}: keys of "
            f"the same image would be negatives; at most {max(count - batch, 0)}"
        )
    shuffled = cfg.MODEL.SHUFFLE_BN and cfg.MODEL.DICTIONARY != "memory_bank"
    if batch == cfg.MODEL.BN_GROUP_SIZE and shuffled:
        raise InputError(
            f"one BN group holds the whole batch of {batch}: shuffled BN cannot hide the positive "
            "key; make MODEL.BN_GROUP_SIZE smaller than SOLVER.BATCH_SIZE"
        )


def _check_end_to_end(cfg: CfgNode) -> None:
    batch, size = cfg.SOLVER.BATCH_SIZE, cfg.MODEL.QUEUE_SIZE
    if size != batch:
        raise InputError(
            f"MODEL.QUEUE_SIZE {size}, but the dictionary end_to_end is the batch: "
            f"set it to SOLVER.BATCH_SIZE, {batch}"
        )
    if cfg.SOLVER.ACCUMULATE > 1:
        raise InputError(
            f"SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}: the dictionary end_to_end needs gradients "
            "of the whole batch at once; use more processes, or a smaller batch"
        )


def doubts(cfg: CfgNode, steps_per_epoch: int) -> Iterator[str]:
    """What can run but is seldom meant, a line each."""
    solver = cfg.SOLVER
    steps = total_steps(solver, steps_per_epoch)
    if steps < 2 * solver.WARMUP_STEPS:
        yield f"SOLVER.WARMUP_STEPS {solver.WARMUP_STEPS} are most of the run's {steps} steps"
    if solver.AMP and not has_bfloat16(run_device(cfg.DEVICE)):
        yield "SOLVER.AMP bf16 where the processor has no bfloat16: right, but many times slower"
    window, batch = cfg.DATA.SHUFFLE_WINDOW, solver.BATCH_SIZE
    if 0 < window < 10 * batch:
        yield (
            f"DATA.SHUFFLE_WINDOW {window} is {window / batch:.1f} batches: images that lie "
            "together in a shard meet again in every epoch"
        )
    if cfg.DATA.PIPELINE == "split" and run_device(cfg.DEVICE).type == "cpu":
        yield "DATA.PIPELINE split where no GPU trains: right, but fast takes a tenth of the time"
    key = "MAX_STEPS" if solver.MAX_STEPS else "EPOCHS"
    if solver.SCHEDULE == "multistep":
        yield from late_milestones(solver, key)
    if solver.SCHEDULE == "exponential" and solver[key] <= solver.DECAY_PERIOD:
        yield (
            f"the rate never decays: SOLVER.DECAY_PERIOD {solver.DECAY_PERIOD} in "
            f"SOLVER.{key} {solver[key]}"
        )
    unshuffled = not cfg.MODEL.SHUFFLE_BN and cfg.MODEL.DICTIONARY != "memory_bank"
    if cfg.METHOD == "moco" and unshuffled:
        yield "MODEL.SHUFFLE_BN False: BN betrays the positive key; only to show that"


def late_milestones(solver: CfgNode, key: str) -> Iterator[str]:
    """A line where the rate falls less often than asked for; ``key``: of the run's length."""
    late = [milestone for milestone in solver.MILESTONES if milestone >= solver[key]]
    if late:
        yield (
            f"SOLVER.MILESTONES {', '.join(map(str, late))} never come in "
            f"SOLVER.{key} {solver[key]}: fine for a trial"
        )
