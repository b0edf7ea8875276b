"""One fine-tuning run: weights complete or refused, conventions applied, resumed exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from tiny import job

from convert.backbone_file import Backbone, read_backbone
from convert.backbone_file import write_backbone as write_pkl
from convert.to_detectron2 import convert_file
from runtime.errors import InputError
from transfer.engines.embedded import build_model
from transfer.recipe.defaults import default_cfg
from transfer.recipe.load import load_cfg
from transfer.run.finetune import finetune
from transfer.run.weights import load_backbone


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_world(tmp_path_factory.mktemp("world"), ROOT)


def model_of(world: Path) -> torch.nn.Module:
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    return build_model(load_cfg(world / "recipe.yaml", overrides, default_cfg()))


def final(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_every_backbone_tensor_arrives_and_is_reported(world: Path) -> None:
    model, backbone = model_of(world), read_backbone(world / "backbone.pkl")
    report = load_backbone(model, backbone, "x")
    state = model.state_dict()
    for name, array in backbone.arrays.items():
        assert torch.equal(state[f"backbone.bottom_up.{name}"], torch.from_numpy(array)), name
    stages = {p.module: p for p in report.modules if "bottom_up" in p.module}
    assert [(s.loaded, s.initialised) for s in stages.values()] == [
        (5, 0),
        (20, 0),
        (25, 0),
        (25, 0),
        (25, 0),
    ]
    assert stages["backbone.bottom_up.res3"].norm == "BatchNorm2d"
    others = [p for p in report.modules if "bottom_up" not in p.module]
    assert sum(p.loaded for p in others) == 0
    assert report.loaded == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("res3.1.conv2.weight"), "res3.1.conv2.weight is not in the file"),
        (lambda a: a.update({"res6.0.conv1.weight": np.zeros(3)}), "res6.0.conv1.weight has no"),
        (
            lambda a: a.update({"stem.conv1.weight": np.zeros((8, 3, 3, 3))}),
            r"stem.conv1.weight is",
        ),
    ],
)
def test_partial_backbones_are_refused_before_anything_is_copied(world, change, message) -> None:
    backbone = read_backbone(world / "backbone.pkl")
    change(backbone.arrays)
    model = model_of(world)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_backbone(model, Backbone(backbone.arrays, backbone.conventions), "x")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_run_folder_and_results(world: Path, tmp_path: Path) -> None:
    results = finetune(job(world, tmp_path / "run", arm="moco"))
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["engine"] == "embedded"
    assert results["weights"]["conventions"]["source_format"] == "torchvision"
    assert results["schedule"] == {
        "iterations": 6,
        "images_per_batch": 2,
        "base_lr": 0.01,
        "epochs": 2.0,
    }
    assert results["dataset"]["classes"] == ["disc", "square"]
    assert results["deviations"] == []  # the recipe leaves the data, and so the classes, open
    assert set(results["metrics"]["bbox"]) == {"AP", "AP50", "AP75", "AP-disc", "AP-square"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").open()]
    assert rows[-1]["iteration"] == 5
    assert rows[-1]["bbox/AP"] == results["metrics"]["bbox"]["AP"]
    detections = json.loads((tmp_path / "run/inference/coco_instances_results.json").read_text())
    assert {row["image_id"] for row in detections} <= {"6", "7"}
    evaluation = {"eval_only": True, "weights": str(tmp_path / "run/model_final.pth")}
    again = finetune(job(world, tmp_path / "run", **evaluation))
    assert again["metrics"] == results["metrics"]
    with pytest.raises(InputError, match=r"was trained with INPUT\.FORMAT 'RGB'"):
        finetune(job(world, tmp_path / "run", "INPUT.FORMAT", "BGR", **evaluation))


def test_resumed_run_equals_the_unbroken_one(world: Path, tmp_path: Path) -> None:
    period = ("SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "3")
    whole = finetune(job(world, tmp_path / "whole", *period))
    finetune(job(world, tmp_path / "broken", *period))
    folder = tmp_path / "broken"
    for name in ("model_final.pth", "results.json"):
        (folder / name).unlink()
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    resumed = finetune(job(world, folder, *period, resume=True))
    assert all(torch.equal(v, final(folder)[k]) for k, v in final(tmp_path / "whole").items())
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["load_report"] == whole["load_report"]
    (folder / "results.json").unlink()  # killed between the last checkpoint and the results
    assert finetune(job(world, folder, *period, resume=True))["metrics"] == whole["metrics"]
    with pytest.raises(InputError, match="nothing to do"):
        finetune(job(world, folder, *period, resume=True))


def test_a_seed_that_was_drawn_is_kept_on_resume(world: Path, tmp_path: Path) -> None:
    steps = ("SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1")
    drawn = finetune(job(world, tmp_path / "run", *steps, seed=None))["seed"]
    assert finetune(job(world, tmp_path / "other", *steps, seed=None))["seed"] != drawn
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000000.pth")
    assert finetune(job(world, tmp_path / "run", *steps, seed=None, resume=True))["seed"] == drawn


def test_resume_refuses_another_arms_folder(world: Path, tmp_path: Path) -> None:
    finetune(job(world, tmp_path / "run", "SOLVER.MAX_ITER", "1"))
    other = str(tiny.write_backbone(tmp_path / "other.pkl", seed=5))
    with pytest.raises(InputError, match="belongs to another run: its weights_sha256"):
        finetune(job(world, tmp_path / "run", "SOLVER.MAX_ITER", "1", weights=other, resume=True))
    with pytest.raises(InputError, match="already holds a run"):
        finetune(job(world, tmp_path / "run", "SOLVER.MAX_ITER", "1"))


def test_conventions_are_applied_and_contradictions_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"INPUT.FORMAT 'BGR', but the weights .* need 'RGB'"):
        finetune(job(world, tmp_path / "run", "INPUT.FORMAT", "BGR"))
    with pytest.raises(InputError, match=r"MODEL.RESNETS.DEPTH 50, but the weights .* need 18"):
        finetune(job(world, tmp_path / "run", "MODEL.RESNETS.DEPTH", "50"))
    assert not (tmp_path / "run").exists()
    silent = tmp_path / "silent.yaml"  # says nothing of channel order: BGR by Detectron2's default
    silent.write_text((world / "recipe.yaml").read_text())
    base = (
        (ROOT / "transfer/Base_FPN.yaml").read_text().replace("  FORMAT: RGB\n", "  FORMAT: BGR\n")
    )
    (tmp_path / "Base.yaml").write_text(base.replace("INPUT:\n  FORMAT: BGR\n", ""))
    text = silent.read_text().replace(str(ROOT / "transfer" / "Base_FPN.yaml"), "Base.yaml")
    silent.write_text(text)
    results = finetune(job(world, tmp_path / "run", "SOLVER.MAX_ITER", "1", recipe=str(silent)))
    assert results["conventions"]["channel_order"] == "RGB"
    assert "INPUT.FORMAT: 'BGR' -> 'RGB'" in results["deviations"]


def test_backbone_without_conventions_is_refused(world: Path, tmp_path: Path) -> None:
    import pickle

    content = pickle.loads((world / "backbone.pkl").read_bytes())
    del content["conventions"]
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="does not say its conventions"):
        finetune(job(world, tmp_path / "run", weights=str(tmp_path / "old.pkl")))
    backbone = read_backbone(world / "backbone.pkl")
    write_pkl(tmp_path / "empty.pkl", Backbone({}, backbone.conventions))
    with pytest.raises(InputError, match="holds no weights"):
        finetune(job(world, tmp_path / "run", weights=str(tmp_path / "empty.pkl")))


def test_a_file_that_is_incomplete_on_purpose_says_so(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The gap, and nothing else, stays random; log, deviations and results name it.

    And that the file was a detector's, whose backbone is no pretrained one.
    """
    state = {f"backbone.{name}": value for name, value in tiny.touched(tiny.ARCH).items()}
    del state["backbone.layer4.1.conv2.weight"]
    state["bbox_head.weight"] = torch.ones(2)
    torch.save({"meta": {"cfg": ""}, "state_dict": state}, tmp_path / "part.pth")
    convert_file(tmp_path / "part.pth", tmp_path / "part.pkl", allow_missing=True)
    weights = str(tmp_path / "part.pkl")
    done = finetune(job(world, tmp_path / "run", "SOLVER.MAX_ITER", "1", weights=weights))
    line = f"{weights}: converted with --allow-missing, 1 incomplete: res5.1.conv2.weight missing"
    assert line in done["deviations"]
    detector = "the backbone of a trained detector (its file held bbox_head.weight)"
    assert f"{weights}: {detector}" in done["deviations"]
    assert f"deviates from the recipe: {line}" in capsys.readouterr().err
    assert done["weights"]["incomplete"] == {"res5.1.conv2.weight": "missing"}
    backbone = read_backbone(weights)
    report = load_backbone(model_of(world), backbone, "x")
    assert {p.module: p.initialised for p in report.modules}["backbone.bottom_up.res5"] == 1
    del backbone.arrays["res5.0.conv1.weight"]  # a second gap, not on purpose
    with pytest.raises(InputError, match=r"1 problem.*res5.0.conv1.weight is not in the file"):
        load_backbone(model_of(world), backbone, "x")


def test_diverged_training_stops(world: Path, tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, FloatingPointError, InputError), match=r"diverged|finite"):
        finetune(job(world, tmp_path / "run", "SOLVER.BASE_LR", "1e9", "SOLVER.WARMUP_ITERS", "0"))
    assert not (tmp_path / "run" / "results.json").exists()


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "tools" / name), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def options(world: Path) -> list[str]:
    voc = world / "voc"
    data = ["--train-data", f"voc:{voc}:train", "--test-data", f"voc:{voc}:test"]
    return ["--config", str(world / "recipe.yaml"), "--engine", "embedded", *data]


def test_wrong_input_on_the_command_line(world: Path, tmp_path: Path) -> None:
    weights = ["--weights", str(world / "backbone.pkl")]
    output = ["OUTPUT_DIR", str(tmp_path / "run")]
    for arguments, message in (
        ([*options(world), *output], "no weights: give --weights"),
        ([*options(world), "--weights", "gone.pkl", *output], "no checkpoint at 'gone.pkl'"),
        ([*options(world), *weights, *output, "SOLVER.BASELR", "1"], "SOLVER.BASE_LR"),
        ([*options(world)[:4], *weights, *output], "name the data"),
        ([*options(world), *weights, "--eval-only", *output], "backbone.pkl"),
    ):
        done = tool("train_det.py", *arguments)
        assert (done.returncode, done.stderr.count("\nTraceback")) == (2, 0), done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
        assert message in done.stderr
        assert not (tmp_path / "run" / "results.json").exists()


def test_two_processes(world: Path, tmp_path: Path) -> None:
    """torchrun on Gloo: the images are shared, and the parameters stay equal on both ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(ROOT / "tools/train_det.py"), *options(world), "--weights", "random"]
    output = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "2"]
    norms = ["MODEL.RESNETS.NORM", "naiveSyncBN", "MODEL.FPN.NORM", "naiveSyncBN"]
    done = subprocess.run(
        [*launcher, *arguments, *output, *norms],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["hardware"]["processes"] == 2
    evaluation = {"eval_only": True, "weights": str(tmp_path / "run/model_final.pth")}
    alone = finetune(job(world, tmp_path / "run", *norms, **evaluation))
    assert alone["metrics"] == results["metrics"]  # gathered in order, nothing lost or twice


def test_comparison_end_to_end(world: Path, tmp_path: Path) -> None:
    arms = ["--arm", "random", "--arm", f"moco={world / 'backbone.pkl'}"]
    output = ["OUTPUT_DIR", str(tmp_path / "cmp"), "SOLVER.MAX_ITER", "2"]
    done = tool("compare.py", *options(world), *arms, "--trials", "2", *output)
    assert done.returncode == 0, done.stderr
    for name in ("table.md", "table.csv", "report.html", "moco/seed2/results.json"):
        assert (tmp_path / "cmp" / name).is_file()
    runs = [
        json.loads((tmp_path / "cmp" / arm / f"seed{seed}" / "results.json").read_text())
        for arm in ("random", "moco")
        for seed in (1, 2)
    ]
    assert len({run["recipe_hash"] for run in runs}) == 1
    assert runs[0]["weights"] is None
    finished = runs[2]["finished"]
    done = tool("compare.py", *options(world), *arms, "--trials", "2", *output)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "cmp" / "moco" / "seed1" / "results.json").read_text())
    assert again["finished"] == finished  # nothing was run again
    done = tool("compare.py", *options(world), *arms, "--trials", "2", *output[:3], "3")
    assert done.returncode == 2
    assert "belongs to another run" in done.stderr
