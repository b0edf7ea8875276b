"""Checkpoints in the official MoCo layout, plus what exact resumption needs.

``epoch``, ``arch``, ``state_dict`` (``module.encoder_q.*``, ``module.encoder_k.*``,
``module.queue``, ``module.queue_ptr``; ``module.*`` for the supervised counterpart) and
``optimizer`` are what every MoCo tool reads. The other entries are ours. No random state is stored:
all draws are functions of the seed and the step.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode
from torch import nn
from torch.optim import Optimizer

from pretrain.bn_groups import share_running_statistics_
from pretrain.config import NOT_PART_OF_THE_RECIPE, default_cfg
from runtime.config import dump, leaves, refuse_another_recipe
from runtime.distributed import all_gather, rank, world_size
from runtime.errors import InputError
from runtime.versions import versions

log = logging.getLogger("moco")

PREFIX = "module."  # official checkpoints are saved from inside DistributedDataParallel
ENTRIES = {
    "epoch": int,  # finished epochs
    "arch": str,
    "state_dict": dict,  # running BN statistics: the mean over the processes
    "optimizer": dict,  # with the names of its parameters
    "step": int,  # steps taken
    "method": str,
    "config": str,  # YAML
    "data": str,  # fingerprint of the images
    "seen_images": dict,  # what later tells whether a test image is one of them
    "versions": dict,
    "running_statistics": torch.Tensor,  # each process's own, in a row
}


def state_of(
    cfg: CfgNode, model: nn.Module, optimizer: Optimizer, step: int, epoch: int
) -> dict[str, Any]:
    """The content of a checkpoint after ``step`` steps, but for what says of the images; nothing
    in the model changes.

    Every process must call it. The tensors may be those of the model. Raises FloatingPointError, on
    all processes, where a number is not finite: such a state is worth nothing.
    """
    own = _running_statistics(model)
    every = all_gather(own[None])
    share_running_statistics_(model)
    weights = {PREFIX + name: value for name, value in model.state_dict().items()}
    if world_size() > 1:  # the processes go on as if there had been no checkpoint
        weights = {name: value.clone() for name, value in weights.items()}
        _set_running_statistics(model, own)
    state = {
        "epoch": epoch,
        "arch": cfg.MODEL.ARCH,
        "state_dict": weights,
        "optimizer": optimizer.state_dict(),
        "step": step,
        "method": cfg.METHOD,
        "config": dump(cfg),
        "versions": versions(),
        "running_statistics": every,
    }
    for name, value in leaves({"state_dict": weights, "optimizer": state["optimizer"]["state"]}):
        if isinstance(value, torch.Tensor) and not value.isfinite().all():
            raise FloatingPointError(f"{name} is not finite after step {step}")
    return state


def restore(
    path: Path,
    state: Any,
    cfg: CfgNode,
    model: nn.Module,
    optimizer: Optimizer,
    fingerprint: str,
) -> int:
    """Take over the state of this very run and return the number of steps that it has done.

    Raises InputError where something is missing, or where it belongs to another recipe or other
    images. Other versions of the libraries are warned about.
    """
    _check_entries(path, state)
    try:
        saved = CfgNode.load_cfg(state["config"])
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{str(path)!r} holds no readable recipe: {error}") from error
    older = {"DATA.PIPELINE": "reference"}  # before the key, all views were made so
    before = dict(leaves(default_cfg())) | older | dict(leaves(saved))
    refuse_another_recipe(path.parent.name, before, cfg, NOT_PART_OF_THE_RECIPE)
    for name, wanted in (("arch", cfg.MODEL.ARCH), ("method", cfg.METHOD)):
        if state[name] != wanted:
            raise InputError(f"{str(path)!r} is of the {name} {state[name]!r}, not {wanted!r}")
    if state["data"] != fingerprint:
        raise InputError(
            f"the images of {cfg.DATA.ROOT!r} are not those that {str(path)!r} was trained on: "
            "restore them, or start a new run in another OUTPUT_DIR"
        )
    weights = {name.removeprefix(PREFIX): value for name, value in state["state_dict"].items()}
    try:
        _check_weights(weights, model)
        model.load_state_dict(weights)
        _check_optimizer(state["optimizer"], optimizer)
        optimizer.load_state_dict(state["optimizer"])
        if len(state["running_statistics"]) == world_size():
            _set_running_statistics(model, state["running_statistics"][rank()])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{str(path)!r} does not fit the model: {error}") from error
    _tell_differences(path, state)
    return state["step"]


def _running_statistics(model: nn.Module) -> torch.Tensor:
    """All running means and variances of this process, float F."""
    return torch.cat([buffer.flatten() for buffer in _statistics_buffers(model)])


def _set_running_statistics(model: nn.Module, values: torch.Tensor) -> None:
    buffers = _statistics_buffers(model)
    parts = values.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def _statistics_buffers(model: nn.Module) -> list[torch.Tensor]:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]  # type: ignore[misc]


def _check_entries(path: Path, state: Any) -> None:
    for name, kind in ENTRIES.items():
        if not isinstance(state, dict) or not isinstance(state.get(name), kind):
            raise InputError(
                f"{str(path)!r} is not a checkpoint to resume from: it has no entry {name!r}"
            )


def _check_weights(saved: dict[str, Any], model: nn.Module) -> None:
    """ValueError also for a missing ``num_batches_tracked``, which torch makes 0 without a word."""
    for name in model.state_dict().keys() ^ saved.keys():
        raise ValueError(f"{name} is {'too much' if name in saved else 'missing'}")


def _check_optimizer(saved: dict[str, Any], optimizer: Optimizer) -> None:
    """ValueError for what torch takes without a word: other parameters, a missing momentum."""
    for before, group in zip(
        saved["param_groups"], optimizer.state_dict()["param_groups"], strict=True
    ):
        if before.keys() != group.keys() or before["param_names"] != group["param_names"]:
            raise ValueError("its optimizer has other settings or parameters")
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        momentum = saved["state"].get(place, {}).get("momentum_buffer")
        if optimizer.defaults["momentum"] and getattr(momentum, "shape", 0) != parameter.shape:
            raise ValueError(f"its optimizer has no momentum for {name}")


def _tell_differences(path: Path, state: dict[str, Any]) -> None:
    """What may change the last bits of the numbers, though not the recipe."""
    now = versions()
    for name in sorted(now.keys() | state["versions"].keys()):
        before, here = state["versions"].get(name, "absent"), now.get(name, "absent")
        if before != here:
            log.warning(
                "%s was written with %s %s, this is %s: numbers may differ in the last digits",
                *(path.name, name, before, here),
            )
    processes = len(state["running_statistics"])
    if processes != world_size():
        log.info(
            "%s is from %d process(es), this run has %d: equal to rounding, not bit for bit",
            *(path.name, processes, world_size()),
        )
