"""A recipe for one's own images and machine, each value with its reason.

MoCo v2 (Chen et al. 2020) is the starting point. What is set otherwise follows from the number of
images, because queue, batch and number of steps were published for 1.28 million.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pretrain.suggest.survey import Survey
from runtime.errors import InputError
from runtime.urls import is_url

PAPER_BATCH, PAPER_LR = 256, 0.03
PAPER_QUEUE = 65536
FEWEST = 32  # images
FEW_STEPS = 20_000  # below it the key encoder has to follow faster
SHORT_SIDE_SHARE = 0.77  # root of the mean share of the area that a crop takes, 0.6


@dataclass(frozen=True)
class Machine:
    """What there is to train on: GPUs, their name and memory in GiB, and CPU cores."""

    gpus: int
    gpu_name: str
    gpu_gib: float
    cores: int

    @classmethod
    def here(cls) -> Machine:
        """This machine, as far as this process may use it."""
        gpus = torch.cuda.device_count()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        if not gpus:
            return cls(0, "", 0.0, cores or 1)
        properties = torch.cuda.get_device_properties(0)
        return cls(gpus, properties.name, properties.total_memory / 2**30, cores or 1)

    def __str__(self) -> str:
        cores = f"{self.cores} CPU core(s)"
        if not self.gpus:
            return f"{cores}, no GPU"
        return f"{self.gpus} x {self.gpu_name} with {self.gpu_gib:.0f} GiB, {cores}"


class Choice(NamedTuple):
    """A key of the recipe, its value and the reason for it."""

    key: str
    value: Any
    reason: str


def choose(root: str | Path, images: Survey, machine: Machine) -> list[Choice]:
    """The recipe. InputError where there are too few images to learn from."""
    count = images.distinct
    if count < FEWEST:
        raise InputError(f"{str(root)!r} holds {count} different images: need {FEWEST}")
    batch, group = _batch(count, machine)
    steps_per_epoch = images.count // batch
    epochs = _epochs(count, machine)
    steps = steps_per_epoch * epochs.value
    queue = _queue(count, batch)
    follow = _momentum(steps)
    return [
        Choice("DATA.ROOT", str(root) if is_url(str(root)) else os.path.abspath(root), ""),
        _arch(machine),
        Choice("MODEL.MLP", True, "MoCo v2's head"),
        Choice("MODEL.TEMPERATURE", 0.2, "MoCo v2's, together with its head"),
        queue,
        follow,
        Choice("MODEL.BN_GROUP_SIZE", group, _group_reason(group, batch)),
        *_views(images, machine),
        _batch_choice(count, batch, steps_per_epoch, machine),
        Choice(
            "SOLVER.BASE_LR",
            PAPER_LR * batch / PAPER_BATCH,
            f"linear scaling: {PAPER_LR} x {batch} / {PAPER_BATCH}",
        ),
        Choice("SOLVER.SCHEDULE", "cosine", "MoCo v2's"),
        epochs,
        _warmup(steps, queue.value, batch),
        Choice(
            "CHECKPOINT_PERIOD",
            min(max(1, round(500 / steps_per_epoch)), epochs.value),
            "epochs: about every 500 steps, or every epoch where it is longer",
        ),
    ]


def _batch(count: int, machine: Machine) -> tuple[int, int]:
    """Global batch and BN group: at least ten steps an epoch, two to eight groups a batch."""
    largest = PAPER_BATCH if machine.gpus else 64
    batch = next((b for b in (256, 128, 64, 32) if b <= largest and b * 10 <= count), 16)
    return batch, min(32, max(8, batch // 4))


def _batch_choice(count: int, batch: int, steps: int, machine: Machine) -> Choice:
    if batch == PAPER_BATCH:
        return Choice("SOLVER.BATCH_SIZE", batch, "the papers'")
    why = "so that a step does not take too long" if not machine.gpus and count >= 1280 else ""
    why = why or f"of {count} images: {steps} steps an epoch"
    return Choice("SOLVER.BATCH_SIZE", batch, f"smaller than the papers' {PAPER_BATCH}, {why}")


def _group_reason(group: int, batch: int) -> str:
    if group == 32:
        return "the papers': batch 256 on 8 GPUs"
    return f"shuffled BN needs several groups in the batch: {batch // group} here"


def _arch(machine: Machine) -> Choice:
    if machine.gpus:
        return Choice("MODEL.ARCH", "resnet50", "the papers', and what most detectors take")
    return Choice(
        "MODEL.ARCH", "resnet18", "no GPU: 1.8 GFLOPs an image against ResNet-50's 4.1 (at 224)"
    )


def _queue(count: int, batch: int) -> Choice:
    size = min(PAPER_QUEUE, max(batch, count // 4 // batch * batch))
    # Of the K keys, those from the last epoch are of the query's image with probability 1 / N each
    own = min(1.0, size**2 / (2 * count**2))
    return Choice(
        "MODEL.QUEUE_SIZE",
        size,
        f"at most a quarter of the {count} different images (the papers' {PAPER_QUEUE} is 5 % of "
        f"theirs): so in {own:.1%} of all cases a key of the query's own image, from the epoch "
        "before, is among the negatives",
    )


def _epochs(count: int, machine: Machine) -> Choice:
    if not machine.gpus:
        return Choice("SOLVER.EPOCHS", 200, "the shorter published length; 800 is better, no GPU")
    if count >= 1_000_000:
        return Choice("SOLVER.EPOCHS", 200, "the papers', for 1.28 million images")
    return Choice("SOLVER.EPOCHS", 800, "MoCo v2's longer length: fewer images make fewer steps")


def _momentum(steps: int) -> Choice:
    if steps >= FEW_STEPS:
        return Choice("MODEL.MOMENTUM", 0.999, f"the papers'; {steps} steps are enough for it")
    return Choice(
        "MODEL.MOMENTUM",
        0.99,
        f"the key encoder follows within 100 steps: the papers' 0.999 needs 1000, of {steps}",
    )


def _warmup(steps: int, queue: int, batch: int) -> Choice:
    filled = math.ceil(queue / batch)
    return Choice(
        "SOLVER.WARMUP_STEPS",
        max(filled, steps // 100),
        f"the queue holds real keys after {filled} steps; 1 % of the run is {steps // 100}",
    )


def _views(images: Survey, machine: Machine) -> list[Choice]:
    crop = min(224, max(32, round(images.short_side * SHORT_SIDE_SHARE / 32) * 32))
    reason = f"half of the images are narrower than {images.short_side} pixels, and crops smaller"
    if crop == 224:
        reason = f"the papers'; the images have it: median short side {images.short_side}"
    if not machine.gpus and crop > 96:
        reason = f"no GPU: {(crop / 96) ** 2:.1f} times faster than {crop}, which the images have"
        crop = 96
    out = [Choice("VIEWS.CROP_SIZE", crop, reason)]
    if images.grey_share >= 0.9:
        why = f"{images.grey_share:.0%} of the images are grey: "
        out += [
            Choice("VIEWS.JITTER", [0.4, 0.4, 0.0, 0.0], why + "no saturation or hue to change"),
            Choice("VIEWS.GRAYSCALE_PROB", 0.0, why + "nothing to take away"),
        ]
    else:
        out.append(Choice("VIEWS.JITTER", [0.4, 0.4, 0.4, 0.1], "MoCo v2's"))
    return [
        *out,
        Choice("VIEWS.JITTER_PROB", 0.8, "MoCo v2's"),
        Choice("VIEWS.GRAYSCALE_FIRST", False, "MoCo v2's order"),
        Choice("VIEWS.BLUR_PROB", 0.5, "MoCo v2's"),
    ]
