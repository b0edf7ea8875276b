"""What a checkpoint, or a file beside it, says of the pixels and the network that it wants."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from layouts import LAYOUTS, detectron2, head, moco, transformers, under
from networks import backbone, write

from convert.backbone_file import read_backbone
from convert.conventions import IMAGENET_RGB, MSRA_BGR
from convert.inspection import describe, inspect
from convert.source import read_source
from convert.to_detectron2 import convert_file
from runtime.errors import InputError


def test_detectron2_file_of_unknown_conventions(tmp_path: Path) -> None:
    """A detector's checkpoint: the config.yaml of its run, or --format, says what it wants."""
    names = {n: torch.from_numpy(v) for n, v in detectron2(backbone(1)).items()}
    model = {
        f"{'roi_heads' if name.startswith('res5') else 'backbone'}.{name}": value
        for name, value in names.items()
    }
    model |= head("roi_heads.res5.norm") | head("proposal_generator.rpn_head.conv")
    file = write({"model": model, "iteration": 9}, tmp_path / "model_final.pth")
    with pytest.raises(InputError, match="does not say its conventions"):
        read_source(file)
    assert read_source(file, name="detectron2-msra").conventions.channel_order == "BGR"
    assert read_source(file, name="Detectron2, torchvision").conventions.channel_order == "RGB"
    (tmp_path / "config.yaml").write_text(
        "MODEL: {PIXEL_MEAN: [1, 2, 3], PIXEL_STD: [4, 5, 6], RESNETS: {STRIDE_IN_1X1: true}}\n"
        "INPUT: {FORMAT: BGR}\n"
    )
    source = read_source(file)
    said = source.conventions
    assert said.detector == "proposal_generator.rpn_head.conv.weight"
    assert ", resnet18w0.25x OF A TRAINED DETECTOR, " in describe(inspect(file))
    assert (said.channel_order, said.pixel_mean, said.pixel_std) == ("BGR", (1, 2, 3), (4, 5, 6))
    assert said.stride_in_1x1
    assert all(torch.equal(source.backbone[n], v) for n, v in backbone(1).items())


@pytest.mark.parametrize("variance", [1.0, 1 - 1e-5])
def test_detectron2_gives_frozen_bn_the_statistics_that_msra_left_out(
    tmp_path: Path, variance: float
) -> None:
    """So the detectors of its zoo have mean 0 and variance 1; as SyncBN they would be spoilt."""
    state = {name: value.clone() for name, value in backbone(1).items()}
    for name, value in state.items():
        if "running" in name:
            value.fill_(variance if name.endswith("var") else 0)
    names = {f"backbone.bottom_up.{n}": v for n, v in detectron2(state).items()}
    file = write({"model": names, "__author__": "Detectron2 Model Zoo"}, tmp_path / "final.pkl")
    source = read_source(file, name="detectron2-msra")
    assert source.conventions.frozen_bn
    assert all(torch.equal(source.backbone[n], v) for n, v in state.items())
    for name, value in names.items():  # as such a network is before its training
        if name.endswith(("norm.weight", "norm.bias")):
            value[:] = name.endswith("weight")
    with pytest.raises(InputError, match="untrained: all 20 norm layers"):
        read_source(write({"model": names}, file), name="detectron2-msra")
    if variance == 1:
        with pytest.raises(InputError, match="untrained: all 20 norm layers"):  # or lost
            read_source(write(state, tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("name", "detector"),
    [
        *(("bbox_head.fcos_cls", True), ("rpn_head.rpn_conv", True), ("neck.mlp.0", False)),
        *(("head.fc", False), ("roi_head.bbox_head.fc_cls", True)),
    ],
)
def test_mmdetections_detectors_are_known(tmp_path: Path, name: str, detector: bool) -> None:
    """They have MMPretrain's layout, and its backbone would pass for a pretrained one."""
    state = under("backbone.", backbone(1)) | head(name)
    content = {"meta": {"cfg": ""}, "state_dict": state}
    file = write(content, tmp_path / "x.pth")
    first = convert_file(file, tmp_path / "a.pkl").backbone
    again = convert_file(tmp_path / "a.pkl", tmp_path / "b.pkl").backbone
    expected = ["the backbone of a trained detector (its file held " + name + ".weight)"]
    assert list(first.doubts()) == list(again.doubts()) == (expected if detector else [])


def test_own_backbone_file_keeps_its_conventions(tmp_path: Path) -> None:
    write({"model": detectron2(backbone(1))}, tmp_path / "msra.pkl")
    first = convert_file(tmp_path / "msra.pkl", tmp_path / "a.pkl", name="detectron2-msra")
    second = convert_file(tmp_path / "a.pkl", tmp_path / "b.pkl")
    assert second.backbone.conventions == first.backbone.conventions
    assert (tmp_path / "a.pkl").read_bytes() == (tmp_path / "b.pkl").read_bytes()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("channel_order", "GBR"),
        ("pixel_mean", "abc"),
        ("pixel_mean", [1.0, float("nan"), 1.0]),
        ("pixel_std", [1.0, 1.0]),
        ("pixel_std", [1.0, 0.0, 1.0]),
        ("stride_in_1x1", "no"),
        ("depth", "18"),
        ("depth", 20),
        ("groups", 0),
        ("pretraining", None),
    ],
)
def test_impossible_conventions_are_refused(tmp_path: Path, entry: str, value: object) -> None:
    convert_file(write(backbone(1), tmp_path / "a.pth"), tmp_path / "a.pkl")
    content = pickle.loads((tmp_path / "a.pkl").read_bytes())
    content["conventions"][entry] = value
    for reads in (read_source, read_backbone):
        with pytest.raises(InputError, match=f"carries impossible conventions, {entry} "):
            reads(write(content, tmp_path / "b.pkl"))


def test_conventions_of_another_network_are_refused(tmp_path: Path) -> None:
    convert_file(write(backbone(1), tmp_path / "a.pth"), tmp_path / "a.pkl")
    content = pickle.loads((tmp_path / "a.pkl").read_bytes())
    content["conventions"]["depth"] = 34
    with pytest.raises(InputError, match=r"says that it is a resnet34.*tensors are of a resnet18"):
        read_source(write(content, tmp_path / "b.pkl"))


def test_conventions_that_a_file_says_or_leaves_open(tmp_path: Path) -> None:
    layouts = {case[0].__name__: case[0] for case in LAYOUTS}
    content = layouts["lightly_train"](backbone(1), backbone(2))
    said = read_source(write(content, tmp_path / "x.ckpt")).conventions
    assert said.pixel_mean == (127.5, 102.0, 76.5)
    assert said.pixel_std == (63.75, 63.75, 51.0)
    assert not said.assumed
    open_ = read_source(write(backbone(1), tmp_path / "timm.safetensors")).conventions
    assert open_.pixel_mean == IMAGENET_RGB["pixel_mean"]
    assert open_.assumed.startswith("RGB, the pixel mean and std of ImageNet, and the stride")
    solo = layouts["solo_learn"](backbone(1), backbone(2))
    said = read_source(write(solo, tmp_path / "solo.ckpt")).conventions
    assert said.assumed == "the pixel mean and std of ImageNet"  # its own code builds the rest
    assert not read_source(
        write(moco(backbone(1), backbone(2)), tmp_path / "m.pth")
    ).conventions.assumed


def test_openmmlab_of_before_mmengine_has_its_configuration_elsewhere(tmp_path: Path) -> None:
    """``meta = dict(openselfsup_version=..., config=cfg.text)``, as in its ``tools/train.py``."""
    cfg = "backbone=dict(style='caffe'); img_norm_cfg = dict(mean=[1, 2, 3], std=[1, 1, 1]"
    for end, mean in ((", to_rgb=False)", (1, 2, 3)), (")", MSRA_BGR["pixel_mean"])):
        content = {"meta": {"config": cfg + end}, "state_dict": under("backbone.", backbone(1))}
        said = read_source(write(content, tmp_path / "x.pth")).conventions
        assert (said.channel_order, said.stride_in_1x1) == ("BGR", True)
        assert said.pixel_mean == mean


@pytest.mark.parametrize(
    ("cfg", "order", "mean", "std"),
    [
        ("dict(mean=[1.0, 2, 3.5], std=[4, 5, 6,], to_rgb=True)", "RGB", (1, 2, 3.5), (4, 5, 6)),
        ("x = dict(mean=(.5, .4, .2), std=(1,) * 3)", "RGB", None, None),  # std is no plain list
        ("dict(mean=[1, 2, 3], std=[1, 1, 1], bgr_to_rgb=False)", "BGR", (1, 2, 3), (1, 1, 1)),
        (
            "a = dict(mean=[0.2, 0.4, 0.6], std=[1, 1, 1], to_rgb=True)\n",
            "RGB",
            (51, 102, 153),
            None,
        ),
        ("dict(mean=[1, 2, 3], std=[1, 1, 1], to_rgb=True); mean=[2, 2, 2]", "RGB", None, None),
    ],
)
def test_openmmlab_says_it_in_its_configuration(
    tmp_path: Path, cfg: str, order: str, mean: tuple | None, std: tuple | None
) -> None:
    content = {"meta": {"cfg": cfg}, "state_dict": under("backbone.", backbone(1))}
    said = read_source(write(content, tmp_path / "x.pth")).conventions
    assert said.channel_order == order
    assert said.pixel_mean == (mean or IMAGENET_RGB["pixel_mean"])
    assert bool(said.assumed) == (mean is None)
    if std is not None:
        assert said.pixel_std == std


def test_transformers_says_it_beside_its_weights(tmp_path: Path) -> None:
    weights = write(transformers(backbone(1), {}), tmp_path / "model.safetensors")
    assert "stride in the 3x3" in read_source(weights).conventions.assumed  # by nobody
    config = {"model_type": "resnet", "hidden_act": "relu", "downsample_in_bottleneck": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = read_source(weights).conventions
    assert (said.stride_in_1x1, said.assumed) == (True, "the pixel mean and std of ImageNet")
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    said = read_source(weights).conventions
    assert (said.pixel_mean, said.pixel_std) == ((127.5, 102, 76.5), (51, 51, 25.5))
    assert (said.stride_in_1x1, said.assumed) == (True, "")
    for key, value, reason in (
        ("downsample_in_first_stage", True, "a stride of 2 in its first stage"),
        ("hidden_act", "gelu", "hidden_act 'gelu'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(InputError, match=f"cannot become a Detectron2 ResNet: {reason}"):
            read_source(weights)
