"""The recipe decides the result, not the hardware: processes and parts change nothing.

In float64. In float32 the same sums in another order differ in the last bit, and 20 steps of BN
over a few values magnify that to 1e-2 in this tiny encoder (docs/parity.md).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import run_processes
from tiny_training import global_batch, new_method, tiny_cfg, train

STEPS = 20
RECIPE = ("VIEWS.CROP_SIZE", 40, "SOLVER.BASE_LR", 0.03)


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    return train(tiny_cfg(*RECIPE), STEPS, torch.float64)


def assert_same(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    assert ours["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert ours["accuracies"] == pytest.approx(expected["accuracies"], abs=1e-9)
    for name, value in expected["state"].items():  # parameters, queue and running statistics
        torch.testing.assert_close(ours["state"][name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_several_processes_equal_one(one_process: dict[str, Any], world: int) -> None:
    ranks = run_processes(train, world, tiny_cfg(*RECIPE), STEPS, torch.float64)
    assert_same(ranks[0], one_process)
    for rank in ranks[1:]:
        assert all(torch.equal(rank["state"][n], v) for n, v in ranks[0]["state"].items())


@pytest.mark.parametrize("parts", [2, 4])
def test_a_step_in_parts_equals_the_whole_batch(one_process: dict[str, Any], parts: int) -> None:
    ours = train(tiny_cfg(*RECIPE, "SOLVER.ACCUMULATE", parts), STEPS, torch.float64)
    assert_same(ours, one_process)


def test_two_processes_in_parts(one_process: dict[str, Any]) -> None:
    cfg = tiny_cfg(*RECIPE, "SOLVER.ACCUMULATE", 2)
    assert_same(run_processes(train, 2, cfg, STEPS, torch.float64)[0], one_process)


def test_resnet18() -> None:
    """At full width; two steps, for they take seconds."""
    recipe = (*RECIPE, "MODEL.ARCH", "resnet18")
    one = train(tiny_cfg(*recipe), 2, torch.float64)
    cfg = tiny_cfg(*recipe, "SOLVER.ACCUMULATE", 2)
    assert_same(run_processes(train, 2, cfg, 2, torch.float64)[0], one)


def test_the_group_size_is_part_of_the_recipe(one_process: dict[str, Any]) -> None:
    """The comparison sees BN: other groups give other losses."""
    other = train(tiny_cfg(*RECIPE, "MODEL.BN_GROUP_SIZE", 8), 3, torch.float64)
    assert other["losses"] != pytest.approx(one_process["losses"][:3], rel=1e-3)


def test_supervised_in_parts_and_in_processes() -> None:
    recipe = (*RECIPE, "METHOD", "supervised")
    one = train(tiny_cfg(*recipe), 5, torch.float64)
    assert_same(train(tiny_cfg(*recipe, "SOLVER.ACCUMULATE", 4), 5, torch.float64), one)
    cfg = tiny_cfg(*recipe, "SOLVER.ACCUMULATE", 2)
    assert_same(run_processes(train, 2, cfg, 5, torch.float64)[0], one)


def test_running_statistics_of_the_first_group() -> None:
    """As the official code keeps them: rank 0's, which hold its own BN group only."""
    recipe = (*RECIPE, "MODEL.RUNNING_STATS", "first")
    one = train(tiny_cfg(*recipe), 2, torch.float64)
    assert_same(train(tiny_cfg(*recipe, "SOLVER.ACCUMULATE", 4), 2, torch.float64), one)
    assert_same(run_processes(train, 2, tiny_cfg(*recipe), 2, torch.float64)[0], one)

    cfg = tiny_cfg(*recipe)
    after = train(cfg, 1)["state"]["encoder_q.bn1.running_mean"]
    view = global_batch(cfg, 0).views[0][: cfg.MODEL.BN_GROUP_SIZE].float() / 255
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    first = new_method(cfg).model.encoder_q.conv1((view - mean) / std).mean((0, 2, 3))
    torch.testing.assert_close(after, 0.1 * first.detach(), rtol=1e-4, atol=1e-6)
