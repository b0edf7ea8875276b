"""Optimiser and learning rate as Detectron2 builds them from SOLVER.*."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.SGD:
    """SGD; WEIGHT_DECAY_NORM for norm layers, WEIGHT_DECAY_BIAS and BIAS_LR_FACTOR for biases.

    Parameters with equal settings share a group; groups and parameters in order of appearance.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                groups.setdefault(_settings(cfg, module, name), []).append(parameter)
    return torch.optim.SGD(
        [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()],
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        foreach=True,
    )


def _settings(cfg: CfgNode, module: nn.Module, name: str) -> tuple[float, float]:
    """Learning rate and weight decay of one parameter."""
    solver = cfg.SOLVER
    lr, decay = solver.BASE_LR, solver.WEIGHT_DECAY
    if isinstance(module, NORMS):
        decay = solver.WEIGHT_DECAY_NORM
    if name == "bias":  # Detectron2 lets the rule for biases win over the rule for norms
        lr *= solver.BIAS_LR_FACTOR
        if solver.WEIGHT_DECAY_BIAS is not None:
            decay = solver.WEIGHT_DECAY_BIAS
    return lr, decay


def lr_factor(cfg: CfgNode) -> ParamScheduler:
    """What the rates are multiplied with, a function of iteration / MAX_ITER.

    Steps (those up to MAX_ITER) after a warm-up that rises to the value that it meets.
    """
    solver = cfg.SOLVER
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    schedule = MultiStepParamScheduler(
        [solver.GAMMA**k for k in range(len(steps) + 1)],
        milestones=steps,
        num_updates=solver.MAX_ITER,
    )
    length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    start = solver.WARMUP_FACTOR * schedule(0.0)
    warmup: Any = (
        LinearParamScheduler(start, schedule(length))
        if solver.WARMUP_METHOD == "linear"
        else ConstantParamScheduler(start)
    )
    return CompositeParamScheduler(
        [warmup, schedule], lengths=[length, 1 - length], interval_scaling=["rescaled", "fixed"]
    )
