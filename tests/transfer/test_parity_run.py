"""The same job in both engines: equal weights, metrics and detections after a whole run."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from conftest import ROOT

detectron2 = pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from convert.to_detectron2 import convert_file  # noqa: E402
from transfer.engines.select import select_engine  # noqa: E402
from transfer.recipe.load import load_cfg  # noqa: E402
from transfer.run.finetune import finetune  # noqa: E402
from transfer.run.job import Job  # noqa: E402

SMALL = {
    "FPN": "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16".split(),
    "C4": "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 4".split(),
}
COMMON = """
MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.RPN.POST_NMS_TOPK_TRAIN 30
MODEL.RPN.POST_NMS_TOPK_TEST 20 INPUT.MIN_SIZE_TRAIN (64,72) INPUT.MIN_SIZE_TEST 64
SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 6 SOLVER.STEPS (4,) SOLVER.WARMUP_ITERS 3
SOLVER.CHECKPOINT_PERIOD 3 TEST.EVAL_PERIOD 3 TEST.PRECISE_BN.NUM_ITER 3
DATALOADER.NUM_WORKERS 0
""".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny.write_voc(folder / "voc")
    torch.save(tiny.touched("resnet18"), folder / "r18.pth")
    convert_file(folder / "r18.pth", folder / "r18.pkl")
    return folder


def job(world: Path, architecture: str, engine: str, **changes: object) -> Job:
    base = Job(
        recipe=str(ROOT / f"transfer/Base_{architecture}.yaml"),
        weights=str(world / "r18.pkl"),
        overrides=[*COMMON, *SMALL[architecture]],
        train_data=[f"voc:{world / 'voc'}:train"],
        test_data=[f"voc:{world / 'voc'}:test"],
        engine=engine,
        seed=3,
        output=str(world / f"{architecture}_{engine}"),
    )
    return replace(base, **changes)


def final(folder: Path | str) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder) / "model_final.pth", weights_only=True)["model"]


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.json").open()]
    return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}


@pytest.mark.parametrize("architecture", ["FPN", "C4"])
def test_whole_runs_are_equal(world: Path, architecture: str) -> None:
    ours = finetune(job(world, architecture, "embedded"))
    theirs = finetune(job(world, architecture, "detectron2"))
    assert (ours["engine"], theirs["engine"]) == ("embedded", "detectron2")
    assert ours["recipe_hash"] == theirs["recipe_hash"]
    assert ours["metrics"] == theirs["metrics"]
    assert ours["load_report"]["loaded"] == theirs["load_report"]["loaded"] == 100
    parts = [
        [tuple(part[k] for k in ("module", "lr", "weight_decay")) for part in modules]
        for modules in (ours["load_report"]["modules"], theirs["load_report"]["modules"])
    ]
    assert parts[0] == parts[1]
    assert ("roi_heads.box_predictor", "0.02", "0.0001") in parts[0]
    folders = [world / f"{architecture}_{engine}" for engine in ("embedded", "detectron2")]
    a, b = map(final, folders)
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    detections = [
        json.loads((folder / "inference/coco_instances_results.json").read_text())
        for folder in folders
    ]
    assert detections[0] == detections[1]
    assert detections[0]
    assert losses(folders[0])[5] == pytest.approx(losses(folders[1])[5], abs=1e-12)


@pytest.mark.parametrize("architecture", ["FPN", "C4"])
def test_each_engine_evaluates_the_others_detector(world: Path, architecture: str) -> None:
    metrics = []
    for trained in ("embedded", "detectron2"):
        weights = world / f"{architecture}_{trained}" / "model_final.pth"
        if not weights.exists():
            finetune(job(world, architecture, trained))
        for engine in ("embedded", "detectron2"):
            output = str(world / f"eval_{architecture}_{trained}_{engine}")
            evaluation = job(
                world, architecture, engine, eval_only=True, weights=str(weights), output=output
            )
            metrics.append(finetune(evaluation)["metrics"])
    assert all(m == metrics[0] for m in metrics)


def test_resumed_detectron2_run_equals_the_unbroken_one(world: Path, tmp_path: Path) -> None:
    whole = finetune(job(world, "FPN", "detectron2", output=str(tmp_path / "whole")))
    broken = tmp_path / "broken"
    finetune(job(world, "FPN", "detectron2", output=str(broken)))
    for name in ("model_final.pth", "results.json"):
        (broken / name).unlink()
    (broken / "last_checkpoint").write_text("model_0000002.pth")
    resumed = finetune(job(world, "FPN", "detectron2", output=str(broken), resume=True))
    a, b = final(tmp_path / "whole"), final(broken)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert resumed["metrics"] == whole["metrics"]


@pytest.mark.parametrize("architecture", ["FPN", "C4"])
def test_detectron2s_own_loader_matches_every_backbone_tensor(
    world: Path, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    engine, _ = select_engine("detectron2")
    recipe = ROOT / f"transfer/Base_{architecture}.yaml"
    overrides = [*COMMON, *SMALL[architecture]]
    model = engine.build_model(load_cfg(recipe, overrides, engine.base_cfg()))
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(world / "r18.pkl"))
    assert "rpn_head" in caplog.text  # it lists what is missing: the new heads,
    assert not re.search(r"(stem|res[2-5]\.\d)", caplog.text)  # and nothing of the backbone
    assert "not found in the model" not in caplog.text
    state = torch.load(world / "r18.pth", weights_only=True)
    trunk = "backbone.bottom_up." if architecture == "FPN" else "backbone."
    res5 = "backbone.bottom_up." if architecture == "FPN" else "roi_heads."
    loaded = model.state_dict()
    assert torch.equal(loaded[f"{trunk}stem.conv1.weight"], state["conv1.weight"])
    assert torch.equal(
        loaded[f"{res5}res5.1.conv2.norm.running_var"], state["layer4.1.bn2.running_var"]
    )


def test_half_width_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    from runtime.errors import InputError

    with pytest.raises(InputError, match="RES2_OUT_CHANNELS must be 64"):
        finetune(
            job(
                world,
                "FPN",
                "detectron2",
                weights="random",
                output=str(tmp_path / "run"),
                overrides=[*COMMON, "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"],
            )
        )
