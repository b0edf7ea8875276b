"""Optimiser, learning rate and twenty steps against Detectron2's: the same bits, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_model as build_reference
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as build_reference_optimizer
from detectron2.utils.events import EventStorage
from fvcore.common.config import CfgNode
from parity_models import C4_MOCO, FPN, MASK, NARROW, RECIPES, batch, recipe, spread_weights
from parity_page import PAGE
from torch import nn

from transfer.engines.detectron2 import heads  # noqa: F401  (registers MoCo's head)
from transfer.engines.detectron2.convert import to_instances
from transfer.engines.embedded import build_model
from transfer.engines.embedded.solver import build_optimizer, lr_factor
from transfer.recipe.defaults import default_cfg

pytestmark = pytest.mark.detectron2

SCHEDULES = {
    "steps": {},
    "constant warm-up": {"SOLVER.WARMUP_METHOD": "constant", "SOLVER.WARMUP_FACTOR": 0.3},
    "steps beyond the end": {"SOLVER.STEPS": (40, 200)},
    "warm-up over a step": {"SOLVER.WARMUP_ITERS": 60},
    "only warm-up": {"SOLVER.WARMUP_ITERS": 1000},
    "steps, rescaled": {"SOLVER.RESCALE_INTERVAL": True},
    "cosine": {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER.BASE_LR_END": 0.001},
    "cosine, rescaled": {
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.RESCALE_INTERVAL": True,
    },
    "fixed gamma": {"SOLVER.LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR"},
    "fixed gamma, rescaled": {
        "SOLVER.LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR",
        "SOLVER.NUM_DECAYS": 5,
        "SOLVER.RESCALE_INTERVAL": True,
        "SOLVER.WARMUP_ITERS": 0,
    },
}
CLIP = {"SOLVER.CLIP_GRADIENTS.ENABLED": True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.02}
SOLVERS: dict[str, dict[str, Any]] = {
    "C4-ExtraNorm": {},
    "FPN-Mask": {"SOLVER.NESTEROV": True, "SOLVER.BIAS_LR_FACTOR": 2.0},
    "Keypoint": {**CLIP, **SCHEDULES["cosine"], "SOLVER.WEIGHT_DECAY_BIAS": 0.0},
    "GN-4conv1fc": {**CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm", **SCHEDULES["fixed gamma"]},
}
SMALLER = {
    **NARROW,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [32, 32],
    "MODEL.BACKBONE.FREEZE_AT": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "C4-ExtraNorm": {**C4_MOCO, **SMALLER},
    "FPN-Mask": {**FPN, **MASK, **SMALLER, "MODEL.RESNETS.NORM": "BN", "MODEL.FPN.NORM": "BN"},
    "Keypoint": {**FPN, "MODEL.KEYPOINT_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 1, **SMALLER},
    "GN-4conv1fc": {
        **RECIPES["R18-FPN-GN-4conv1fc-giou-agnostic"],
        "MODEL.RESNETS.DEPTH": 50,
        **SMALLER,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
    },
}


def merged(cfg: CfgNode, values: dict[str, Any]) -> CfgNode:
    for key, value in values.items():
        cfg.merge_from_list([key, value])
    return cfg


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_of_every_iteration(name: str) -> None:
    values = {
        "SOLVER.MAX_ITER": 100,
        "SOLVER.STEPS": (40, 80),
        "SOLVER.WARMUP_ITERS": 13,
        "SOLVER.BASE_LR": 0.02,
        **SCHEDULES[name],
    }
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    scheduler = build_lr_scheduler(merged(get_cfg(), values), optimizer)
    factor = lr_factor(merged(default_cfg(), values))
    for iteration in range(100):
        rates = (0.02 * factor(iteration / 100), optimizer.param_groups[0]["lr"])
        assert PAGE.note("Learning rate", name, "every iteration", *rates) == 0
        assert rates[0] == rates[1]
        optimizer.step()
        if iteration < 99:  # Detectron2's fixed gamma has no value for the end itself
            scheduler.step()


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Name, recipe and model for both engines."""
    monkeypatch.setitem(RECIPES, request.param, MODELS[request.param])
    values = {
        "SOLVER.MAX_ITER": 20,
        "SOLVER.STEPS": (12,),
        "SOLVER.WARMUP_ITERS": 5,
        "SOLVER.BASE_LR": 0.01,
        **SOLVERS[request.param],
    }
    cfg = merged(recipe(request.param, default_cfg()), values)
    reference_cfg = merged(recipe(request.param, get_cfg()), values)
    return request.param, cfg, build_model(cfg), reference_cfg, build_reference(reference_cfg)


def settings(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: {k: v for k, v in group.items() if k not in ("params", "initial_lr")}
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_twenty_steps(pair: Any) -> None:
    """With two samples of which one is at times empty, every tensor stays the same bits."""
    name, cfg, ours, reference_cfg, reference = pair
    spread_weights(ours.train())
    reference.train().load_state_dict(ours.state_dict())
    optimizer = build_optimizer(cfg, ours)
    theirs = build_reference_optimizer(reference_cfg, reference)
    assert settings(ours, optimizer) == settings(reference, theirs)
    assert list(settings(ours, optimizer)) == list(settings(reference, theirs))
    base = [group["lr"] for group in optimizer.param_groups]
    factor, scheduler = lr_factor(cfg), build_lr_scheduler(reference_cfg, theirs)
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    for iteration in range(20):
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * factor(iteration / 20)
        samples = batch(cfg, seed=iteration, empty=1 if iteration % 4 == 1 else None)
        step(ours, samples, iteration, optimizer)
        with EventStorage():
            step(reference, [to_instances(s) for s in samples], iteration, theirs)
        if iteration < 19:
            scheduler.step()
    states = (dict(model.state_dict()) for model in (ours, reference))
    assert PAGE.note("Solver", name, "weights after 20 steps", *states) == 0
    changed = [n for n, p in ours.named_parameters() if not torch.equal(start[n], p)]
    assert len(changed) > 0.9 * len(list(ours.parameters()))
    assert all(p.isfinite().all() for p in ours.parameters())


def step(model: nn.Module, inputs: Any, seed: int, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(seed)
    losses = model(inputs)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
