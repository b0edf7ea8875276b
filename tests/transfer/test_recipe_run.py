"""Every recipe as it is shipped, for two iterations and an evaluation on a few images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from data_synthetic import needs_shared
from recipe_data import write_generated, write_real

from transfer.recipe.defaults import default_cfg
from transfer.recipe.load import load_cfg
from transfer.run.finetune import finetune
from transfer.run.job import Job, Options

RECIPES = sorted(Path(__file__).parents[2].glob("transfer/*_R*.yaml"))
# one recipe for each model and kind of data; the others differ from these in the schedule
DIFFERENT = (
    "cityscapes_R50_FPN coco_R50_C4_1x coco_R50_FPN_1x coco_R50_FPN_1x_4conv1fc custom_R18_FPN "
    "keypoint_R50_FPN_2x lvis05_R50_FPN_1x lvis1_R50_FPN_1x voc_R50_C4 voc_R50_DC5"
).split()
NARROW = """
MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16
MODEL.ROI_BOX_HEAD.CONV_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16
MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (16,16) MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8
MODEL.RPN.POST_NMS_TOPK_TRAIN 30 MODEL.RPN.POST_NMS_TOPK_TEST 20
INPUT.MIN_SIZE_TRAIN (64,72) INPUT.MAX_SIZE_TRAIN 100 INPUT.MIN_SIZE_TEST 64
INPUT.MAX_SIZE_TEST 100 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.STEPS (1,)
SOLVER.WARMUP_ITERS 1 TEST.EVAL_PERIOD 0 TEST.PRECISE_BN.NUM_ITER 1 DATALOADER.NUM_WORKERS 0
""".split()
R50 = "MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 32".split()
R50 += ["MODEL.RESNETS.WIDTH_PER_GROUP", "8"]


@pytest.fixture(scope="module", params=["generated", pytest.param("real", marks=needs_shared)])
def datasets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    return write_generated(root) if request.param == "generated" else write_real(root)


def run(recipe: Path, datasets: Path, output: Path, engine: str) -> dict:
    custom = recipe.stem.startswith("custom_")
    names = {"train_data": [f"voc:{datasets / 'VOC2007'}:trainval"]}
    names["test_data"] = names["train_data"]
    job = Job(
        recipe=str(recipe),
        weights="random",
        overrides=[*NARROW, *([] if "R18" in recipe.stem else R50)],
        engine=engine,
        seed=1,
        output=str(output),
        options=Options(allow_deviation=True),
        **(names if custom else {}),
    )
    return finetune(job)


def check(recipe: Path, output: Path, results: dict) -> None:
    model = load_cfg(recipe, (), default_cfg()).MODEL
    boxes = not recipe.stem.startswith("cityscapes")  # whose own measure is of masks alone
    tasks = {"bbox": boxes, "segm": model.MASK_ON, "keypoints": model.KEYPOINT_ON}
    assert set(results["metrics"]) == {task for task, on in tasks.items() if on}
    assert all(math.isfinite(values["AP"]) for values in results["metrics"].values())
    assert results["schedule"]["iterations"] == 2
    assert not any("NUM_CLASSES" in line for line in results["deviations"])
    rows = [json.loads(line) for line in (output / "metrics.json").open()]
    assert any("total_loss" in row for row in rows)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_recipe_trains_and_evaluates(
    name: str, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    recipe = next(path for path in RECIPES if path.stem == name)
    check(recipe, tmp_path / "run", run(recipe, datasets, tmp_path / "run", "embedded"))


@pytest.mark.detectron2
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_gives_the_same_in_both_engines(
    recipe: Path, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    outcomes, weights = [], []
    for engine in ("embedded", "detectron2"):
        results = run(recipe, datasets, tmp_path / engine, engine)
        check(recipe, tmp_path / engine, results)
        detections = (tmp_path / engine / "inference/coco_instances_results.json").read_text()
        # as text: the AP of a class without objects is NaN, which equals nothing
        outcomes.append((json.dumps(results["metrics"]), detections))
        saved = torch.load(tmp_path / engine / "model_final.pth", weights_only=True)
        weights.append(saved["model"])
    assert outcomes[0] == outcomes[1]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
