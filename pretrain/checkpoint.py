"""Checkpoints in the official MoCo layout, plus what exact resumption needs.

``epoch``, ``arch``, ``state_dict`` (``module.encoder_q.*``, ``module.encoder_k.*``,
``module.queue``, ``module.queue_ptr``; ``module.*`` for the supervised counterpart) and
``optimizer`` are what every MoCo tool reads. ``step``, ``method``, ``config``, ``data``,
``seen_images`` and ``versions`` are ours. No random state is stored: all draws are functions of the
seed and the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.optim import Optimizer

from convert.seen_images import SeenImages
from pretrain.config import NOT_PART_OF_THE_RECIPE, default_cfg
from runtime.config import dump, leaves
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.rundir import set_last_checkpoint
from runtime.versions import versions

PREFIX = "module."  # official checkpoints are saved from inside DistributedDataParallel


def save(
    path: Path,
    cfg: CfgNode,
    model: nn.Module,
    optimizer: Optimizer,
    step: int,
    epoch: int,
    fingerprint: str,
    seen: SeenImages,
) -> None:
    """Write the state after ``step`` steps atomically and make it the run's last checkpoint.

    ``epoch`` counts the finished epochs, ``fingerprint`` is that of the source of images,
    ``seen`` what later tells whether a test image is one of them.
    """
    state = {
        "epoch": epoch,
        "arch": cfg.MODEL.ARCH,
        "state_dict": {PREFIX + name: value for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "step": step,
        "method": cfg.METHOD,
        "config": dump(cfg),
        "data": fingerprint,
        "seen_images": seen.to_dict(tensor=True),
        "versions": versions(),
    }
    with atomic_write(path) as stream:
        torch.save(state, stream)
    set_last_checkpoint(path)


def resume(
    path: Path, cfg: CfgNode, model: nn.Module, optimizer: Optimizer, fingerprint: str
) -> int:
    """Load a checkpoint of this very run and return the number of steps that it has done.

    Raises InputError where the file cannot be read safely, or belongs to another recipe or other
    images.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = CfgNode.load_cfg(state["config"])
        step, saved_data = int(state["step"]), state["data"]
    except Exception as error:
        raise InputError(f"cannot resume from {str(path)!r}: {error}") from error
    _check_same_recipe(path, saved, cfg)
    if saved_data != fingerprint:
        raise InputError(
            f"the images of {cfg.DATA.ROOT!r} are not those that {str(path)!r} was trained on: "
            "restore them, or start a new run in another OUTPUT_DIR"
        )
    weights = {name.removeprefix(PREFIX): value for name, value in state["state_dict"].items()}
    model.load_state_dict(weights)
    optimizer.load_state_dict(state["optimizer"])
    return step


def _check_same_recipe(path: Path, saved: dict[str, Any], cfg: CfgNode) -> None:
    before, now = dict(leaves(default_cfg())) | dict(leaves(saved)), dict(leaves(cfg))
    for key, value in now.items():
        if key not in NOT_PART_OF_THE_RECIPE and before[key] != value:
            raise InputError(
                f"{key} is {value!r}, but {path.parent.name!r} was begun with {before[key]!r}: "
                "resume with the recipe of the run, or start a new one in another OUTPUT_DIR"
            )
