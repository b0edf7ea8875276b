"""A checkpoint of any known toolkit as one verified ResNet, for a detector or a new run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from convert.architecture import Architecture, identify, is_folded
from convert.completeness import check_complete
from convert.conventions import Conventions, said_beside, said_inside
from convert.detect import Found, all_tensors, backbone_state, detect, head_tensors
from convert.reading import read_checkpoint
from convert.seen_images import SeenImages
from runtime.errors import InputError
from runtime.files import sha256


@dataclass(frozen=True)
class Source:
    """What a checkpoint holds.

    Attributes:
        backbone: every backbone tensor by torchvision's name, in torchvision's order.
        head: the tensors beside it (``fc.*``), by name without the format's prefix.
        architecture: read off the tensors.
        conventions: how pixels must look, and where the weights come from.
        format: the toolkit that wrote it, and the encoder taken.
        tensors: all tensors of the state dict that the backbone is in, by their own names.
        seen: the images that it was pretrained on; None where the file does not say.
        incomplete: name → "missing" or "untrained", what ``--allow-missing`` let pass.
    """

    backbone: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    architecture: Architecture
    conventions: Conventions
    format: Found
    tensors: dict[str, torch.Tensor]
    seen: SeenImages | None
    incomplete: Mapping[str, str]


def read_source(
    path: str | Path, allow_missing: bool = False, *, name: str = "", branch: str = ""
) -> Source:
    """Read, recognise and check a checkpoint.

    ``name`` forces a format and ``branch`` chooses the encoder (``--format``, ``--branch``).
    Raises InputError where it cannot be read, is of no known format, or is not a complete ResNet;
    ``allow_missing`` lets missing and untrained tensors pass.
    """
    source = recognise(path, name=name, branch=branch)
    architecture, state = source.architecture, source.backbone
    incomplete = check_complete(state, architecture, str(path), allow_missing)
    ordered = {name: state[name] for name in architecture.shapes() if name in state}
    return replace(source, backbone=ordered, incomplete=incomplete)


def recognise(path: str | Path, *, name: str = "", branch: str = "") -> Source:
    """Read and recognise a checkpoint without asking whether its backbone is complete."""
    source = str(path)
    content = read_checkpoint(path)
    found = detect(content, source, name, branch)
    state = backbone_state(content, found, source)
    _refuse_by_name(content, source)
    architecture = identify(state, source)
    return Source(
        backbone=state,
        head=head_tensors(content, found),
        architecture=architecture,
        conventions=_conventions(content, found, architecture, is_folded(state), path),
        format=found,
        tensors=all_tensors(content, found),
        seen=SeenImages.from_dict(content.get("seen_images"), source),
        incomplete={},
    )


def _refuse_by_name(content: Mapping[str, Any], source: str) -> None:
    """What no tensor shows, but the ``arch`` entry of a full checkpoint says."""
    arch = content.get("arch")
    if isinstance(arch, str) and ("blur" in arch or "resnetaa" in arch):
        raise InputError(
            f"{source} cannot become a Detectron2 ResNet: {arch} pools with a blur (anti-aliased)"
        )


def _conventions(
    content: Mapping[str, Any],
    found: Found,
    architecture: Architecture,
    folded: bool,
    path: str | Path,
) -> Conventions:
    """Those of the format, overridden by what the file itself says."""
    meta = content.get("meta")
    for entry in (content, meta if isinstance(meta, Mapping) else {}):
        if "conventions" in entry:  # a backbone.pkl of this toolkit, or its export for MMDetection
            return Conventions.from_dict(entry["conventions"], str(path))
    usual = found.format.conventions
    if callable(usual):
        usual = usual(architecture, folded)
    said = said_inside(content, str(path))
    if usual is None:
        usual = said_beside(path)
    elif found.format.configurable and not said:
        said = {"assumed": "the pixel mean and std of ImageNet"}
    return Conventions(
        **{**usual, **said},
        depth=architecture.depth,
        stem_channels=architecture.stem,
        planes=architecture.planes,
        groups=architecture.groups,
        out_channels=architecture.out,
        frozen_bn=folded,
        source_format=found.name,
        branch=found.branch,
        source_sha256=sha256(path),
        pretraining=_pretraining(content),
    )


def _pretraining(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of its pretraining: plain values only."""
    keys = ("arch", "method", "epoch", "step", "config", "data", "versions")
    return {key: content[key] for key in keys if isinstance(content.get(key), str | int | dict)}
