"""Checkpoint → ``backbone.pkl``, or an error that says what is wrong and leaves no file."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from convert.architecture import Architecture
from convert.backbone_file import Backbone, check_name, write_backbone
from convert.formats import Format
from convert.source import read_source

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
    source = read_source(path)
    arrays = {detectron2_name(name): _array(value) for name, value in source.backbone.items()}
    head = tuple(source.format.prefix + name for name in source.head)
    backbone = Backbone(arrays, source.conventions, source.seen)
    return Converted(backbone, source.architecture, source.format, head)


def convert_file(source: str | Path, target: str | Path) -> Converted:
    """Convert ``source`` and write ``target`` (``.pkl``); nothing is written on an error."""
    check_name(target)
    converted = convert(source)
    write_backbone(target, converted.backbone)
    return converted


def _array(tensor: torch.Tensor) -> np.ndarray:
    kind = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor.detach().to(kind).contiguous().numpy()
