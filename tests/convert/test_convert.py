"""Conversion: complete or refused; equal to the mapping of both official converters."""

from __future__ import annotations

import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, trained

from convert.architecture import BLOCKS, Architecture, identify
from convert.backbone_file import read_backbone
from convert.naming import detectron2_name
from convert.reading import read_checkpoint
from convert.to_detectron2 import convert, convert_file
from pretrain.encoder import build_encoder
from pretrain.moco import MoCo
from runtime.errors import InputError


def official_moco(arch: str = "resnet18", **options: bool) -> dict:
    state = trained(MoCo(arch, 16, 8, **options).state_dict())
    return {
        "epoch": 200,
        "arch": arch,
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "optimizer": {},
    }


def official_names(moco: dict) -> dict[str, np.ndarray]:
    """What the official detection/convert-pretrain.py makes of a checkpoint, by its rules."""
    out = {}
    for key, value in moco["state_dict"].items():
        if not key.startswith("module.encoder_q."):
            continue
        key = key.replace("module.encoder_q.", "")
        if "layer" not in key:
            key = "stem." + key
        for stage in (1, 2, 3, 4):
            key = key.replace(f"layer{stage}", f"res{stage + 1}")
        for i in (1, 2, 3):
            key = key.replace(f"bn{i}", f"conv{i}.norm")
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        out[key] = value.numpy()
    return out


@pytest.mark.parametrize("mlp", [False, True])
def test_equals_the_official_converter(tmp_path: Path, mlp: bool) -> None:
    checkpoint = official_moco("resnet50", mlp=mlp)
    torch.save(checkpoint, tmp_path / "moco.pth.tar")
    converted = convert_file(tmp_path / "moco.pth.tar", tmp_path / "out.pkl")
    expected = official_names(checkpoint)
    arrays = read_backbone(tmp_path / "out.pkl").arrays
    assert len(arrays) == 318
    assert set(expected) - set(arrays) == {n for n in expected if n.startswith("stem.fc.")}
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype
        assert array.tobytes() == expected[name].tobytes(), name
    assert converted.stage_counts() == {"stem": 6, "res2": 60, "res3": 78, "res4": 114, "res5": 60}
    assert converted.format.name == "official MoCo"
    with open(tmp_path / "out.pkl", "rb") as stream:  # as Detectron2 reads it
        raw = pickle.load(stream)
    assert raw["matching_heuristics"] is True
    assert raw["__author__"]


def test_conventions_of_torchvision_style_weights(tmp_path: Path) -> None:
    torch.save(official_moco(), tmp_path / "moco.pth")
    convert_file(tmp_path / "moco.pth", tmp_path / "out.pkl")
    assert read_backbone(tmp_path / "out.pkl").conventions.detectron2_keys() == {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NUM_GROUPS": 1,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    }


def test_query_encoder_is_taken_not_the_key_encoder(tmp_path: Path) -> None:
    checkpoint = official_moco()
    torch.save(checkpoint, tmp_path / "moco.pth")
    arrays = convert(tmp_path / "moco.pth").backbone.arrays
    state = checkpoint["state_dict"]
    stem = torch.from_numpy(arrays["stem.conv1.weight"])
    assert torch.equal(stem, state["module.encoder_q.conv1.weight"])
    assert not torch.equal(stem, state["module.encoder_k.conv1.weight"])


@pytest.mark.parametrize("depth", sorted(BLOCKS.values()))
def test_expected_shapes_are_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    expected = {n: tuple(v.shape) for n, v in state.items() if not n.startswith("fc.")}
    assert Architecture(depth, 64, 64).shapes() == expected
    assert identify(state, "x") == Architecture(depth, 64, 64)


@pytest.mark.parametrize("arch", ["resnet18w0.5x", "resnet50w2x"])
def test_widths_are_read_off_the_tensors(arch: str) -> None:
    with torch.device("meta"):
        state = build_encoder(arch, 10).state_dict()
    found = identify(state, "x")
    assert found.name == arch
    expected = {n: tuple(v.shape) for n, v in state.items() if not n.startswith("fc.")}
    assert found.shapes() == expected


def test_names_map_one_to_one() -> None:
    names = [detectron2_name(name) for name in Architecture(50, 64, 64).shapes()]
    assert len(set(names)) == len(names) == 318
    assert (
        detectron2_name("layer3.0.downsample.1.running_var") == "res4.0.shortcut.norm.running_var"
    )
    assert detectron2_name("bn1.num_batches_tracked") == "stem.conv1.norm.num_batches_tracked"


def damage(checkpoint: dict, how: str) -> None:
    state = checkpoint["state_dict"]
    prefix = "module.encoder_q."
    if how == "missing":
        del state[prefix + "layer3.1.conv2.weight"], state[prefix + "bn1.running_var"]
    elif how == "shape":
        state[prefix + "layer2.0.conv1.weight"] = torch.zeros(1, 64, 3, 3)
    elif how == "nan":
        state[prefix + "layer4.0.bn1.weight"][3] = float("nan")
    elif how == "no tensor":
        state[prefix + "conv1.weight"] = "gone"
    elif how == "key encoder only":
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
    elif how == "a block too many":
        extra = {n: v for n, v in state.items() if n.startswith(prefix + "layer1.1.")}
        state.update({n.replace("layer1.1.", "layer1.2."): v for n, v in extra.items()})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "missing bn1.running_var; missing layer3.1.conv2.weight"),
        ("shape", r"layer2.0.conv1.weight is \(1, 64, 3, 3\) instead of \(128, 64, 3, 3\)"),
        ("nan", "layer4.0.bn1.weight has values that are not finite"),
        ("no tensor", "is a str, not a tensor"),
        ("key encoder only", "none of the known formats"),
        ("a block too many", r"no ResNet-18/34/50/101/152: \(3, 2, 2, 2\)"),
    ],
)
def test_incomplete_checkpoints_are_refused(tmp_path: Path, how: str, message: str) -> None:
    checkpoint = official_moco()
    damage(checkpoint, how)
    torch.save(checkpoint, tmp_path / "moco.pth")
    with pytest.raises(InputError, match=message):
        convert_file(tmp_path / "moco.pth", tmp_path / "out.pkl")
    assert not (tmp_path / "out.pkl").exists()


def test_torchvision_weights(tmp_path: Path) -> None:
    state = trained(torchvision.models.resnet34().state_dict())
    torch.save(state, tmp_path / "r34.pth")
    converted = convert(tmp_path / "r34.pth")
    assert (converted.format.name, converted.architecture.name) == (
        "torchvision",
        "resnet34",
    )
    assert converted.head == ("fc.weight", "fc.bias")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save(official_moco(), good)
    data = bytearray(good.read_bytes())
    (tmp_path / "truncated.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    data[len(data) // 2] ^= 1  # one bit of one weight, which torch.load does not notice
    (tmp_path / "flipped.pth").write_bytes(data)
    torch.save({"state_dict": Fraction(1)}, tmp_path / "objects.pth")
    for name in ("truncated", "empty", "flipped", "objects"):
        with pytest.raises(InputError, match=name):
            read_checkpoint(tmp_path / f"{name}.pth")


def test_command_line(tmp_path: Path) -> None:
    torch.save(official_moco(), tmp_path / "moco.pth")

    def tool(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools/convert_to_d2.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = tool("moco.pth", "out.pkl")
    assert done.returncode == 0, done.stderr
    assert "taking query (not taken: --branch key), resnet18" in done.stdout
    assert "120 tensors, all found" in done.stdout
    (tmp_path / "nothing.pkl").write_bytes(pickle.dumps({"model": {}}))
    for arguments, message in (
        (("nothing.pth", "x.pkl"), "no checkpoint at"),
        (("moco.pth", "x.pth"), "must end in .pkl"),
        (("nothing.pkl", "x.pkl"), "none of the known formats"),
        (("moco.pth", "no/folder/x.pkl"), "there is no folder"),
    ):
        done = tool(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
        assert not list(tmp_path.glob("x.*"))
