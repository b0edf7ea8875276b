"""One job run in both engines, for the tests that compare whole runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny
import torch
from parity_page import PAGE

from convert.to_detectron2 import convert_file
from transfer.run.finetune import finetune
from transfer.run.job import Job, Options

ROOT = Path(__file__).parents[2]
TINY = """
MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64
MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
MODEL.RPN.POST_NMS_TOPK_TRAIN 30 MODEL.RPN.POST_NMS_TOPK_TEST 20
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 TEST.DETECTIONS_PER_IMAGE 8
INPUT.MIN_SIZE_TRAIN (64,72) INPUT.MIN_SIZE_TEST 64
SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 4 SOLVER.STEPS (3,) SOLVER.WARMUP_ITERS 2
SOLVER.CHECKPOINT_PERIOD 4 TEST.EVAL_PERIOD 4 TEST.PRECISE_BN.NUM_ITER 2
DATALOADER.NUM_WORKERS 0
""".split()


def write_resnet18(folder: Path) -> Path:
    """A ``backbone.pkl`` of ResNet-18 with random weights."""
    torch.save(tiny.touched("resnet18"), folder / "r18.pth")
    convert_file(folder / "r18.pth", folder / "r18.pkl")
    return folder / "r18.pkl"


def run_both(
    folder: Path, recipe: str, train: str, test: str, overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of the embedded engine and of Detectron2, after checking that all of it is equal:

    metrics, every tensor of the final weights, detections and the last loss.
    """
    weights = write_resnet18(folder)
    runs = {}
    for engine in ("embedded", "detectron2"):
        runs[engine] = finetune(
            Job(
                recipe=str(ROOT / "transfer" / recipe),
                weights=str(weights),
                overrides=[*TINY, *overrides],
                train_data=[train],
                test_data=[test],
                engine=engine,
                seed=3,
                output=str(folder / engine),
                options=Options(allow_deviation=True),
            )
        )
    ours, theirs = runs["embedded"], runs["detectron2"]
    assert (ours["engine"], theirs["engine"]) == ("embedded", "detectron2")
    assert ours["recipe_hash"] == theirs["recipe_hash"]
    assert json.dumps(ours["metrics"]) == json.dumps(theirs["metrics"])  # NaN is NaN here
    ours_final, theirs_final = (
        torch.load(folder / engine / "model_final.pth", weights_only=True)["model"]
        for engine in runs
    )
    assert list(ours_final) == list(theirs_final)
    table, row = "Whole runs", f"{Path(recipe).stem} on {Path(test.split(':')[1]).name}"
    assert PAGE.note(table, row, "final weights", ours_final, theirs_final) == 0
    for task, scores in ours["metrics"].items():
        assert PAGE.note(table, row, f"AP of {task}", scores, theirs["metrics"][task]) == 0
    assert detections(folder / "embedded") == detections(folder / "detectron2")
    losses = [_last_loss(folder / engine) for engine in runs]
    assert abs(losses[0] - losses[1]) < 1e-12
    return ours, theirs


def detections(run: Path) -> list[dict[str, Any]]:
    """What the run found in the test images."""
    return json.loads((run / "inference/coco_instances_results.json").read_text())


def _last_loss(run: Path) -> float:
    rows = [json.loads(line) for line in (run / "metrics.json").open()]
    return next(row["total_loss"] for row in reversed(rows) if "total_loss" in row)
