"""What a run makes of its test sets, and the traps of data and evaluation that it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from data_synthetic import ROOT, random_coco, random_lvis

from runtime.errors import InputError
from transfer.run.finetune import finetune
from transfer.run.job import Job, Options


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_world(tmp_path_factory.mktemp("world"), ROOT, train=2, test=1)


def job(world: Path, output: Path, *overrides: str, **changes: object) -> Job:
    quick = ("SOLVER.MAX_ITER", "1", "TEST.PRECISE_BN.ENABLED", "False")
    return tiny.job(world, output, *quick, *overrides, **changes)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with model_final.pth."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    finetune(job(world, folder, options=Options(voc_metric="11-point")))
    return folder


def evaluation(world: Path, trained: Path, weights: Path | None = None, **changes: object) -> Job:
    weights = weights or trained / "model_final.pth"
    return job(world, trained, eval_only=True, weights=str(weights), **changes)


def test_kind_of_ap_is_part_of_the_results(world: Path, trained: Path) -> None:
    chosen = json.loads((trained / "results.json").read_text())
    assert chosen["metric"] == "VOC AP (11-point), mean over IoU 0.50:0.95"
    other = finetune(evaluation(world, trained, options=Options(voc_metric="area")))
    assert other["metric"] == "VOC AP (area under curve), mean over IoU 0.50:0.95"
    assert other["recipe_hash"] != chosen["recipe_hash"]


def coco(folder: Path, **options: bool) -> str:
    return "coco:{}:{}".format(*random_coco(folder, images=3, **options))


def test_test_sets_that_cannot_be_scored_as_asked(world: Path, tmp_path: Path) -> None:
    data = coco(tmp_path / "coco")
    both = {"train_data": [data], "test_data": [data]}
    with pytest.raises(InputError, match="--voc-metric area: no test set is in VOC's layout"):
        finetune(job(world, tmp_path / "run", options=Options(voc_metric="area"), **both))
    path = tmp_path / "coco/instances.json"
    content = json.loads(path.read_text())
    (tmp_path / "empty.json").write_text(json.dumps(content | {"annotations": []}))
    both["test_data"] = [data.replace(str(path), str(tmp_path / "empty.json"))]
    with pytest.raises(InputError, match=r"empty\.json.* has no annotated object"):
        finetune(job(world, tmp_path / "run", **both))
    assert not (tmp_path / "run").exists()


def test_lvis_is_trained_on_and_scored(world: Path, tmp_path: Path) -> None:
    data = "lvis:{}:{}".format(*random_lvis(tmp_path, images=4))
    sampler = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"]
    both = {"train_data": [data], "test_data": [data]}
    with pytest.raises(InputError, match=r"repeats nothing with REPEAT_THRESHOLD 0\.0"):
        finetune(job(world, tmp_path / "run", *sampler, **both))
    assert not (tmp_path / "run").exists()
    sampler += ["DATALOADER.REPEAT_THRESHOLD", "0.9"]
    results = finetune(job(world, tmp_path / "run", *sampler, **both))
    assert results["metric"].startswith("LVIS AP (101-point, at most 300 detections an image)")
    assert list(results["metrics"]["bbox"])[-3:] == ["APr", "APc", "APf"]


def test_evaluation_needs_weights_that_were_trained(
    world: Path, trained: Path, tmp_path: Path
) -> None:
    for weights, message in (("", "no weights"), ("random", "--eval-only needs the weights")):
        with pytest.raises(InputError, match=message):
            finetune(job(world, trained, eval_only=True, weights=weights))
    content = torch.load(trained / "model_final.pth", weights_only=True)
    name = "roi_heads.box_predictor.cls_score.weight"
    for change, message in (
        (lambda model: model.pop(name), f"1 tensors differ, first {name}"),
        (lambda model: model[name].view(-1)[3:4].fill_(float("nan")), f"{name} .* not finite"),
        (lambda model: model[name].view(-1)[3:4].fill_(float("inf")), f"{name} .* not finite"),
    ):
        model = {key: value.clone() for key, value in content["model"].items()}
        change(model)
        torch.save({"model": model}, tmp_path / "wrong.pth")
        with pytest.raises(InputError, match=message):
            finetune(evaluation(world, trained, tmp_path / "wrong.pth"))


def test_a_missing_annotation_stops_the_run_before_it_begins(world: Path, tmp_path: Path) -> None:
    tiny.write_voc(tmp_path / "voc", train=2, test=1)
    (tmp_path / "voc/Annotations/1.xml").unlink()
    data = {"train_data": [f"voc:{tmp_path / 'voc'}:train"]}
    with pytest.raises(InputError, match=r"cannot read annotation .*Annotations/1\.xml"):
        finetune(job(world, tmp_path / "run", **data))
    assert not (tmp_path / "run").exists()
