"""Lengths and rates in epochs and in steps, and another batch for a recipe."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import ROOT
from fvcore.common.config import CfgNode

from pretrain import schedule
from pretrain.config import load_cfg
from pretrain.scaling import settle_batch
from runtime.errors import InputError

CONFIGS = ROOT / "configs"
IMAGENET = 1_281_167


def solver(name: str, *overrides: str) -> CfgNode:
    return load_cfg(str(CONFIGS / f"{name}.yaml"), overrides).SOLVER


def test_imagenet_runs_are_as_long_as_the_papers() -> None:
    per_epoch = IMAGENET // 256
    assert schedule.total_steps(solver("moco_v1_R50_200ep"), per_epoch) == 1_000_800
    assert schedule.total_steps(solver("moco_v2_R50_800ep"), per_epoch) == 800 * 5004
    assert schedule.total_steps(solver("moco_v1_R50_IG1B"), 940_000_000 // 1024) == 1_250_000


@pytest.mark.parametrize("epoch", [0, 1, 119, 120, 159, 160, 199])
def test_rates_of_v1_and_v2_are_the_official_ones(epoch: int) -> None:
    """The official adjust_learning_rate, written out; one rate through an epoch."""
    v1 = 0.03
    for milestone in (120, 160):
        v1 *= 0.1 if epoch >= milestone else 1.0
    v2 = 0.03 * 0.5 * (1.0 + math.cos(math.pi * epoch / 200))
    for step in (epoch * 10, epoch * 10 + 9):
        assert schedule.rate(solver("moco_v1_R50_200ep"), step, 10) == pytest.approx(v1)
        assert schedule.rate(solver("moco_v2_R50_200ep"), step, 10) == pytest.approx(v2)


def test_rate_on_a_billion_images_counts_steps() -> None:
    ig = solver("moco_v1_R50_IG1B")
    rates = [schedule.rate(ig, step, 7) for step in (0, 62_499, 62_500, 125_000, 1_249_999)]
    assert rates == pytest.approx([0.12, 0.12, 0.12 * 0.9, 0.12 * 0.81, 0.12 * 0.9**19])


def test_other_schedules_in_steps() -> None:
    steps = ("SOLVER.MAX_STEPS", "100", "SOLVER.MILESTONES", "[50, 80]")
    v1 = solver("moco_v1_R50_200ep", *steps)
    assert schedule.rate(v1, 49, 3) == pytest.approx(0.03)
    assert schedule.rate(v1, 50, 3) == pytest.approx(0.003)
    v2 = solver("moco_v2_R50_200ep", *steps, "SOLVER.WARMUP_STEPS", "4")
    assert schedule.rate(v2, 50, 3) == pytest.approx(0.015)
    assert schedule.rate(v2, 0, 3) == pytest.approx(0.03 / 4)


def settled(
    name: str, batch: int | None, *overrides: str
) -> tuple[CfgNode, list[str], dict[str, object]]:
    """The recipe after --batch, what was told, and the keys that changed."""
    path = str(CONFIGS / f"{name}.yaml")
    cfg, recipe, before = (load_cfg(path, o) for o in (overrides, [], overrides))
    lines = settle_batch(cfg, recipe, overrides[::2], batch)
    changed = {k: v for k, v in cfg.SOLVER.items() if v != before.SOLVER[k]}
    assert cfg.MODEL == before.MODEL
    return cfg, lines, changed


def test_batch_option_scales_rate_and_warmup_and_says_so() -> None:
    _, lines, changed = settled("moco_v2_R50_small", 64)
    assert changed == {"BATCH_SIZE": 64, "BASE_LR": 0.0075, "WARMUP_STEPS": 800}
    assert lines[:3] == [
        "--batch 64: SOLVER.BATCH_SIZE 256 -> 64",
        "--batch 64: SOLVER.BASE_LR 0.03 -> 0.0075",
        "--batch 64: SOLVER.WARMUP_STEPS 200 -> 800",
    ]
    assert lines[3].startswith("--batch 64 leaves as they are: SOLVER.EPOCHS 800, ")
    assert "MODEL.QUEUE_SIZE 4096" in lines[3]
    assert "MODEL.BN_GROUP_SIZE 32" in lines[3]
    assert len(lines) == 4


def test_official_advice_for_four_gpus_is_the_rule() -> None:
    """The official README: --lr 0.015 --batch-size 128 with 4 GPUs."""
    cfg, _, _ = settled("moco_v1_R50_200ep", 128)
    assert (cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.BASE_LR, cfg.SOLVER.EPOCHS) == (128, 0.015, 200)


def test_batch_option_keeps_the_number_of_images_where_steps_count() -> None:
    _, _, changed = settled("moco_v1_R50_IG1B", 256)
    assert changed == {
        "BATCH_SIZE": 256,
        "BASE_LR": 0.03,
        "MAX_STEPS": 5_000_000,
        "DECAY_PERIOD": 250_000,
    }


def test_what_the_user_has_set_stays() -> None:
    cfg, lines, _ = settled("moco_v2_R50_200ep", 512, "SOLVER.BASE_LR", "0.05")
    assert (cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.BASE_LR) == (512, 0.05)
    assert "--batch 512: SOLVER.BASE_LR stays 0.05, as you have set it" in lines


@pytest.mark.parametrize("batch", [0, -8])
def test_batch_must_be_positive(batch: int) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        settled("moco_v2_R50_200ep", batch)


def test_two_choices_of_the_batch_are_refused() -> None:
    with pytest.raises(InputError, match="both choose the batch"):
        settled("moco_v2_R50_200ep", 64, "SOLVER.BATCH_SIZE", "64")


def test_batch_alone_is_warned_of() -> None:
    _, lines, changed = settled("moco_v2_R50_200ep", None, "SOLVER.BATCH_SIZE", "64")
    assert changed == {}
    assert lines == [
        "warning: SOLVER.BATCH_SIZE 256 -> 64 with SOLVER.BASE_LR 0.03: the recipe's rate is "
        "0.0075 at this batch; --batch 64 sets both"
    ]
    both = ("SOLVER.BATCH_SIZE", "64", "SOLVER.BASE_LR", "0.0075")
    assert settled("moco_v2_R50_200ep", None, *both)[1] == []
    assert settled("moco_v2_R50_200ep", None, "SOLVER.BASE_LR", "0.1")[1] == []
    lines = settled("moco_v1_R50_IG1B", None, "SOLVER.BATCH_SIZE", "256")[1]
    assert [("BASE_LR" in line, "are 5000000 steps" in line) for line in lines] == [
        (True, False),
        (False, True),
    ]


def test_milestones_in_steps_follow_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("SOLVER: {MAX_STEPS: 1000, MILESTONES: [600, 801]}\n")
    cfg, recipe = load_cfg(str(path), []), load_cfg(str(path), [])
    settle_batch(cfg, recipe, [], 512)
    assert (cfg.SOLVER.MAX_STEPS, cfg.SOLVER.MILESTONES) == (500, [300, 400])
