"""Load a backbone or a detector into a model, completely or not at all, and report it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convert.backbone_file import Backbone
from convert.completeness import MISSING
from convert.reading import read_checkpoint
from runtime.errors import InputError

log = logging.getLogger("moco")

COUNTER = "num_batches_tracked"  # FrozenBN has none, and nothing is computed from it
STAGES = ("stem", "res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class ModuleReport:
    """What happened to one part of the model: tensors by origin, parameters by fate.

    ``lr`` (before the schedule's factor) and ``weight_decay`` are the optimiser's, as a text: that
    of the weights, then in brackets those of biases and norms that differ. Both are empty where
    nothing is trained.
    """

    module: str
    loaded: int
    initialised: int
    norm: str
    trainable: int
    frozen: int
    lr: str = ""
    weight_decay: str = ""


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
        line = "%-28s %7s %7s  %-22s %9s %7s  %-8s  %s"
        log.info(
            line,
            *("module", "loaded", "random", "norm", "trainable", "frozen", "lr", "weight decay"),
        )
        for part in self.modules:
            values = asdict(part).values()
            log.info(line, *("-" if value == "" else value for value in values))


def load_backbone(
    model: nn.Module,
    backbone: Backbone | None,
    source: str,
    optimizer: torch.optim.Optimizer | None = None,
) -> LoadReport:
    """Copy every array of ``backbone`` into ``model``, in place; None leaves all weights random.

    A name matches the tensor that it is a suffix of (``res5.0.conv1.weight`` is
    ``roi_heads.res5.0.conv1.weight`` in a C4 model), as in Detectron2's matching. Raises
    InputError, before anything is copied, where an array finds no tensor, a shape differs, or a
    tensor of the residual network finds no array: nothing stays random by accident, only what the
    file itself marks as missing on purpose. ``optimizer`` adds its rates to the report.
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
        allowed = {name: name for name, why in backbone.incomplete.items() if why == MISSING}
        on_purpose = _match(state, allowed)
        problems += [
            f"{key} is not in the file"
            for key in state
            if key not in targets and key not in on_purpose and _is_trunk(key)
        ]
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise InputError(f"{source} does not fit the model, {len(problems)} problem(s): {shown}")
    with torch.no_grad():
        for key, name in targets.items():
            state[key].copy_(torch.from_numpy(np.array(arrays[name])))
    return report(model, set(targets), optimizer)


def load_detector(model: nn.Module, path: str | Path) -> LoadReport:
    """Load all tensors of a ``model_final.pth``; InputError where a name or shape differs, or a
    number is not finite.
    """
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
    for name, value in saved.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{str(path)!r}: {name} is not finite: its training diverged")
    model.load_state_dict(saved)
    return report(model, set(state))


def report(
    model: nn.Module, loaded: set[str], optimizer: torch.optim.Optimizer | None = None
) -> LoadReport:
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
    for name, module in _norms(model):
        if (part := _part(f"{name}.weight")) in norms:
            norms[part].add(type(module).__name__)
    lr, decay = (rates(model, optimizer, key) for key in ("lr", "weight_decay"))
    return LoadReport(
        tuple(
            ModuleReport(
                module=part,
                loaded=sum(name in loaded for name in names),
                initialised=sum(name not in loaded for name in names),
                norm="+".join(sorted(norms[part])),
                trainable=sum(n in parameters and parameters[n].requires_grad for n in names),
                frozen=sum(n in parameters and not parameters[n].requires_grad for n in names),
                lr=lr.get(part, ""),
                weight_decay=decay.get(part, ""),
            )
            for part, names in groups.items()
        )
    )


def rates(model: nn.Module, optimizer: torch.optim.Optimizer | None, key: str) -> dict[str, str]:
    """A setting of the optimiser's parameter groups ("lr", "weight_decay") for each part.

    ``0.0001 (norm 0)``: of the weights, and of the biases and norms where they differ. A part
    without a parameter in the optimiser is left out.
    """
    values: dict[torch.Tensor, float] = {}
    for group in optimizer.param_groups if optimizer is not None else ():
        # a schedule has multiplied the rate already, and keeps what it was
        value = group["initial_lr"] if key == "lr" and "initial_lr" in group else group[key]
        values |= dict.fromkeys(group["params"], value)
    norms = {id(p) for _, norm in _norms(model) for p in norm.parameters(recurse=False)}
    found: dict[str, dict[str, set[float]]] = {}
    for name, parameter in model.named_parameters():
        if parameter in values:
            kind = "bias" if name.endswith(".bias") else "weight"
            if id(parameter) in norms:
                kind = "norm" if kind == "weight" else "norm bias"
            kinds = found.setdefault(_part(name), {})
            kinds.setdefault(kind, set()).add(values[parameter])
    return {part: _rates_text(kinds) for part, kinds in found.items()}


def _rates_text(kinds: Mapping[str, set[float]]) -> str:
    texts = {k: "/".join(f"{v:g}" for v in sorted(values)) for k, values in kinds.items()}
    order = ("weight", "bias", "norm", "norm bias")
    main = next(texts[kind] for kind in order if kind in texts)
    usual = {"norm bias": texts.get("norm", main)}  # what the reader will expect of a kind
    others = [
        f"{kind} {texts[kind]}"
        for kind in order
        if kind in texts and texts[kind] != usual.get(kind, main)
    ]
    return f"{main} ({', '.join(others)})" if others else main


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in model.named_modules() if "Norm" in type(m).__name__)


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
