"""Every format: recognised, the right encoder, the same features; or refused with a reason."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from fvcore.common.config import CfgNode
from layouts import LAYOUTS, Layout, caffe2, lightly, lightning, moco, under
from networks import backbone, network, resnext, write

from convert.conventions import FAIR_BGR, MSRA_BGR
from convert.detect import PROBE, detect
from convert.formats import FORMATS
from convert.inspection import describe, inspect
from convert.source import read_source
from convert.to_detectron2 import convert
from runtime.errors import InputError
from transfer.engines.embedded.resnet import ResNet
from transfer.recipe.defaults import default_cfg


def torchvision_features(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    out = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        out.append(x := stage(x))
    return out


def detector_features(arrays: dict[str, np.ndarray], keys: dict, x: torch.Tensor) -> list:
    cfg: CfgNode = default_cfg()
    for key, value in keys.items():
        *sections, name = key.split(".")
        functools.reduce(getattr, sections, cfg)[name] = value
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    model = ResNet(cfg).eval()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    missing = model.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return list(model(x).values())


def layout_id(case: tuple) -> str:
    return case[0].__name__ if case[0].__name__ != "<lambda>" else f"{case[2]}-{case[1]}"


@pytest.mark.parametrize("case", LAYOUTS, ids=layout_id)
def test_format(tmp_path: Path, case: tuple[Layout, str, str, str, str]) -> None:
    layout, name, known, branch, other = case
    file = write(layout(backbone(1), backbone(2)), tmp_path / name)
    converted = convert(file)
    found = converted.format
    assert (found.name, found.branch, found.others) == (known, branch, (other,) if other else ())
    assert not found.elsewhere
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    keys = converted.backbone.conventions.detectron2_keys()
    with torch.no_grad():
        expected = torchvision_features(network(1), x)
        features = detector_features(converted.backbone.arrays, keys, x)
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))
    source = read_source(file, branch=other)
    assert all(torch.equal(source.backbone[n], v) for n, v in backbone(2 if other else 1).items())


@pytest.mark.parametrize("case", LAYOUTS, ids=layout_id)
def test_format_can_be_forced(tmp_path: Path, case: tuple[Layout, str, str, str, str]) -> None:
    layout, _, known, branch, _ = case
    option = next(row.option for row in FORMATS if row.name == known)
    found = detect(layout(backbone(1), backbone(2)), "x", option)
    assert (found.name, found.branch) == (known, branch)


def test_every_row_has_a_layout() -> None:
    tested = {case[2] for case in LAYOUTS}
    elsewhere = {"Caffe2", "Detectron2", "Detectron2, MSRA", "Detectron2, FAIR"}
    own = {row.name for row in FORMATS if row.name.startswith("this toolkit")}
    assert tested | elsewhere | own == {row.name for row in FORMATS}


@pytest.mark.parametrize(
    ("folded", "groups", "conventions"),
    [
        (False, 1, MSRA_BGR),
        (True, 1, MSRA_BGR),
        (False, 4, FAIR_BGR),
        (True, 4, FAIR_BGR | {"pixel_std": (1.0, 1.0, 1.0)}),
    ],
)
def test_caffe2(tmp_path: Path, folded: bool, groups: int, conventions: dict) -> None:
    state = resnext(groups)
    source = read_source(write(caffe2(state, folded), tmp_path / "R-50.pkl"))
    assert source.format.name == "Caffe2"
    assert set(source.head) == {"fc1000_w", "conv1_w_momentum", "conv1_b"}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            assert name not in source.backbone
        elif folded and name.endswith("running_mean"):
            assert not source.backbone[name].any()
        elif folded and name.endswith("running_var"):  # the norm then is exactly scale and shift
            assert torch.equal((source.backbone[name] + 1e-5).rsqrt(), torch.ones_like(value))
        else:
            assert torch.equal(source.backbone[name], value)
    assert {key: getattr(source.conventions, key) for key in conventions} == conventions
    keys = source.conventions.detectron2_keys()
    assert keys.get("MODEL.RESNETS.NORM") == ("FrozenBN" if folded else None)
    assert keys["MODEL.RESNETS.NUM_GROUPS"] == groups


@pytest.mark.parametrize(
    ("written", "named"),
    [("x.pth", "x.pkl"), ("x.pth", "x.safetensors"), ("x.safetensors", "x.bin")],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_kind_of_file_is_found_whatever_its_name(
    tmp_path: Path, written: str, named: str, legacy: bool
) -> None:
    file = write(backbone(1), tmp_path / written)
    if legacy and written == "x.pth":  # as before PyTorch 1.6
        torch.save(backbone(1), file, _use_new_zipfile_serialization=False)
    found = read_source(file.rename(tmp_path / named)).backbone
    assert torch.equal(found["conv1.weight"], backbone(1)["conv1.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torchvision.models.resnet18(), r"whole pickled network.* save its state_dict\(\) instead"),
        (
            {"model": torch.nn.DataParallel(torchvision.models.resnet18())},
            r"whole pickled network.*state_dict\(\)",
        ),
        ({"model": network(1)}, r"more than tensors .*save the network's state_dict\(\) instead"),
    ],
)
def test_networks_that_are_no_state_dict(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_source(write(content, tmp_path / "x.pth"))


def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Conv2d(3, 4, 1)).save(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"TorchScript: save torch.jit.load\(...\).state_dict\(\)"):
        read_source(tmp_path / "x.pt")


def test_two_tensors_for_one_place(tmp_path: Path) -> None:
    content = caffe2(resnext(1)) | {"res2_0_branch2a_bn_s": np.ones(8, np.float32), 7: "odd"}
    with pytest.raises(InputError, match=r"two tensors for layer1\.0\.bn1\.weight"):
        read_source(write(content, tmp_path / "x.pkl"))


def test_branch_that_the_file_has_not(tmp_path: Path) -> None:
    file = write(moco(backbone(1), backbone(2)), tmp_path / "moco.pth")
    with pytest.raises(InputError, match="no encoder 'teacher': --branch can be query or key"):
        read_source(file, branch="teacher")
    with pytest.raises(InputError, match=r"--format mocov2 is not one of .*official-moco"):
        read_source(file, name="mocov2")
    with pytest.raises(InputError, match="not in the format DINO"):
        read_source(file, name="dino")


def test_other_takes_the_only_resnet_and_asks_between_two(tmp_path: Path) -> None:
    one = {"model": under("net.trunk.", backbone(1))}
    file = write(one, tmp_path / "one.pth")
    with pytest.raises(InputError, match=r"other takes the ResNet at 'model/net\.trunk\.'"):
        read_source(file)
    assert torch.equal(
        read_source(file, name="other").backbone["conv1.weight"], backbone(1)["conv1.weight"]
    )
    file = write({"model": one["model"] | under("ema.", backbone(2))}, tmp_path / "two.pth")
    with pytest.raises(InputError, match="holds 2 ResNets"):
        read_source(file, name="other")
    source = read_source(file, name="other", branch="model/ema.")
    assert torch.equal(source.backbone["conv1.weight"], backbone(2)["conv1.weight"])


@pytest.mark.parametrize(
    ("content", "taken", "place"),
    [
        ({"model": backbone(1), "model_ema": backbone(2)}, "'model/'", "model_ema/"),  # DeiT's
        (
            {"state_dict": backbone(1), "ema": {"module": backbone(2)}},
            "'state_dict/'",
            "ema/module/",
        ),
        (
            lightning(backbone=backbone(1), ema_backbone=backbone(2)),
            "backbone",
            "state_dict/ema_backbone.",
        ),
        (  # of one convolution, but not of one BN
            {"model": backbone(1) | {"conv1.weight": backbone(2)["conv1.weight"]}}
            | {"ema": backbone(2) | {PROBE: backbone(1)[PROBE]}},
            "'model/'",
            "ema/",
        ),
    ],
)
def test_encoders_of_which_the_format_knows_nothing_are_named(
    tmp_path: Path, content: dict, taken: str, place: str
) -> None:
    file = write(content, tmp_path / "x.pth")
    found = read_source(file).format
    assert (found.taken, found.not_taken) == (taken, f"--format other --branch {place}")
    assert f", {taken} (or --format other --branch {place})" in describe(inspect(file))
    other = read_source(file, name="other", branch=place)
    assert torch.equal(other.backbone["conv1.weight"], backbone(2)["conv1.weight"])
    assert place not in other.format.not_taken


def test_bn_of_split_batches_becomes_one(tmp_path: Path) -> None:
    """Statistics of two halves of numbers: those of all numbers, with the population's variance."""
    halves = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    halves[1] += 3
    state = dict(backbone(1))
    state["bn1.running_mean"] = halves.mean(1).flatten().float()
    state["bn1.running_var"] = halves.var(1, unbiased=False).flatten().float()
    content = lightly(state, backbone(2))
    merged = read_source(write(content, tmp_path / "x.ckpt")).backbone
    every = halves.reshape(100, 16)
    assert torch.allclose(merged["bn1.running_mean"].double(), every.mean(0))
    assert torch.allclose(merged["bn1.running_var"].double(), every.var(0, unbiased=False))
    assert torch.equal(merged["layer1.0.bn1.running_var"], state["layer1.0.bn1.running_var"])
