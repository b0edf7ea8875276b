"""Optimiser and learning rate of the embedded engine against obvious references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fvcore.common.config import CfgNode
from torch import nn

from runtime.errors import InputError
from transfer.engines.embedded.solver import build_optimizer, lr_factor
from transfer.recipe.defaults import default_cfg
from transfer.recipe.load import check_honoured

SCHEDULE = ("SOLVER.MAX_ITER", 60, "SOLVER.WARMUP_ITERS", 10, "SOLVER.STEPS", (30, 50))


def recipe(*overrides: Any) -> CfgNode:
    cfg = default_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.1, *SCHEDULE, *overrides])
    return cfg


def factors(cfg: CfgNode) -> list[float]:
    schedule = lr_factor(cfg)
    return [schedule(i / cfg.SOLVER.MAX_ITER) for i in range(cfg.SOLVER.MAX_ITER)]


def test_steps_after_a_linear_warm_up() -> None:
    expected = [0.001 + 0.999 * i / 10 for i in range(10)]
    expected += [1.0] * 20 + [0.1] * 20 + [0.01] * 10
    assert factors(recipe()) == pytest.approx(expected, rel=1e-12)


def test_constant_warm_up() -> None:
    values = factors(recipe("SOLVER.WARMUP_METHOD", "constant", "SOLVER.WARMUP_FACTOR", 0.25))
    assert values[:12] == pytest.approx([0.25] * 10 + [1.0] * 2)


def test_cosine_meets_its_warm_up_and_ends_at_base_lr_end() -> None:
    cfg = recipe("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 0.01)

    def cosine(t: float) -> float:
        return 0.1 + 0.9 * (1 + math.cos(math.pi * t)) / 2

    start, end = 0.001, cosine(10 / 60)
    expected = [start + (end - start) * i / 10 for i in range(10)]
    expected += [cosine(i / 60) for i in range(10, 60)]
    assert factors(cfg) == pytest.approx(expected, rel=1e-9)
    cfg.SOLVER.RESCALE_INTERVAL = True  # the whole cosine after the warm-up
    expected = [start + (1 - start) * i / 10 for i in range(10)]
    expected += [cosine((i - 10) / 50) for i in range(10, 60)]
    assert factors(cfg) == pytest.approx(expected, rel=1e-9)


def test_fixed_number_of_decays() -> None:
    name = ("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR")
    values = factors(recipe(*name, "SOLVER.NUM_DECAYS", 2, "SOLVER.WARMUP_ITERS", 0))
    assert values == pytest.approx([1.0] * 20 + [0.1] * 20 + [0.01] * 20)
    assert lr_factor(recipe(*name))(1.0) == pytest.approx(0.001)  # fvcore's fails at the end


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_each_gradient_is_clipped_by_itself(kind: str) -> None:
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind)
    cfg = recipe(*clip, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5, "SOLVER.WEIGHT_DECAY", 0.0)
    model = nn.Linear(3, 2)
    before = [p.detach().clone() for p in model.parameters()]
    gradients = [torch.tensor([[3.0, -4.0, 0.1], [0, 0, 0]]), torch.tensor([0.1, -0.2])]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    build_optimizer(cfg, model).step()
    expected = []
    for gradient in gradients:
        norm = gradient.norm().item()
        small = gradient * min(1.0, 0.5 / norm) if kind == "norm" else gradient.clamp(-0.5, 0.5)
        expected.append(small)
    for old, new, gradient in zip(before, model.parameters(), expected, strict=True):
        torch.testing.assert_close((old - new) / 0.1, gradient, rtol=1e-4, atol=1e-5)


def test_nesterov_momentum() -> None:
    cfg = recipe("SOLVER.NESTEROV", True, "SOLVER.WEIGHT_DECAY", 0.0)
    model = nn.Linear(1, 1, bias=False)
    start = model.weight.item()
    optimizer = build_optimizer(cfg, model)
    for gradient in (1.0, 2.0):
        model.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
    # velocity 1, then 0.9 + 2; each step goes gradient + 0.9 velocity
    assert start - model.weight.item() == pytest.approx(0.1 * (1 + 0.9 + 2 + 0.9 * 2.9), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"), "'WarmupPolyLR' is unknown: choose from"),
        (("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"), "choose from 'value', 'norm'"),
        (
            ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 0.2),
            "BASE_LR_END 0.2 must be from 0 to SOLVER.BASE_LR 0.1",
        ),
        (
            ("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.NUM_DECAYS", 0),
            "NUM_DECAYS 0",
        ),
        (("SOLVER.STEPS", (50, 30)), r"STEPS \(50, 30\) must rise"),
        (("SOLVER.STEPS", (30, 60)), "a step at MAX_ITER 60 itself"),
        (
            ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0),
            "CLIP_VALUE 0.0 must be more than 0",
        ),
        (("SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0), "NESTEROV needs SOLVER.MOMENTUM"),
    ],
)
def test_what_cannot_be_trained_is_refused(overrides: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_honoured(recipe(*overrides))
