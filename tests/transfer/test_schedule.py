"""Schedules: epochs of the data, other batches, and what is refused because it is half a change."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import tiny
import yaml
from conftest import ROOT

from runtime.errors import InputError
from transfer.engines.embedded.engine import EmbeddedEngine
from transfer.run import resolve as resolve_module
from transfer.run.job import Job, Options
from transfer.run.resolve import Resolved, resolve

SOLVER = {
    "IMS_PER_BATCH": 16,
    "BASE_LR": 0.02,
    "STEPS": [18000, 22000],
    "MAX_ITER": 24000,
    "WARMUP_ITERS": 100,
    "CHECKPOINT_PERIOD": 5000,
}


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "voc"
    tiny.write_voc(folder, train=12, test=2)
    return folder


def run(voc: Path, tmp_path: Path, recipe: dict, *overrides: str, **options: object) -> Resolved:
    path = tmp_path / "recipe.yaml"
    model = {"RESNETS": {"NORM": "BN"}, "FPN": {"NORM": "BN"}}
    base = {"_BASE_": str(ROOT / "transfer/Base_FPN.yaml"), "MODEL": model}
    path.write_text(yaml.safe_dump(base | recipe))
    job = Job(
        recipe=str(path),
        weights="random",
        overrides=overrides,
        train_data=[f"voc:{voc}:train"],
        test_data=[f"voc:{voc}:test"],
        seed=0,
        options=Options(**options),
    )
    return resolve(EmbeddedEngine(), job, None)


def lengths(resolved: Resolved) -> tuple[object, ...]:
    solver = resolved.cfg.SOLVER
    return (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.STEPS)


def test_a_batch_scales_the_whole_schedule(voc: Path, tmp_path: Path) -> None:
    recipe = {"SOLVER": SOLVER, "TEST": {"EVAL_PERIOD": 8000}}
    halved = run(voc, tmp_path, recipe, batch=8)
    assert lengths(halved) == (8, 0.01, 48000, (36000, 44000))
    solver = halved.cfg.SOLVER
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == (200, 10000)
    assert halved.cfg.TEST.EVAL_PERIOD == 16000
    assert "SOLVER.MAX_ITER: 24000 -> 48000 (batch 16 -> 8)" in halved.deviations
    assert halved.recipe_hash != run(voc, tmp_path, recipe).recipe_hash
    assert run(voc, tmp_path, recipe, batch=16).deviations == ()


@pytest.mark.parametrize("world", [1, 2, 4, 16])
def test_scaling_is_detectron2s(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    """The formulas of DefaultTrainer.auto_scale_workers, restated; compared with it below."""
    monkeypatch.setattr(resolve_module, "world_size", lambda: world)
    recipe = {"SOLVER": SOLVER}
    by_option = run(voc, tmp_path, recipe, scale_to_gpus=True)
    by_key = run(voc, tmp_path, {"SOLVER": SOLVER | {"REFERENCE_WORLD_SIZE": 8}})
    scale = world / 8
    expected = (
        round(16 * scale),
        0.02 * scale,
        round(24000 / scale),
        tuple(round(step / scale) for step in (18000, 22000)),
    )
    assert lengths(by_option) == lengths(by_key) == expected
    assert by_key.cfg.SOLVER.REFERENCE_WORLD_SIZE == 0  # so that no trainer scales it again
    assert by_option.recipe_hash == by_key.recipe_hash


@pytest.mark.detectron2
@pytest.mark.parametrize("world", [1, 3, 16])
def test_scaling_equals_auto_scale_workers(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultTrainer

    monkeypatch.setattr(resolve_module, "world_size", lambda: world)
    solver = SOLVER | {"REFERENCE_WORLD_SIZE": 8}
    ours = run(voc, tmp_path, {"SOLVER": solver, "TEST": {"EVAL_PERIOD": 7000}}).cfg
    theirs = get_cfg()
    for key, value in solver.items():
        theirs.SOLVER[key] = tuple(value) if isinstance(value, list) else value
    theirs.TEST.EVAL_PERIOD = 7000
    theirs = DefaultTrainer.auto_scale_workers(theirs, world)
    for key in solver:
        if key != "REFERENCE_WORLD_SIZE":
            assert ours.SOLVER[key] == theirs.SOLVER[key], key
    assert ours.TEST.EVAL_PERIOD == theirs.TEST.EVAL_PERIOD
    assert DefaultTrainer.auto_scale_workers(ours, world) is ours


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (  # field-notes, trap 5: batch and rate halved, iterations not doubled
            ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.01"],
            "24000 iterations are 48000 of this batch",
        ),
        (["SOLVER.IMS_PER_BATCH", "8"], "the recipe's rate is 0.01 at this batch"),
        (
            ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_ITER", "48000"],
            "the recipe's rate is 0.01 at this batch",
        ),
        (["SOLVER.MAX_ITER", "48000"], "SOLVER.STEPS stays (18000, 22000)"),
    ],
)
def test_partial_changes_are_refused(
    voc: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    recipe = {"SOLVER": SOLVER}
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        run(voc, tmp_path, recipe, *overrides)
    assert "--batch N scales the whole schedule, --allow-deviation" in str(caught.value)
    allowed = run(voc, tmp_path, recipe, *overrides, allow_deviation=True)
    named = {line.partition(":")[0] for line in allowed.deviations}
    assert set(overrides[::2]) == named


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.01", "SOLVER.MAX_ITER", "48000"], {}),
        (["SOLVER.MAX_ITER", "48000", "SOLVER.STEPS", "(36000, 44000)"], {}),
        (["SOLVER.BASE_LR", "0.05"], {}),  # a search over the rate is no half schedule
    ],
)
def test_whole_changes_run_and_are_deviations(
    voc: Path, tmp_path: Path, overrides: list[str], options: dict
) -> None:
    resolved = run(voc, tmp_path, {"SOLVER": SOLVER}, *overrides, **options)
    assert {line.partition(":")[0] for line in resolved.deviations} == set(overrides[::2])


def test_a_short_trial_runs_with_a_warning(
    voc: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = {"SOLVER": SOLVER}
    with caplog.at_level(logging.WARNING, "moco"):
        resolved = run(voc, tmp_path, recipe, "SOLVER.MAX_ITER", "20")
    assert "a trial: 20 iterations instead of 24000" in caplog.text
    assert resolved.deviations == ("SOLVER.MAX_ITER: 24000 -> 20",)
    scaled = run(voc, tmp_path, recipe, "SOLVER.MAX_ITER", "20", batch=2)
    assert lengths(scaled) == (2, 0.0025, 20, (144000, 176000))


EPOCHS = {
    "SOLVER": {"IMS_PER_BATCH": 2, "BASE_LR": 0.01},
    "SCHEDULE": {"EPOCHS": 40, "STEPS": [30, 37.5], "WARMUP_EPOCHS": 2},
}


def test_epochs_become_iterations_of_the_users_data(
    voc: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "moco"):
        resolved = run(voc, tmp_path, EPOCHS)
    assert lengths(resolved) == (2, 0.01, 240, (180, 225))  # 12 images, 6 iterations an epoch
    assert resolved.cfg.SOLVER.WARMUP_ITERS == 12
    assert resolved.deviations == ()
    assert "SCHEDULE" not in resolved.cfg
    assert "40 epochs of 12 images are 240 iterations of 2 images" in caplog.text
    iterations = SOLVER | {
        "IMS_PER_BATCH": 2,
        "BASE_LR": 0.01,
        "MAX_ITER": 240,
        "STEPS": [180, 225],
        "WARMUP_ITERS": 12,
    }
    assert run(voc, tmp_path, {"SOLVER": iterations}).recipe_hash == resolved.recipe_hash


def test_epochs_under_overrides(voc: Path, tmp_path: Path) -> None:
    shorter = run(voc, tmp_path, EPOCHS, "SCHEDULE.EPOCHS", "38")
    assert lengths(shorter) == (2, 0.01, 228, (180, 225))
    assert shorter.deviations == ("SOLVER.MAX_ITER: 240 -> 228 (38 epochs of 12 images)",)
    batch = run(voc, tmp_path, EPOCHS, batch=4)
    assert lengths(batch) == (4, 0.02, 120, (90, 112))
    trial = run(voc, tmp_path, EPOCHS, "SOLVER.MAX_ITER", "8")
    assert lengths(trial) == (2, 0.01, 8, (6,))  # the whole schedule in 8 iterations
    with pytest.raises(InputError, match=r"rate is 0\.02 at this batch"):
        run(voc, tmp_path, EPOCHS, "SOLVER.IMS_PER_BATCH", "4")


@pytest.mark.parametrize(
    ("recipe", "overrides", "options", "message"),
    [
        (EPOCHS | {"SOLVER": SOLVER}, (), {}, "in epochs and SOLVER.MAX_ITER in iterations"),
        ({"SCHEDULE": {"STEPS": [3]}}, (), {}, "SCHEDULE has no EPOCHS"),
        ({"SCHEDULE": {"EPOCHS": 3, "STEPS": [3]}}, (), {}, "must lie before EPOCHS 3"),
        ({"SCHEDULE": {"EPOCHS": 3, "STEPS": [2, 1]}}, (), {}, "must be rising"),
        ({"SCHEDULE": {"EPOCHS": 3, "STEPS": ["a"]}}, (), {}, "must be rising"),
        ({"SCHEDULE": {"EPOCHS": -3}}, (), {}, "EPOCHS -3"),
        ({"SCHEDULE": {"EPOCHS": 3, "WARMUP_EPOCHS": 4}}, (), {}, "must lie before"),
        ({"SCHEDULE": {"EPOCH": 3}}, (), {}, "unknown key 'SCHEDULE.EPOCH'"),
        ({"SOLVER": SOLVER}, (), {"batch": 0}, "--batch 0 must be at least 1"),
        ({"SOLVER": SOLVER}, (), {"batch": 8, "scale_to_gpus": True}, "give one of them"),
        (
            {"SOLVER": SOLVER},
            ("SOLVER.IMS_PER_BATCH", "8"),
            {"batch": 8},
            "--batch and SOLVER.IMS_PER_BATCH both choose the batch",
        ),
        (
            {"SOLVER": SOLVER | {"IMS_PER_BATCH": 12}},
            (),
            {"scale_to_gpus": True},
            "12 is not the recipe's batch for 8 GPUs",
        ),
    ],
)
def test_refusals(
    voc: Path, tmp_path: Path, recipe: dict, overrides: tuple, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        run(voc, tmp_path, recipe, *overrides, **options)
    assert "\n" not in str(caught.value)
