"""Checkpoint → ``backbone.pkl``, or an error that says what is wrong and leaves no file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from convert.architecture import Architecture
from convert.backbone_file import Backbone, check_name, write_backbone
from convert.detect import Found
from convert.naming import detectron2_name
from convert.output import check_output, writing
from convert.source import read_source
from convert.verify import TORCHVISION, Verification, features, verify
from convert.yaml_beside import check_yaml, write_yaml
from runtime.errors import InputError


@dataclass(frozen=True)
class Converted:
    """A verified backbone with what was found out about its source."""

    backbone: Backbone
    architecture: Architecture
    format: Found
    head: tuple[str, ...]  # tensors of the head, which a detector does not take over
    verification: Verification
    features: dict[str, torch.Tensor]  # of the checkpoint, by stage

    def stage_counts(self) -> dict[str, int]:
        """Number of tensors by stage: stem, res2, ..., res5."""
        return dict(Counter(name.split(".", 1)[0] for name in self.backbone.arrays))


def convert(
    path: str | Path,
    allow_missing: bool = False,
    with_detectron2: bool = False,
    *,
    name: str = "",
    branch: str = "",
) -> Converted:
    """Read, check and convert a checkpoint; compare the features of both.

    ``name`` forces a format and ``branch`` chooses the encoder (``--format``, ``--branch``).
    ``allow_missing`` lets missing and untrained tensors pass and notes them in the backbone.
    Raises InputError where it cannot be read, is of no known format, or is not a complete ResNet.
    """
    source = read_source(path, allow_missing, name=name, branch=branch)
    conventions = source.conventions
    arrays = {detectron2_name(name): _array(value) for name, value in source.backbone.items()}
    expected = features(
        source.backbone, TORCHVISION, source.architecture, conventions.stride_in_1x1
    )
    keys = conventions.detectron2_keys()
    verification = verify(arrays, expected, source.architecture, keys, str(path), with_detectron2)
    backbone = Backbone(
        arrays,
        conventions,
        source.seen,
        {detectron2_name(f"{name}.").rstrip("."): why for name, why in source.incomplete.items()},
        verification.to_dict(),
    )
    head = tuple(source.format.prefix + name for name in source.head)
    return Converted(backbone, source.architecture, source.format, head, verification, expected)


def convert_file(
    source: str | Path,
    target: str | Path,
    allow_missing: bool = False,
    with_detectron2: bool = False,
    *,
    name: str = "",
    branch: str = "",
) -> Converted:
    """Convert ``source`` and write ``target`` (``.pkl``) and the ``.yaml`` beside it.

    Nothing is written on an error.

    What was written is read back and compared with the checkpoint in its turn before it gets its
    name.
    """
    check_name(target)
    check_output(target, source)
    if not check_yaml(target).exists() and Path(target).exists():
        raise InputError(f"{target} would be overwritten, and no .yaml of this tool lies beside it")
    converted = convert(source, allow_missing, with_detectron2, name=name, branch=branch)
    with writing(target):
        write_backbone(
            target,
            converted.backbone,
            lambda written: _check_written(written, converted, str(target)),
        )
        write_yaml(target, converted.backbone.conventions)
    return converted


def _check_written(written: Backbone, converted: Converted, name: str) -> None:
    meant = converted.backbone
    same = list(written.arrays) == list(meant.arrays) and all(
        array.dtype == meant.arrays[key].dtype and np.array_equal(array, meant.arrays[key])
        for key, array in written.arrays.items()
    )
    if not same or written.conventions.to_dict() != meant.conventions.to_dict():
        raise InputError(f"{name} reads back different from what was written: is the disk sound?")
    keys = written.conventions.detectron2_keys()
    verify(written.arrays, converted.features, converted.architecture, keys, name)


def _array(tensor: torch.Tensor) -> np.ndarray:
    kind = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor.detach().to(kind).contiguous().numpy()
