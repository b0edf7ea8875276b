"""Whole runs of both engines with what the solver has beyond the shipped recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from parity_page import PAGE  # noqa: E402
from test_parity_run import final, job, world  # noqa: E402, F401

from transfer.engines.detectron2.engine import Detectron2Engine  # noqa: E402
from transfer.engines.embedded.engine import EmbeddedEngine  # noqa: E402
from transfer.run.finetune import finetune  # noqa: E402
from transfer.run.job import Options  # noqa: E402

ENGINES = ("embedded", "detectron2")
AMP = "SOLVER.AMP.ENABLED True"
VARIANTS = {
    "bfloat16": ("FPN", AMP, Options()),
    "float16": (
        "FPN",  # few iterations: slow on a CPU
        f"{AMP} SOLVER.MAX_ITER 2 SOLVER.CHECKPOINT_PERIOD 1 TEST.PRECISE_BN.ENABLED False",
        Options(amp_dtype="float16"),
    ),
    "accumulate": ("C4", "SOLVER.IMS_PER_BATCH 4", Options(accumulate=2)),
    "all": (
        "FPN",
        f"{AMP} SOLVER.LR_SCHEDULER_NAME WarmupCosineLR SOLVER.CLIP_GRADIENTS.ENABLED True "
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE norm SOLVER.BIAS_LR_FACTOR 2.0 SOLVER.NESTEROV True",
        Options(accumulate=2),
    ),
    "fixed gamma": ("FPN", "SOLVER.LR_SCHEDULER_NAME WarmupStepWithFixedGammaLR", Options()),
}


def variant(world: Path, name: str, engine: str, output: Path, **changes: Any) -> dict[str, Any]:  # noqa: F811
    architecture, overrides, options = VARIANTS[name]
    base = job(world, architecture, engine)
    overrides = [*base.overrides, *overrides.split()]
    return finetune(
        job(
            world,
            architecture,
            engine,
            **({"overrides": overrides, "options": options, "output": str(output)} | changes),
        )
    )


def last_figures(folder: Path) -> dict[str, float]:
    """What ``metrics.json`` says of the last iteration; Detectron2 may use several lines."""
    rows = [json.loads(line) for line in (folder / "metrics.json").open()]
    figures: dict[str, float] = {}
    for row in rows:
        figures |= row if row["iteration"] >= 5 else {}
    return figures


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "float16"])
def test_whole_runs_are_equal(world: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    ours, theirs = (variant(world, name, engine, tmp_path / engine) for engine in ENGINES)
    states = (dict(final(tmp_path / engine)) for engine in ENGINES)
    assert PAGE.note("Whole runs", name, "final weights", *states) == 0
    assert PAGE.note("Whole runs", name, "metrics", ours["metrics"], theirs["metrics"]) == 0
    assert ours["metrics"] == theirs["metrics"]
    assert ours["recipe_hash"] == theirs["recipe_hash"]
    assert ours["precision"] == theirs["precision"]
    rows = [last_figures(tmp_path / engine) for engine in ENGINES]
    timings = {"iteration", "time", "data_time", "data_wait", "eta_seconds"}
    expected = {name: rows[1][name] for name in rows[0].keys() - timings}
    assert {"loss_cls", "total_loss", "lr", "bbox/AP"} <= expected.keys()
    assert {name: rows[0][name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_float16_runs_are_equal_and_resume_with_their_scale(
    world: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for engine in ENGINES:
        folder = tmp_path / engine
        variant(world, "float16", engine, folder)
        whole = final(folder)
        for name in ("model_final.pth", "results.json"):
            (folder / name).unlink()
        (folder / "last_checkpoint").write_text("model_0000000.pth")
        saved = torch.load(folder / "model_0000000.pth", weights_only=True)
        assert saved["trainer"]["_trainer"]["grad_scaler"]["scale"] > 0  # Detectron2's layout
        variant(world, "float16", engine, folder, resume=True)
        again = final(folder)
        assert [n for n in whole if not torch.equal(whole[n], again[n])] == []
    states = (dict(final(tmp_path / engine)) for engine in ENGINES)
    assert PAGE.note("Whole runs", "float16", "final weights", *states) == 0


def plant(monkeypatch: pytest.MonkeyPatch, engine: type, iteration: int, where: str) -> None:
    """Make the class scores' loss, or only its gradient, undefined from ``iteration`` on."""
    build = engine.build_model

    def spoiled(self: Any, cfg: Any) -> nn.Module:
        model = build(self, cfg)
        seen = [0]

        def in_forward(module: nn.Module, inputs: Any, output: Any) -> Any:
            scores, deltas = output
            if not scores.requires_grad:  # evaluation or PreciseBN
                return output
            seen[0] += 1
            if seen[0] == iteration + 1 and where == "loss":
                scores = scores * torch.nan
            elif seen[0] == iteration + 1:
                scores.register_hook(lambda gradient: gradient * torch.nan)
            return scores, deltas

        model.roi_heads.box_predictor.register_forward_hook(in_forward)
        return model

    monkeypatch.setattr(engine, "build_model", spoiled)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_both_engines_stop_alike_before_nan(
    world: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    messages = []
    for name, engine in zip(ENGINES, (EmbeddedEngine, Detectron2Engine), strict=True):
        plant(monkeypatch, engine, 4, where)
        folder = tmp_path / name
        with pytest.raises(FloatingPointError) as caught:
            finetune(job(world, "FPN", name, output=str(folder)))
        messages.append(str(caught.value).replace(str(folder), "RUN"))
        assert (folder / "last_checkpoint").read_text() == "model_0000002.pth"
        assert not (folder / "results.json").exists()
        state = torch.load(folder / "model_0000002.pth", weights_only=True)["model"]
        assert all(v.isfinite().all() for v in state.values())
        rows = [json.loads(line) for line in (folder / "metrics.json").open()]
        assert all(row["iteration"] < 5 for row in rows)
    assert messages[0] == messages[1]
    start = {"loss": "a loss is not finite (", "gradient": "the gradient of "}[where]
    assert messages[0].startswith(f"training has diverged at iteration 4: {start}")
    assert messages[0].endswith("'RUN/model_0000002.pth' is the last checkpoint")
