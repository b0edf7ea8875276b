"""Out again: bit for bit what came in; what a library cannot be told is refused or folded."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import ROOT, trained
from safetensors import safe_open

from convert.conventions import MSRA_BGR
from convert.export import export, write
from convert.reading import read_checkpoint
from convert.source import Source, read_source
from convert.to_detectron2 import convert_file
from convert.verify import images
from runtime.errors import InputError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for arch in ("resnet18", "resnet50"):
        state = trained(getattr(torchvision.models, arch)().state_dict())
        torch.save(state, folder / f"{arch}.pth")
        convert_file(folder / f"{arch}.pth", folder / f"{arch}.pkl")
    return folder


def backbone_of(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].numpy().tobytes() == b[n].numpy().tobytes() for n in a
    )


@pytest.mark.parametrize(
    ("arch", "to", "suffix"),
    [
        ("resnet50", "torchvision", ".pth"),
        ("resnet18", "torchvision", ".safetensors"),
        ("resnet18", "timm", ".pth"),
        ("resnet18", "timm", ".safetensors"),
        ("resnet18", "mmdet", ".pth"),
        ("resnet18", "mmdet", ".safetensors"),
    ],
)
def test_round_trip_is_bit_for_bit(
    weights: Path, tmp_path: Path, arch: str, to: str, suffix: str
) -> None:
    target = tmp_path / f"back{suffix}"
    exported = export(read_source(weights / f"{arch}.pkl"), to)
    if (to, suffix) == ("mmdet", ".safetensors"):
        with pytest.raises(InputError, match="does not read safetensors"):
            write(target, exported, to)
        return
    write(target, exported, to)
    found = read_checkpoint(target)
    found = found["state_dict"] if to == "mmdet" else found
    expected = backbone_of(weights / f"{arch}.pth")
    assert same({name: found[name] for name in expected}, expected)
    assert len(found) == len(expected)
    # and into Detectron2's form again
    again = convert_file(target, tmp_path / "again.pkl").backbone.arrays
    first = convert_file(weights / f"{arch}.pth", tmp_path / "first.pkl").backbone.arrays
    assert list(again) == list(first)
    assert all(again[name].tobytes() == first[name].tobytes() for name in first)


@torch.no_grad()
def torchvision_features(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    model = torchvision.models.resnet50()
    model.fc = torch.nn.Identity()
    model.load_state_dict(state)
    model.eval()
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


def with_conventions(source: Source, **changes: object) -> Source:
    return replace(source, conventions=replace(source.conventions, **changes))  # type: ignore[arg-type]


def test_msra_conventions_are_refused_or_folded(weights: Path) -> None:
    source = read_source(weights / "resnet50.pkl")
    msra = with_conventions(source, **MSRA_BGR)
    for to in ("torchvision", "timm"):
        with pytest.raises(InputError, match=r"strides in the 1x1 convolutions \(MSRA\)"):
            export(msra, to, fold=True)
    caffe = export(msra, "mmdet")
    assert same(caffe.state, source.backbone)
    assert "style='caffe'" in caffe.usage[0]
    assert "std=[1.0, 1.0, 1.0], bgr_to_rgb=False" in caffe.usage[2]

    colours = with_conventions(msra, stride_in_1x1=False)
    with pytest.raises(InputError, match=r"need BGR and pixel std \[1.0, 1.0, 1.0\], and users"):
        export(colours, "torchvision")
    with pytest.raises(InputError, match="another mean cannot be folded"):
        export(with_conventions(colours, pixel_mean=(0.0, 0.0, 0.0)), "timm", fold=True)

    # The same pixels, normalised for the weights (BGR, std 1) and as torchvision's users do.
    folded = export(colours, "torchvision", fold=True)
    pixels = images() * 50 + torch.tensor([103.53, 116.28, 123.675]).view(1, 3, 1, 1)  # BGR
    raw = pixels - torch.tensor([103.53, 116.28, 123.675]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    expected = torchvision_features(source.backbone, raw)
    found = torchvision_features(folded.state, (pixels.flip(1) - mean) / std)
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5
    assert folded.metadata["channel_order"] == "RGB"


def test_conventions_come_back_from_an_export_for_mmdetection(
    weights: Path, tmp_path: Path
) -> None:
    """It cannot be told from torchvision's weights by its tensors."""
    msra = with_conventions(read_source(weights / "resnet50.pkl"), **MSRA_BGR)
    write(tmp_path / "caffe.pth", export(msra, "mmdet"), "mmdet")
    assert read_source(tmp_path / "caffe.pth").conventions == msra.conventions


def test_channel_order_alone_is_folded_without_rounding(weights: Path) -> None:
    source = read_source(weights / "resnet18.pkl")
    conventions = source.conventions
    bgr = with_conventions(
        source,
        channel_order="BGR",
        pixel_mean=conventions.pixel_mean[::-1],
        pixel_std=conventions.pixel_std[::-1],
    )
    found = export(bgr, "timm", fold=True)
    assert found.changed == ("BGR",)
    assert torch.equal(found.state["conv1.weight"], source.backbone["conv1.weight"].flip(1))


def test_backbone_of_a_fine_tuned_detector(weights: Path, tmp_path: Path) -> None:
    """Its res5 is under roi_heads in a C4 model, with the rest under backbone."""
    content = read_checkpoint(weights / "resnet50.pkl")["model"]
    model = {
        ("roi_heads." if name.startswith("res5") else "backbone.") + name: torch.from_numpy(array)
        for name, array in content.items()
        if not name.endswith("num_batches_tracked")
    }
    model["proposal_generator.rpn_head.conv.weight"] = torch.randn(4, 4, 3, 3)
    model["roi_heads.res5.norm.weight"] = torch.ones(2048)
    torch.save({"model": model, "iteration": 7}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(
        "INPUT:\n  FORMAT: RGB\nMODEL:\n  PIXEL_MEAN: [123.675, 116.28, 103.53]\n"
        "  PIXEL_STD: [58.395, 57.12, 57.375]\n  RESNETS:\n    STRIDE_IN_1X1: false\n"
    )
    exported = export(read_source(tmp_path / "model_final.pth"), "torchvision")
    expected = backbone_of(weights / "resnet50.pth")
    expected = {n: v for n, v in expected.items() if not n.endswith("num_batches_tracked")}
    assert same(exported.state, expected)
    torchvision_features(exported.state, images())  # loads strictly


def test_models_that_a_library_does_not_have(weights: Path) -> None:
    source = read_source(weights / "resnet18.pkl")
    wide = replace(source, architecture=replace(source.architecture, planes=128, out=128))
    for to, message in (("timm", "timm has no resnet18w2x"), ("mmdet", "MMDetection has no")):
        with pytest.raises(InputError, match=message):
            export(wide, to)


def test_command_line(weights: Path, tmp_path: Path) -> None:
    def tool(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools/export_backbone.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)

    done = tool(str(weights / "resnet18.pkl"), "out.safetensors", "--to", "timm")
    assert done.returncode == 0, done.stderr
    line = "timm.create_model('resnet18', num_classes=0, checkpoint_path='out.safetensors')"
    assert line in done.stdout
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["conventions"])["channel_order"] == "RGB"
    pkl, pth = weights / "resnet18.pkl", weights / "resnet18.pth"
    before = pth.read_bytes()
    for source, target, message in (
        (pkl, "out.pkl", "must end in .pth or .safetensors"),
        (pkl, "no/out.pth", "there is no folder"),
        (pth, str(pth), "resnet18.pth would be overwritten"),
        (pkl, "/proc/x.pth", "cannot write '/proc/x.pth'"),
    ):
        done = tool(str(source), target, "--to", "timm")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
    assert pth.read_bytes() == before
