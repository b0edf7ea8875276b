"""A backbone for other libraries: torchvision, timm and MMDetection, as ``.pth`` or safetensors.

All three name a ResNet's tensors alike. What differs is how pixels must look, and where a
bottleneck has its stride: what a library cannot be told is folded into the weights on request, or
refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convert.conventions import IMAGENET_RGB, Conventions
from convert.output import writing
from convert.source import Source
from runtime.errors import InputError
from runtime.files import atomic_write

TARGETS = ("torchvision", "timm", "mmdet")
SUFFIXES = (".pth", ".safetensors")
MODELS = frozenset(  # that torchvision and timm have, under one name
    (
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *("wide_resnet50_2", "wide_resnet101_2"),
    )
)


@dataclass(frozen=True)
class Exported:
    """What to write.

    Attributes:
        state: tensors by the library's names.
        changed: what was folded into the weights, in words; empty where nothing was.
        usage: lines of code that load the file, with ``FILE`` for its name.
        metadata: the conventions that hold for ``state``, and where it comes from.
    """

    state: dict[str, torch.Tensor]
    changed: tuple[str, ...]
    usage: tuple[str, ...]
    metadata: dict[str, Any]


def export(source: Source, to: str, fold: bool = False) -> Exported:
    """The backbone of ``source`` for the library ``to``.

    ``fold`` lets channel order and pixel std go into the first convolution, for libraries whose
    users normalise by ImageNet's RGB mean and std. Raises InputError where the library has no such
    model, or cannot be told what these weights need.
    """
    _check_model(source, to)
    state, changed = dict(source.backbone), []
    metadata = source.conventions.to_dict()
    if to == "mmdet":
        return Exported(state, (), _mmdet_usage(source), metadata)
    if source.conventions.stride_in_1x1 and source.architecture.bottleneck:
        raise InputError(
            f"these weights have their strides in the 1x1 convolutions (MSRA), {to} in the 3x3: "
            "it would compute other features; --to mmdet can say so (style='caffe')"
        )
    changed = _needed(source.conventions)
    if changed and not fold:
        raise InputError(
            f"these weights need {' and '.join(changed)}, and users of {to} feed RGB by ImageNet's "
            "mean and std: give --fold to change the first convolution accordingly"
        )
    if changed:
        state["conv1.weight"] = _folded(state["conv1.weight"], source.conventions)
        metadata |= {**IMAGENET_RGB, "stride_in_1x1": False}
    return Exported(state, tuple(changed), _usage(source.architecture.name, to), metadata)


def _check_model(source: Source, to: str) -> None:
    architecture = source.architecture
    standard = architecture.name in MODELS
    if to != "mmdet" and not standard:
        raise InputError(f"{to} has no {architecture.name}: its ResNets have the standard widths")
    if to == "mmdet" and (not standard or architecture.name.startswith("wide")):
        raise InputError(f"MMDetection has no {architecture.name}")


def _needed(conventions: Conventions) -> list[str]:
    """What these weights need that is not ImageNet's RGB mean and std. InputError for the mean.

    Another mean cannot go into a convolution without bias whose borders are padded with zeros.
    """
    flipped = conventions.channel_order == "BGR"
    mean = conventions.pixel_mean[::-1] if flipped else conventions.pixel_mean
    std = conventions.pixel_std[::-1] if flipped else conventions.pixel_std
    if not _close(mean, IMAGENET_RGB["pixel_mean"]):
        raise InputError(
            f"these weights need the pixel mean {list(mean)} (RGB), and another mean cannot be "
            "folded into a convolution without bias; --to mmdet can say so (data_preprocessor)"
        )
    needed = ["BGR"] if flipped else []
    return needed + ([] if _close(std, IMAGENET_RGB["pixel_std"]) else [f"pixel std {list(std)}"])


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(abs(x - y) <= 1e-3 * abs(y) for x, y in zip(a, b, strict=True))


def _folded(weight: torch.Tensor, conventions: Conventions) -> torch.Tensor:
    """conv1 (N x 3 x 7 x 7) for RGB pixels that are divided by ImageNet's std."""
    std = torch.tensor(conventions.pixel_std, dtype=torch.float64)
    if conventions.channel_order == "BGR":
        weight, std = weight.flip(1), std.flip(0)
    theirs = torch.tensor(IMAGENET_RGB["pixel_std"], dtype=torch.float64)
    if _close(tuple(std.tolist()), IMAGENET_RGB["pixel_std"]):
        return weight.contiguous()  # bit for bit
    return (weight.double() * (theirs / std).view(1, 3, 1, 1)).to(weight.dtype)


def _usage(name: str, to: str) -> tuple[str, ...]:
    if to == "timm":
        return (f"timm.create_model('{name}', num_classes=0, checkpoint_path='FILE')",)
    return (
        f"model = torchvision.models.{name}(); model.fc = torch.nn.Identity()",
        "model.load_state_dict(torch.load('FILE', weights_only=True))",
    )


def _mmdet_usage(source: Source) -> tuple[str, ...]:
    """The parts of an MMDetection configuration (version 3) that these weights need."""
    conventions, architecture = source.conventions, source.architecture
    kind = "ResNeXt" if architecture.groups > 1 else "ResNet"
    groups = (
        f"groups={architecture.groups}, base_width={architecture.planes // architecture.groups}, "
        if architecture.groups > 1
        else ""
    )
    style = "caffe" if conventions.stride_in_1x1 else "pytorch"
    return (
        f"backbone=dict(type='{kind}', depth={architecture.depth}, {groups}style='{style}',",
        "    init_cfg=dict(type='Pretrained', checkpoint='FILE'))",
        f"data_preprocessor=dict(mean={list(conventions.pixel_mean)}, "
        f"std={list(conventions.pixel_std)}, bgr_to_rgb={conventions.channel_order == 'RGB'})",
    )


def check_target(path: str | Path, to: str) -> None:
    """InputError where the name's ending does not fit."""
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise InputError(f"{str(target)!r} must end in {' or '.join(SUFFIXES)}")
    if target.suffix == ".safetensors" and to == "mmdet":
        raise InputError("MMDetection does not read safetensors: name a .pth")


def write(path: str | Path, exported: Exported, to: str) -> None:
    """Write ``exported`` atomically; what was written is read back before it gets its name."""
    check_target(path, to)
    tensors = {name: value.detach().contiguous() for name, value in exported.state.items()}
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load, save

        content = save(tensors, {"format": "pt", "conventions": json.dumps(exported.metadata)})
        back = load(content)
    else:
        stream = io.BytesIO()
        whole = {"meta": {"conventions": exported.metadata}, "state_dict": tensors}
        torch.save(whole if to == "mmdet" else tensors, stream)
        content = stream.getvalue()
        stream.seek(0)
        back = torch.load(stream, weights_only=True)
        back = back["state_dict"] if to == "mmdet" else back
    _check_equal(back, tensors, path)
    with writing(path), atomic_write(path) as file:
        file.write(content)


def _check_equal(
    back: Mapping[str, torch.Tensor], meant: Mapping[str, torch.Tensor], path: str | Path
) -> None:
    if back.keys() != meant.keys() or not all(torch.equal(back[n], meant[n]) for n in meant):
        raise InputError(f"{path} would read back different from what was meant")
