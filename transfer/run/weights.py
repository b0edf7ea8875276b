"""Load a backbone or a detector into a model, completely or not at all, and report it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convert.backbone_file import Backbone
from convert.reading import read_checkpoint
from runtime.errors import InputError

log = logging.getLogger("moco")

COUNTER = "num_batches_tracked"  # FrozenBN has none, and nothing is computed from it
STAGES = ("stem", "res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class ModuleReport:
    """What happened to one part of the model: tensors by origin, parameters by fate."""

    module: str
    loaded: int
    initialised: int
    norm: str
    trainable: int
    frozen: int


@dataclass(frozen=True)
class LoadReport:
    """All parts of the model, in its order."""

    modules: tuple[ModuleReport, ...]

    @property
    def loaded(self) -> int:
        """Tensors taken from the file."""
        return sum(part.loaded for part in self.modules)

    @property
    def initialised(self) -> int:
        """Tensors left at their random initial values."""
        return sum(part.initialised for part in self.modules)

    def to_dict(self) -> dict[str, Any]:
        """For ``results.json``."""
        return {
            "loaded": self.loaded,
            "initialised": self.initialised,
            "modules": [asdict(part) for part in self.modules],
        }

    def log(self) -> None:
        """Print the table."""
        log.info(
            "%-28s %7s %7s  %-22s %9s %7s",
            "module",
            "loaded",
            "random",
            "norm",
            "trainable",
            "frozen",
        )
        for part in self.modules:
            log.info(
                "%-28s %7d %7d  %-22s %9d %7d",
                *(part.module, part.loaded, part.initialised, part.norm or "-"),
                *(part.trainable, part.frozen),
            )


def load_backbone(model: nn.Module, backbone: Backbone | None, source: str) -> LoadReport:
    """Copy every array of ``backbone`` into ``model``, in place; None leaves all weights random.

    A name matches the tensor that it is a suffix of (``res5.0.conv1.weight`` is
    ``roi_heads.res5.0.conv1.weight`` in a C4 model), as in Detectron2's matching. Raises
    InputError, before anything is copied, where an array finds no tensor, a shape differs, or a
    tensor of the residual network finds no array: nothing stays random by accident.
    """
    state = model.state_dict()
    arrays = {} if backbone is None else backbone.arrays
    targets = _match(state, arrays)
    problems = [
        f"{name} has no place in the model"
        for name in arrays
        if name not in targets.values() and not name.endswith(COUNTER)
    ]
    for key, name in targets.items():
        if tuple(state[key].shape) != arrays[name].shape:
            problems.append(f"{name} is {arrays[name].shape}, {key} {tuple(state[key].shape)}")
    if backbone is not None:
        problems += [
            f"{key} is not in the file" for key in state if key not in targets and _is_trunk(key)
        ]
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise InputError(f"{source} does not fit the model, {len(problems)} problem(s): {shown}")
    with torch.no_grad():
        for key, name in targets.items():
            state[key].copy_(torch.from_numpy(np.array(arrays[name])))
    return report(model, set(targets))


def load_detector(model: nn.Module, path: str | Path) -> LoadReport:
    """Load all tensors of a ``model_final.pth``; InputError where a name or shape differs."""
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{str(path)!r} is no detector checkpoint: it has no 'model' entry")
    state, saved = model.state_dict(), content["model"]
    wrong = [name for name in state if name not in saved or saved[name].shape != state[name].shape]
    wrong += [name for name in saved if name not in state]
    if wrong:
        raise InputError(
            f"{str(path)!r} does not fit this recipe's model: {len(wrong)} tensors differ, first "
            f"{wrong[0]}"
        )
    model.load_state_dict(saved)
    return report(model, set(state))


def report(model: nn.Module, loaded: set[str]) -> LoadReport:
    """Group the tensors of ``model`` by part; ``loaded`` are those that came from a file.

    Batch counters are left out: nothing is computed from them, and many files lack them.
    """
    groups: dict[str, list[str]] = {}
    for name in model.state_dict():
        if name.endswith(COUNTER):
            continue
        groups.setdefault(_part(name), []).append(name)
    parameters = dict(model.named_parameters())
    norms: dict[str, set[str]] = {part: set() for part in groups}
    for name, module in model.named_modules():
        if "Norm" in type(module).__name__ and (part := _part(f"{name}.weight")) in norms:
            norms[part].add(type(module).__name__)
    return LoadReport(
        tuple(
            ModuleReport(
                module=part,
                loaded=sum(name in loaded for name in names),
                initialised=sum(name not in loaded for name in names),
                norm="+".join(sorted(norms[part])),
                trainable=sum(n in parameters and parameters[n].requires_grad for n in names),
                frozen=sum(n in parameters and not parameters[n].requires_grad for n in names),
            )
            for part, names in groups.items()
        )
    )


def _match(state: Mapping[str, torch.Tensor], arrays: Mapping[str, Any]) -> dict[str, str]:
    """Model tensor → array: the longest array name that ends it at a dot."""
    out = {}
    for key in state:
        pieces = key.split(".")
        suffixes = (".".join(pieces[i:]) for i in range(len(pieces)))
        name = next((suffix for suffix in suffixes if suffix in arrays), None)
        if name is not None:
            out[key] = name
    return out


def _is_trunk(key: str) -> bool:
    """Whether a tensor belongs to the residual network that pretraining has made.

    The extra norm after res5 (``roi_heads.res5.norm``) is new in the detector.
    """
    pieces = key.split(".")
    stage = next((i for i, piece in enumerate(pieces) if piece in STAGES), None)
    if stage is None or key.endswith(COUNTER):
        return False
    return pieces[stage] == "stem" or pieces[stage + 1].isdigit()


def _part(name: str) -> str:
    """The part that a tensor is reported under: its stage, or the first two names."""
    pieces = name.split(".")
    for i, piece in enumerate(pieces):
        if piece in STAGES:
            extra = piece != "stem" and not pieces[i + 1].isdigit()
            return ".".join(pieces[: i + 2] if extra else pieces[: i + 1])
    return ".".join(pieces[:2]) if len(pieces) > 2 else pieces[0]
