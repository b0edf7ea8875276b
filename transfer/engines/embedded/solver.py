"""Optimiser and learning rate as Detectron2 builds them from SOLVER.*."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn

log = logging.getLogger("moco")

# fvcore takes a moment up to 1e-6 before a step for the step
BEFORE_THE_END = 1 - 2 * ParamScheduler.WHERE_EPSILON

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.SGD:
    """SGD; WEIGHT_DECAY_NORM for norm layers, WEIGHT_DECAY_BIAS and BIAS_LR_FACTOR for biases.

    Parameters with equal settings share a group; groups and parameters in order of appearance.
    CLIP_GRADIENTS clips each parameter's gradient before a step.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                groups.setdefault(_settings(cfg, module, name), []).append(parameter)
    optimizer = torch.optim.SGD(
        [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()],
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        foreach=True,
    )
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        optimizer.register_step_pre_hook(_clip_gradients(cfg))
    return optimizer


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


def _clip_gradients(cfg: CfgNode) -> Callable[[torch.optim.Optimizer, Any, Any], None]:
    """A hook before each step: the gradient of every parameter is clipped by itself.

    Detectron2 has no clipping by the norm over the whole model, either.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS

    def before_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if clip.CLIP_TYPE == "value":
                    nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)
                else:
                    nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)

    return before_step


def lr_factor(cfg: CfgNode) -> ParamScheduler:
    """What the rates are multiplied with, a function of iteration / MAX_ITER.

    The schedule follows a warm-up that rises to the value that it meets. With RESCALE_INTERVAL the
    schedule begins after the warm-up; otherwise it runs from iteration 0, unseen at first.
    """
    solver = cfg.SOLVER
    schedule = SCHEDULES[solver.LR_SCHEDULER_NAME](solver)
    length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    start = solver.WARMUP_FACTOR * schedule(0.0)
    end = schedule(0.0 if solver.RESCALE_INTERVAL else length)
    warmup = (
        LinearParamScheduler(start, end)
        if solver.WARMUP_METHOD == "linear"
        else ConstantParamScheduler(start)
    )
    return CompositeParamScheduler(
        [warmup, schedule],
        lengths=[length, 1 - length],
        interval_scaling=["rescaled", "rescaled" if solver.RESCALE_INTERVAL else "fixed"],
    )


def _steps(solver: CfgNode) -> ParamScheduler:
    """Times GAMMA at each of STEPS up to MAX_ITER."""
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    if len(steps) < len(solver.STEPS):
        log.warning("SOLVER.STEPS beyond MAX_ITER %d have no effect", solver.MAX_ITER)
    return MultiStepParamScheduler(
        [solver.GAMMA**k for k in range(len(steps) + 1)],
        milestones=steps,
        num_updates=solver.MAX_ITER,
    )


def _cosine(solver: CfgNode) -> ParamScheduler:
    """Half a cosine from BASE_LR down to BASE_LR_END."""
    return CosineParamScheduler(1, solver.BASE_LR_END / solver.BASE_LR)


def _equal_steps(solver: CfgNode) -> ParamScheduler:
    """Times GAMMA, NUM_DECAYS times, at equal distances."""
    return _StepWithFixedGamma(
        base_value=1.0,
        gamma=solver.GAMMA,
        num_decays=solver.NUM_DECAYS,
        num_updates=solver.MAX_ITER,
    )


class _StepWithFixedGamma(StepWithFixedGammaParamScheduler):
    """Has a rate for the end itself, too, where fvcore's fails."""

    def __call__(self, where: float) -> float:
        return super().__call__(min(where, BEFORE_THE_END))


SCHEDULES: dict[str, Callable[[CfgNode], ParamScheduler]] = {
    "WarmupMultiStepLR": _steps,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _equal_steps,
}
