"""The load report: which tensors came from the file, and how the optimiser trains each part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transfer.engines.embedded.solver import build_optimizer
from transfer.recipe.defaults import default_cfg
from transfer.run.weights import report


class Detector(nn.Module):
    """A backbone stage with norms, a frozen one, and a head without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Conv2d(3, 4, 1)
        self.backbone.stem.requires_grad_(False)
        self.backbone.res2 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


def optimizer_of(model: nn.Module, *overrides: object) -> torch.optim.Optimizer:
    cfg = default_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.02, *overrides])
    return build_optimizer(cfg, model)


@pytest.mark.parametrize(
    ("overrides", "lr", "decay"),
    [
        ((), ("0.02", "0.02"), ("0.0001 (norm 0)", "0.0001")),
        (("SOLVER.WEIGHT_DECAY_NORM", 1e-4), ("0.02", "0.02"), ("0.0001", "0.0001")),
        (
            ("SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.5),
            ("0.02 (bias 0.04, norm bias 0.04)", "0.02 (bias 0.04)"),
            ("0.0001 (bias 0.5, norm 0, norm bias 0.5)", "0.0001 (bias 0.5)"),
        ),
    ],
)
def test_rates_of_each_part(
    overrides: tuple[object, ...], lr: tuple[str, str], decay: tuple[str, str]
) -> None:
    model = Detector()
    parts = {p.module: p for p in report(model, set(), optimizer_of(model, *overrides)).modules}
    stem, stage, head = parts["backbone.stem"], parts["backbone.res2"], parts["head"]
    assert (stem.trainable, stem.frozen, stem.lr, stem.weight_decay) == (0, 2, "", "")
    assert (stage.lr, head.lr) == lr
    assert (stage.weight_decay, head.weight_decay) == decay


def test_rates_are_the_optimiser_s_own_and_not_those_of_the_schedule() -> None:
    model = Detector()
    optimizer = torch.optim.SGD(
        [
            {"params": model.backbone.res2.parameters(), "lr": 0.3, "weight_decay": 0.7},
            {"params": [model.head.weight], "lr": 0.5},
        ],
        lr=0.1,
    )
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.001)
    parts = {p.module: p for p in report(model, set(), optimizer).modules}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0003)
    assert (parts["backbone.res2"].lr, parts["backbone.res2"].weight_decay) == ("0.3", "0.7")
    assert (parts["head"].lr, parts["head"].weight_decay) == ("0.5", "0")
    assert all(p.lr == "" for p in report(model, set()).modules)
