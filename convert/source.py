"""A checkpoint of any known toolkit as one verified ResNet, for a detector or a new run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from convert.architecture import Architecture, identify
from convert.completeness import check_complete
from convert.conventions import Conventions
from convert.formats import Format, backbone_state, detect
from convert.reading import read_checkpoint
from convert.seen_images import SeenImages
from runtime.files import sha256


@dataclass(frozen=True)
class Source:
    """What a checkpoint holds.

    Attributes:
        backbone: every backbone tensor by torchvision's name, in torchvision's order.
        head: the tensors of its head (``fc.*``), by name without the format's prefix.
        architecture: read off the tensors.
        conventions: how pixels must look, and where the weights come from.
        format: the toolkit that wrote it.
        tensors: all tensors of the file, by their own names.
        seen: the images that it was pretrained on; None where the file does not say.
        incomplete: name → "missing" or "untrained", what ``--allow-missing`` let pass.
    """

    backbone: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    architecture: Architecture
    conventions: Conventions
    format: Format
    tensors: dict[str, torch.Tensor]
    seen: SeenImages | None
    incomplete: Mapping[str, str]


def read_source(path: str | Path, allow_missing: bool = False) -> Source:
    """Read, recognise and check a checkpoint.

    Raises InputError where it cannot be read, is of no known format, or is not a complete ResNet;
    ``allow_missing`` lets missing and untrained tensors pass.
    """
    source = recognise(path)
    architecture, state = source.architecture, source.backbone
    incomplete = check_complete(state, architecture, str(path), allow_missing)
    ordered = {name: state[name] for name in architecture.shapes() if name in state}
    return replace(source, backbone=ordered, incomplete=incomplete)


def recognise(path: str | Path) -> Source:
    """Read and recognise a checkpoint without asking whether its backbone is complete."""
    source = str(path)
    content = read_checkpoint(path)
    known = detect(content, source)
    state = backbone_state(content, known, source)
    architecture = identify(state, source)
    conventions = Conventions(
        **known.conventions,
        depth=architecture.depth,
        stem_channels=architecture.stem,
        planes=architecture.planes,
        source_format=known.name,
        branch=known.branch,
        source_sha256=sha256(path),
        pretraining=_pretraining(content),
    )
    tensors = {
        str(name): value
        for name, value in content.get("state_dict", content).items()
        if isinstance(value, torch.Tensor)
    }
    mine = {
        n.removeprefix(known.prefix): t for n, t in tensors.items() if n.startswith(known.prefix)
    }
    return Source(
        backbone=state,
        head={name: tensor for name, tensor in mine.items() if name not in state},
        architecture=architecture,
        conventions=conventions,
        format=known,
        tensors=tensors,
        seen=SeenImages.from_dict(content.get("seen_images"), source),
        incomplete={},
    )


def _pretraining(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of its pretraining: plain values only."""
    keys = ("arch", "method", "epoch", "step", "config", "data", "versions")
    return {key: content[key] for key in keys if isinstance(content.get(key), str | int | dict)}
