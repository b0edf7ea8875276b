"""Networks that Detectron2 has not are refused; foreign objects run nothing; official bytes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from argparse import Namespace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from layouts import head, moco
from networks import State, backbone, write

from convert.foreign import Record
from convert.reading import read_checkpoint
from convert.source import read_source
from convert.to_detectron2 import convert, convert_file
from runtime.errors import InputError


@pytest.mark.parametrize("tool", ["moco", "detectron2"])
def test_same_bytes_as_the_official_program(tmp_path: Path, tool: str) -> None:
    """Detectron2's and MoCo's own converters, run as programs on the same checkpoint."""
    script = {
        "moco": "moco/detection/convert-pretrain-to-detectron2.py",
        "detectron2": "detectron2/tools/convert-torchvision-to-d2.py",
    }[tool]
    program = Path(os.environ.get("REFERENCE_CODE", ROOT.parent / "ref")) / script
    if not program.is_file():
        pytest.skip(f"no {program}: name the folder of both checkouts in REFERENCE_CODE")
    state = moco(backbone(1), backbone(2)) if tool == "moco" else backbone(1) | head("fc")
    file = write(state, tmp_path / "in.pth")
    command = [sys.executable, str(program), str(file), str(tmp_path / "official.pkl")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    official = pickle.loads((tmp_path / "official.pkl").read_bytes())["model"]
    arrays = convert(file).backbone.arrays
    left = {name for name in official if name not in arrays}
    assert left == {"stem.fc.weight", "stem.fc.bias"}
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (official[name].dtype, official[name].shape)
        assert array.tobytes() == official[name].tobytes(), name


def test_foreign_objects_are_records_that_run_nothing(tmp_path: Path) -> None:
    """Trainers' objects are read as records; a name of another package is still refused."""

    class Calls:
        def __init__(self, function: Any, *args: Any) -> None:
            self.call = (function, args)

        def __reduce__(self) -> tuple:
            return self.call

    mark = tmp_path / "ran"
    torch.save({"a": Calls(np.save, str(mark), np.ones(2))}, tmp_path / "numpy.pth")
    content = read_checkpoint(tmp_path / "numpy.pth")
    assert isinstance(content["a"], Record)
    meters = [Calls(getattr, 1, "real"), torch.nn.Conv2d(1, 1, 1)]  # mmengine, lightly-train
    torch.save({"a": meters}, tmp_path / "objects.pth")
    assert all(isinstance(a, Record) for a in read_checkpoint(tmp_path / "objects.pth")["a"])
    torch.save({"a": Calls(os.mkdir, str(mark))}, tmp_path / "os.pth")
    torch.save({"a": Calls(shutil.copy, "x", str(mark))}, tmp_path / "copy.pth")
    for name in ("os", "copy"):
        with pytest.raises(InputError, match="cannot be read safely"):
            read_checkpoint(tmp_path / f"{name}.pth")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pth"] * 4


@pytest.mark.parametrize(
    "value",
    [
        Namespace(data=Path("x")),
        partial(torch.optim.SGD, lr=0.1),
        timedelta(1),
        torch.optim.AdamW,
    ],
)
def test_what_a_trainer_was_called_with_is_no_obstacle(tmp_path: Path, value: object) -> None:
    """Lightning keeps its module's arguments under ``hyper_parameters``."""
    content = {"hyper_parameters": {"x": value}, "state_dict": backbone(1)}
    found = read_source(write(content, tmp_path / "x.pth")).backbone
    assert torch.equal(found["conv1.weight"], backbone(1)["conv1.weight"])


def refused(how: str) -> State:
    state = dict(backbone(1))
    if how == "deep stem":
        state["conv1.0.weight"] = state.pop("conv1.weight")[..., :3, :3]
    elif how == "3x3 stem":
        state["conv1.weight"] = state["conv1.weight"][..., :3, :3].clone()
    elif how == "squeeze-and-excitation":
        state["layer1.0.se.fc1.weight"] = torch.ones(2, 2, 1, 1)
    elif how == "average pooling in the shortcut":
        state["layer2.0.downsample.1.weight"] = state.pop("layer2.0.downsample.0.weight")
    elif how == "anti-aliased":
        state["layer2.0.conv2.1.filt"] = torch.ones(2, 1, 3, 3)
    elif how == "without running statistics":
        state = {name: value for name, value in state.items() if "running" not in name}
    return state


@pytest.mark.parametrize(
    "how",
    [
        *("deep stem", "3x3 stem", "squeeze-and-excitation", "average pooling in the shortcut"),
        *("anti-aliased", "without running statistics"),
    ],
)
def test_what_detectron2_cannot_represent(tmp_path: Path, how: str) -> None:
    file = write(refused(how), tmp_path / "x.pth")
    with pytest.raises(InputError, match=f"cannot become a Detectron2 ResNet: .*{how}"):
        convert_file(file, tmp_path / "x.pkl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]


@pytest.mark.parametrize(
    ("more", "name", "message"),
    [
        ({"arch": "resnetblur50"}, "x.pth", "resnetblur50 pools with a blur"),
        ({}, "resnetaa50_a1h-4cf422b3.pth", "pools with a blur"),  # timm's own name for it
        ({"args": Namespace(bn_eps=1e-3)}, "x.pth", "BN with eps 0.001, and it has 1e-05"),
        (
            {"args": Namespace(model_kwargs={"aa_layer": "blur"})},
            "x.pth",
            "ResNet: aa_layer 'blur'",
        ),
        (
            {"meta": {"cfg": "b = dict(norm_cfg=dict(eps=1e-3, type='SyncBN'))"}},
            "x.pth",
            "BN with eps 0.001",
        ),
    ],
)
def test_what_words_in_the_file_say_and_no_tensor(
    tmp_path: Path, more: dict, name: str, message: str
) -> None:
    content = {"state_dict": backbone(1)} | more
    with pytest.raises(InputError, match=message):
        read_source(write(content, tmp_path / name))


def test_plain_words(tmp_path: Path) -> None:
    args = Namespace(bn_eps=None, model_kwargs={"drop_path_rate": 0.1}, mean=None, std=None)
    cfg = "dict(norm_cfg=dict(type='BN', eps=1e-05), head=dict(norm_cfg=dict(type='LN', eps=1e-6)))"
    content = {"arch": "resnet18", "args": args, "meta": {"cfg": cfg}, "state_dict": backbone(1)}
    assert read_source(write(content, tmp_path / "resnet18.pth")).conventions.assumed
    args.mean, args.std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)  # given to timm's train.py
    said = read_source(write(content, tmp_path / "resnet18.pth")).conventions
    assert (said.pixel_mean, said.pixel_std) == ((127.5, 102.0, 76.5), (51.0, 51.0, 63.75))
    assert not said.assumed


def test_timms_configuration_from_the_hub(tmp_path: Path) -> None:
    """``config.json`` as timm 1.0.31's ``save_for_hf`` writes it beside the weights."""
    config = {
        "architecture": "resnet18",
        "model_args": {"in_chans": 3},
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    }
    file = write(backbone(1), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = read_source(file).conventions
    assert (said.pixel_mean, said.pixel_std) == ((127.5,) * 3, (51.0,) * 3)
    assert not said.assumed
    assert read_source(write(backbone(1), tmp_path / "mine.safetensors")).conventions.assumed
    for more, message in (
        ({"architecture": "resnetaa50"}, "resnetaa50 pools with a blur"),
        ({"model_args": {"output_stride": 8}}, "output_stride 8"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        with pytest.raises(InputError, match=message):
            read_source(file)
    (tmp_path / "config.json").write_text("[" * 100_000)  # somebody else's
    assert read_source(file).conventions.assumed
