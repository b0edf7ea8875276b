"""What is in a checkpoint, without converting it: for a reader, and plain values for a script."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from convert.completeness import examine
from convert.naming import detectron2_name
from convert.source import recognise


def inspect(path: str | Path, *, name: str = "", branch: str = "") -> dict[str, Any]:
    """Format, architecture, branch, parameters, statistics by stage, conventions and problems.

    Raises InputError where the file cannot be read or holds no ResNet. What would stop a
    conversion is listed under ``problems``.
    """
    source = recognise(path, name=name, branch=branch)
    findings = examine(source.backbone, source.architecture, source.conventions.frozen_bn)
    stages: dict[str, list[str]] = {}
    for name in source.backbone:
        stages.setdefault(detectron2_name(name).split(".", 1)[0], []).append(name)
    return {
        "file": str(path),
        "format": source.format.name,
        "branch": source.conventions.branch,
        "other_branches": list(source.format.others),
        "elsewhere": list(source.format.elsewhere),
        "taken": source.format.taken,
        "not_taken": source.format.not_taken,
        "architecture": source.architecture.name,
        "parameters": sum(_count(source.backbone, names) for names in stages.values()),
        "stages": {stage: _statistics(source.backbone, names) for stage, names in stages.items()},
        "head": list(source.head),
        "conventions": source.conventions.to_dict(),
        "detectron2": source.conventions.detectron2_keys(),
        "seen_images": source.seen.total if source.seen else None,
        "problems": findings.sentences(),
    }


def _is_parameter(name: str) -> bool:
    return name.endswith((".weight", ".bias"))


def _count(state: Mapping[str, torch.Tensor], names: list[str]) -> int:
    return sum(state[name].numel() for name in names if _is_parameter(name))


def _statistics(state: Mapping[str, torch.Tensor], names: list[str]) -> dict[str, Any]:
    """Of one stage; None where not finite.

    Deviations are about 0; the variances of dead channels are near 0.
    """
    values = {
        "convolution_std": [n for n in names if state[n].ndim == 4],
        "norm_weight_mean": [n for n in names if n.endswith(".weight") and state[n].ndim == 1],
        "running_mean_std": [n for n in names if n.endswith(".running_mean")],
        "running_var_mean": [n for n in names if n.endswith(".running_var")],
    }
    out: dict[str, Any] = {"tensors": len(names), "parameters": _count(state, names)}
    for what, chosen in values.items():
        joined = torch.cat([state[n].flatten().float() for n in chosen] or [torch.zeros(0)])
        square = joined.square() if what.endswith("std") else joined
        mean = float(square.mean()) if len(joined) else math.nan
        value = mean**0.5 if what.endswith("std") else mean
        out[what] = value if math.isfinite(value) else None  # JSON has no NaN
    return out


def describe(found: Mapping[str, Any]) -> str:
    """The lines of ``--inspect`` for what :func:`inspect` found."""
    branch = f", {found['taken']} (or {found['not_taken']})" if found["not_taken"] else ""
    detector = " OF A TRAINED DETECTOR" if "detector" in found["conventions"]["pretraining"] else ""
    lines = [
        f"{found['file']}: {found['format']}{branch}, {found['architecture']}{detector}, "
        f"{found['parameters']:,} parameters",
        "  stage  tensors  parameters  conv std  norm weight  running mean std  running var",
    ]
    for stage, row in found["stages"].items():
        columns = (("convolution_std", 8), ("norm_weight_mean", 11), ("running_mean_std", 16))
        numbers = [
            _number(row[what], width) for what, width in (*columns, ("running_var_mean", 11))
        ]
        lines.append(
            f"  {stage:5s}  {row['tensors']:7d}  {row['parameters']:10,d}  {'  '.join(numbers)}"
        )
    lines += [f"  {key}: {value}" for key, value in found["detectron2"].items()]
    if assumed := found["conventions"]["assumed"]:
        lines.append(f"  assumed, because the file does not say: {assumed}")
    lines.append(f"  head: {', '.join(found['head']) or 'none'}")
    if found["seen_images"] is not None:
        lines.append(f"  remembers that it was pretrained on {found['seen_images']} images")
    lines += [f"  problem: {problem}" for problem in found["problems"]]
    return "\n".join([*lines, "  would convert" if not found["problems"] else "  would be refused"])


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}s}" if value is None else f"{value:{width}.4g}"
