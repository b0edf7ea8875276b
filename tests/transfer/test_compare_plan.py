from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compare_synthetic import make_results, write_run

from runtime.errors import InputError
from runtime.files import sha256
from transfer.compare.arms import Arm
from transfer.compare.plan import Cell, finished, make_plan, run_missing

HASH = "c0ffee" * 10 + "0123"


class Runs:
    """A ``run_one`` that writes results and remembers its calls; it may be interrupted."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, arm: Arm, seed: int, folder: Path) -> dict[str, Any]:
        if len(self.calls) == self.interrupt_at:
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text('{"iteration": 19, "total_loss": 1.0}\n')
            raise KeyboardInterrupt
        self.calls.append((arm.name, seed))
        weights = None if arm.weights is None else {"path": str(arm.weights)}
        if weights is not None:
            weights["sha256"] = sha256(arm.weights)
        results = make_results(arm.name, seed, 50.0 + seed, recipe_hash=HASH, weights=weights)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))
        return results


@pytest.fixture
def arms(tmp_path: Path) -> list[Arm]:
    weights = tmp_path / "moco.pkl"
    weights.write_bytes(b"moco")
    return [Arm("random", None), Arm("moco", weights)]


def plan_of(tmp_path: Path, arms: list[Arm], **changes: Any) -> tuple[Cell, ...]:
    settings = {"recipe": "transfer/voc.yaml", "recipe_hash": HASH, "engine": "embedded"}
    return make_plan(tmp_path / "out", arms, [1, 2, 3], **{**settings, **changes})


def test_seeds_are_interleaved_over_arms(tmp_path: Path, arms: list[Arm]):
    plan = plan_of(tmp_path, arms)
    order = [(cell.arm.name, cell.seed) for cell in plan]
    assert order == [
        *[("random", 1), ("moco", 1), ("random", 2), ("moco", 2), ("random", 3), ("moco", 3)]
    ]
    assert plan[3].folder == tmp_path / "out" / "moco" / "seed2"


def test_interrupted_grid_resumes_where_it_stopped(tmp_path: Path, arms: list[Arm]):
    plan = plan_of(tmp_path, arms)
    first = Runs(interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        run_missing(plan, first)
    assert first.calls == [("random", 1), ("moco", 1), ("random", 2)]

    second = Runs()
    results = run_missing(plan_of(tmp_path, arms), second)
    assert second.calls == [("moco", 2), ("random", 3), ("moco", 3)]
    assert [(run["arm"], run["seed"]) for run in results] == first.calls + second.calls

    third = Runs()
    assert run_missing(plan_of(tmp_path, arms), third) == results
    assert third.calls == []


@pytest.mark.parametrize("interrupted", [False, True])
def test_folder_of_another_recipe_is_refused(tmp_path: Path, arms: list[Arm], interrupted: bool):
    """Also a run that has only begun: continuing it would ignore this recipe."""
    runs = Runs(interrupt_at=0 if interrupted else None)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            run_missing(plan_of(tmp_path, arms), runs)
    else:
        run_missing(plan_of(tmp_path, arms), runs)
    other = plan_of(tmp_path, arms, recipe="transfer/coco.yaml", recipe_hash="beef" * 16)
    again = Runs()
    with pytest.raises(InputError) as error:
        run_missing(other, again)
    for part in (HASH[:12], "beefbeefbeef", "transfer/coco.yaml", "seed1", "remove"):
        assert part in str(error.value)
    assert again.calls == []


def test_folder_of_other_weights_is_refused(tmp_path: Path, arms: list[Arm]):
    run_missing(plan_of(tmp_path, arms), Runs())
    before = sha256(arms[1].weights)[:12]
    arms[1].weights.write_bytes(b"moco, another epoch")
    with pytest.raises(InputError) as error:
        run_missing(plan_of(tmp_path, arms), Runs())
    assert before in str(error.value)
    assert sha256(arms[1].weights)[:12] in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"engine": "detectron2"}, "engine 'detectron2' there and 'embedded' here"),
        ({"seed": 7}, "seed 7 there and 1 here"),
        ({"arm": "supervised"}, "arm 'supervised' there and 'random' here"),
        ({"weights": {"path": "x.pkl", "sha256": "ab" * 32}}, "there and none \\(random\\) here"),
    ],
)
def test_any_other_identity_is_refused(
    tmp_path: Path, arms: list[Arm], change: dict[str, Any], named: str
):
    plan = plan_of(tmp_path, arms)
    there = {**make_results("random", 1, 40.0, recipe_hash=HASH), **change}
    write_run(plan[0].folder, there)
    with pytest.raises(InputError, match=named):
        finished(plan[0])


def test_unknown_and_damaged_folders_are_refused(tmp_path: Path, arms: list[Arm]):
    plan = plan_of(tmp_path, arms)
    plan[0].folder.mkdir(parents=True)
    assert finished(plan[0]) is None
    (plan[0].folder / "metrics.json").write_text("")
    with pytest.raises(InputError, match="did not start"):
        finished(plan[0])
    (plan[0].folder / "results.json").write_text('{"format": 1, "arm"')
    with pytest.raises(InputError, match="not readable JSON"):
        finished(plan[0])
    (plan[0].folder / "results.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="format 1"):
        finished(plan[0])
    incomplete = make_results("random", 1, 40.0)
    del incomplete["weights"]
    (plan[0].folder / "results.json").write_text(json.dumps(incomplete))
    with pytest.raises(InputError, match="'weights' is missing"):
        finished(plan[0])


def test_run_without_results_is_a_failure(tmp_path: Path, arms: list[Arm]):
    with pytest.raises(RuntimeError, match="without writing"):
        run_missing(plan_of(tmp_path, arms), lambda arm, seed, folder: {})


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1, 2]])
def test_wrong_seeds_are_refused(tmp_path: Path, arms: list[Arm], seeds: list[int]):
    with pytest.raises(InputError, match="seeds"):
        make_plan(tmp_path, arms, seeds, recipe="r", recipe_hash=HASH, engine="embedded")
