"""The features that decide over a conversion: those of torchvision and of Detectron2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, trained

import convert.to_detectron2 as to_detectron2
from convert.architecture import identify
from convert.backbone_file import read_backbone
from convert.completeness import check_complete, examine
from convert.inspection import inspect
from convert.naming import detectron2_name
from convert.to_detectron2 import convert, convert_file
from convert.verify import DETECTRON2, STAGES, TORCHVISION, features, images, verify
from runtime.errors import InputError


def weights(arch: str) -> dict[str, torch.Tensor]:
    return trained(getattr(torchvision.models, arch)().state_dict())


def backbone_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {detectron2_name(name): value for name, value in state.items()}


@torch.no_grad()
def torchvision_features(model: torchvision.models.ResNet) -> dict[str, torch.Tensor]:
    model.eval()
    x, out = model.maxpool(model.relu(model.bn1(model.conv1(images())))), {}
    for name, stage in zip(STAGES, ("layer1", "layer2", "layer3", "layer4"), strict=True):
        x = out[name] = getattr(model, stage)(x)
    return out


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_both_evaluations_equal_torchvision(arch: str) -> None:
    state = weights(arch)
    model = getattr(torchvision.models, arch)()
    model.load_state_dict(state)
    expected = torchvision_features(model)
    architecture = identify(backbone_of(state), "x")
    for tensors, arrangement in ((state, TORCHVISION), (renamed(state), DETECTRON2)):
        found = features(tensors, arrangement, architecture, False)
        assert list(found) == list(STAGES)
        for stage, value in expected.items():
            assert torch.equal(found[stage], value), stage


def test_stride_in_the_1x1_convolution() -> None:
    """MSRA's placement, made of torchvision's model by moving the strides."""
    state = weights("resnet50")
    model = torchvision.models.resnet50()
    model.load_state_dict(state)
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    architecture = identify(backbone_of(state), "x")
    found = features(renamed(state), DETECTRON2, architecture, True)
    for stage, value in torchvision_features(model).items():
        assert torch.equal(found[stage], value), stage
    other = features(renamed(state), DETECTRON2, architecture, False)
    assert torch.equal(other["res2"], found["res2"])
    assert not torch.allclose(other["res3"], found["res3"])


@pytest.mark.detectron2
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_equals_detectron2s_backbone(arch: str, stride_in_1x1: bool) -> None:
    from convert.verify import detectron2_features

    state = backbone_of(weights(arch))
    architecture = identify(state, "x")
    keys = {
        "MODEL.RESNETS.STRIDE_IN_1X1": stride_in_1x1,
        "MODEL.RESNETS.DEPTH": architecture.depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if architecture.depth < 50 else 256,
    }
    found = features(renamed(state), DETECTRON2, architecture, stride_in_1x1)
    for stage, value in detectron2_features(renamed(state), keys).items():
        assert torch.equal(found[stage], value), stage


def test_a_wrong_name_or_stride_is_found(tmp_path: Path, monkeypatch) -> None:
    """The comparison sees what a broken converter would do, and leaves no file."""
    torch.save(weights("resnet50"), tmp_path / "r50.pth")
    converted = convert(tmp_path / "r50.pth")
    backbone, architecture = converted.backbone, converted.architecture
    keys = backbone.conventions.detectron2_keys()
    slightly = backbone.arrays["res2.0.conv1.weight"] * np.float32(1.01)
    swapped = dict(backbone.arrays)
    for part in ("weight", "norm.bias"):
        a, b = f"res4.1.conv1.{part}", f"res4.2.conv1.{part}"
        swapped[a], swapped[b] = swapped[b], swapped[a]
    for arrays, options in (
        (swapped, keys),
        (backbone.arrays, {**keys, "MODEL.RESNETS.STRIDE_IN_1X1": True}),
        (backbone.arrays | {"res2.0.conv1.weight": slightly}, keys),
    ):
        with pytest.raises(InputError, match="compute other features than the checkpoint"):
            verify(arrays, converted.features, architecture, options, "x")

    rename = to_detectron2.detectron2_name

    def broken(name: str) -> str:
        return rename(name.translate(str.maketrans("12", "21")) if "layer3.1.bn" in name else name)

    monkeypatch.setattr(to_detectron2, "detectron2_name", broken)
    with pytest.raises(InputError, match="compute other features"):
        convert_file(tmp_path / "r50.pth", tmp_path / "out.pkl")
    assert [p.name for p in tmp_path.iterdir()] == ["r50.pth"]


def test_what_was_written_is_read_back_before_it_gets_its_name(tmp_path: Path, monkeypatch) -> None:
    torch.save(weights("resnet18"), tmp_path / "r18.pth")

    def torn(content: dict, stream: object, protocol: int) -> None:
        content["model"] = content["model"] | {
            "res2.0.conv1.weight": np.zeros((64, 64, 3, 3), "f4")
        }
        dump(content, stream, protocol)

    import convert.backbone_file as backbone_file

    dump = backbone_file.pickle.dump
    monkeypatch.setattr(backbone_file.pickle, "dump", torn)
    with pytest.raises(InputError, match="reads back different"):
        convert_file(tmp_path / "r18.pth", tmp_path / "out.pkl")
    assert [p.name for p in tmp_path.iterdir()] == ["r18.pth"]


def test_the_result_is_in_the_file(tmp_path: Path) -> None:
    torch.save(weights("resnet18"), tmp_path / "r18.pth")
    convert_file(tmp_path / "r18.pth", tmp_path / "out.pkl")
    verification = read_backbone(tmp_path / "out.pkl").verification
    assert verification["tolerance"] == 1e-5
    assert list(verification["differences"]) == list(STAGES)
    assert max(verification["differences"].values()) <= 1e-5


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_weights_kept_in_channels_last_make_no_difference(tmp_path: Path, arch: str) -> None:
    model = torchvision.models.resnet.__dict__[arch]()
    model.load_state_dict(weights(arch))
    torch.save(model.to(memory_format=torch.channels_last).state_dict(), tmp_path / "a.pth")
    assert convert(tmp_path / "a.pth").verification.largest == 0


def test_weights_that_compute_nothing_are_refused(tmp_path: Path) -> None:
    state = weights("resnet18")
    for name in state:
        if name.startswith("layer4") and "bn" in name and name.endswith(("weight", "bias")):
            state[name] = torch.full_like(state[name], -1e-30 if name.endswith("bias") else 0)
        if name.startswith("layer4.0.downsample.1.") and name.endswith((".weight", ".bias")):
            state[name] = torch.full_like(state[name], -1.0 if name.endswith("bias") else 0)
    torch.save(state, tmp_path / "dead.pth")
    with pytest.raises(InputError, match="all features of res5 are zero"):
        convert(tmp_path / "dead.pth")


def test_untrained_weights_are_named() -> None:
    fresh = torchvision.models.resnet18(zero_init_residual=True).state_dict()
    fresh = backbone_of(fresh)
    architecture = identify(fresh, "x")
    with pytest.raises(InputError, match="untrained: all 20 norm layers have their initial values"):
        check_complete(fresh, architecture, "x")
    state = backbone_of(weights("resnet18"))
    assert check_complete(state, architecture, "x") == {}
    for name in fresh:
        if name.startswith(("layer3.1.bn2", "bn1")):
            state[name] = fresh[name]
    with pytest.raises(InputError, match=r"2 problem\(s\): untrained bn1; untrained layer3.1.bn2"):
        check_complete(state, architecture, "x")
    state["bn1.running_mean"] = state["bn1.running_mean"] + 0.01  # it has seen something
    assert examine(state, architecture).untrained == ("layer3.1.bn2",)
    state["layer3.1.bn2.weight"] = state["layer3.1.bn2.weight"] + 0.5  # but its statistics are lost
    assert examine(state, architecture).untrained == ("layer3.1.bn2",)


def test_impossible_values_are_named() -> None:
    state = backbone_of(weights("resnet18"))
    architecture = identify(state, "x")
    state["layer1.0.bn1.running_var"][5] = -0.5
    state["layer2.1.conv2.weight"].zero_()
    state["extra.weight"] = torch.zeros(2)
    state["layer3.0.conv1.weight"] = (state["layer3.0.conv1.weight"] * 99).to(torch.int8)
    message = (
        r"4 problem\(s\): unknown extra.weight; layer1.0.bn1.running_var has negative variances; "
        "layer2.1.conv2.weight is 0 everywhere; layer3.0.conv1.weight is of int8, not of floating"
    )
    for allow_missing in (False, True):  # which excuses none of these
        with pytest.raises(InputError, match=message):
            check_complete(state, architecture, "x", allow_missing)


def test_allowing_missing_tensors_marks_the_file(tmp_path: Path) -> None:
    state = weights("resnet18")
    del state["layer4.1.conv2.weight"]
    for name, value in torchvision.models.resnet18().state_dict().items():
        if name.startswith("layer4.1.bn1."):
            state[name] = value
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"missing layer4.1.conv2.weight; untrained layer4.1.bn1"):
        convert_file(tmp_path / "part.pth", tmp_path / "out.pkl")
    convert_file(tmp_path / "part.pth", tmp_path / "out.pkl", allow_missing=True)
    backbone = read_backbone(tmp_path / "out.pkl")
    assert backbone.incomplete == {
        "res5.1.conv2.weight": "missing",
        "res5.1.conv1.norm": "untrained",
    }
    assert list(backbone.verification["differences"]) == ["res2", "res3", "res4"]


def tool(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/convert_to_d2.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def test_many_files_and_inspection_by_the_command_line(tmp_path: Path) -> None:
    torch.save(weights("resnet18"), tmp_path / "a.pth.tar")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "fresh.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    done = tool(tmp_path, "noise.pth", "a.pth.tar", "fresh.pth", "--out-dir", "out")
    assert done.returncode == 2
    assert [p.name for p in (tmp_path / "out").iterdir() if p.suffix == ".pkl"] == ["a.pkl"]
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("a.pth.tar: torchvision, resnet18 -> out/a.pkl (all found; res2-")
    errors = done.stderr.splitlines()
    assert "noise.pth" in errors[0]
    assert "untrained" in errors[1]
    assert errors[2:] == ["2 of 3 files failed"]

    before = sorted(tmp_path.rglob("*"))
    done = tool(tmp_path, "--inspect", "--json", "a.pth.tar", "fresh.pth", "noise.pth")
    assert done.returncode == 2
    good, fresh = (json.loads(line) for line in done.stdout.splitlines())
    model = torchvision.models.resnet18()
    count = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in model.fc.parameters()
    )
    assert good["parameters"] == count
    assert sum(stage["parameters"] for stage in good["stages"].values()) == count
    assert (good["architecture"], good["problems"]) == ("resnet18", [])
    assert fresh["stages"]["res5"]["running_var_mean"] == 1.0
    assert "initial values" in fresh["problems"][0]
    assert sorted(tmp_path.rglob("*")) == before

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.pth").write_bytes((tmp_path / "a.pth.tar").read_bytes())
    done = tool(tmp_path, "a.pth.tar", "b/a.pth", "--out-dir", "two")
    assert (done.returncode, done.stdout) == (2, "")
    assert "would both become two/a.pkl" in done.stderr
    assert not (tmp_path / "two").exists()


def test_statistics_of_a_stage_are_those_of_its_tensors(tmp_path: Path) -> None:
    state = weights("resnet18")
    torch.save(state, tmp_path / "r18.pth")
    found = inspect(tmp_path / "r18.pth")["stages"]["res3"]
    convs = torch.cat(
        [v.flatten() for n, v in state.items() if n.startswith("layer2") and v.ndim == 4]
    )
    means = torch.cat([v for n, v in state.items() if n.startswith("layer2") and "mean" in n])
    assert found["convolution_std"] == pytest.approx(float(convs.square().mean().sqrt()))
    assert found["running_mean_std"] == pytest.approx(float(means.square().mean().sqrt()))
    assert found["tensors"] == sum(n.startswith("layer2") for n in state)
    state["layer2.0.bn1.running_mean"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    json.dumps(inspect(tmp_path / "nan.pth"), allow_nan=False)
