"""Checkpoint → ``backbone.pkl``, or an error that says what is wrong and leaves no file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.architecture import Architecture, check_complete, identify
from convert.backbone_file import Backbone, check_name, write_backbone
from convert.conventions import Conventions
from convert.formats import Format, backbone_state, detect
from convert.reading import read_checkpoint
from convert.seen_images import SeenImages
from runtime.files import sha256

# torchvision's names → Detectron2's (both projects' own converters agree on these)
RENAMES = (
    (re.compile(r"^(conv1|bn1)\."), r"stem.\1."),
    (re.compile(r"^layer([1-4])\."), lambda match: f"res{int(match[1]) + 1}."),
    (re.compile(r"\bdownsample\.0\."), "shortcut."),
    (re.compile(r"\bdownsample\.1\."), "shortcut.norm."),
    (re.compile(r"\bbn([1-3])\."), r"conv\1.norm."),
)


@dataclass(frozen=True)
class Converted:
    """A verified backbone with what was found out about its source."""

    backbone: Backbone
    architecture: Architecture
    format: Format
    head: tuple[str, ...]  # tensors of the head, which a detector does not take over

    def stage_counts(self) -> dict[str, int]:
        """Number of tensors by stage: stem, res2, ..., res5."""
        return dict(Counter(name.split(".", 1)[0] for name in self.backbone.arrays))


def detectron2_name(name: str) -> str:
    """Detectron2's name of a torchvision ResNet tensor."""
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def convert(path: str | Path) -> Converted:
    """Read, recognise and verify a checkpoint.

    Raises InputError where it cannot be read, is of no known format, or is not a complete ResNet.
    """
    source = str(path)
    content = read_checkpoint(path)
    known = detect(content, source)
    state = backbone_state(content, known, source)
    architecture = identify(state, source)
    check_complete(state, architecture, source)
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
    arrays = {detectron2_name(name): _array(state[name]) for name in architecture.shapes()}
    head = tuple(
        name
        for name in content.get("state_dict", content)
        if name.startswith(known.prefix) and name.removeprefix(known.prefix) not in state
    )
    seen = SeenImages.from_dict(content.get("seen_images"), source)
    return Converted(Backbone(arrays, conventions, seen), architecture, known, head)


def convert_file(source: str | Path, target: str | Path) -> Converted:
    """Convert ``source`` and write ``target`` (``.pkl``); nothing is written on an error."""
    check_name(target)
    converted = convert(source)
    write_backbone(target, converted.backbone)
    return converted


def _array(tensor: torch.Tensor) -> np.ndarray:
    kind = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor.detach().to(kind).contiguous().numpy()


def _pretraining(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of its pretraining: plain values only."""
    keys = ("arch", "method", "epoch", "step", "config", "data", "versions")
    return {key: content[key] for key in keys if isinstance(content.get(key), str | int | dict)}
