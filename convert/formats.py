"""Who wrote this checkpoint? A table of formats, detected from the content.

A row says how a format is recognised, which prefix its backbone has, and its conventions. To add a
toolkit, add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from convert.conventions import IMAGENET_RGB
from runtime.errors import InputError

HEADS = ("fc.",)  # classifier or projection: what a detector does not take over


@dataclass(frozen=True)
class Format:
    """One layout of checkpoints.

    Attributes:
        name: shown to the user, and the value of ``--format``.
        prefix: of the backbone's tensors in the state dict.
        matches: whether a file's content has this layout.
        branch: which of several encoders ``prefix`` names.
        conventions: of weights in this layout.
    """

    name: str
    prefix: str
    matches: Callable[[Mapping[str, Any]], bool]
    branch: str = ""
    conventions: Mapping[str, Any] = field(default_factory=lambda: IMAGENET_RGB)


def _state(content: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = content.get("state_dict", content)
    return inner if isinstance(inner, Mapping) else {}


def _has(content: Mapping[str, Any], name: str) -> bool:
    return name in _state(content)


FORMATS = (
    Format(
        "this toolkit, MoCo",
        "module.encoder_q.",
        lambda c: c.get("method") == "moco" and _has(c, "module.encoder_q.conv1.weight"),
        branch="encoder_q (query)",
    ),
    Format(
        "this toolkit, supervised",
        "module.",
        lambda c: c.get("method") == "supervised" and _has(c, "module.conv1.weight"),
    ),
    Format(
        "official MoCo",
        "module.encoder_q.",
        lambda c: _has(c, "module.encoder_q.conv1.weight"),
        branch="encoder_q (query)",
    ),
    Format("torchvision", "", lambda c: _has(c, "conv1.weight")),
)


def detect(content: Any, source: str) -> Format:
    """The first format that the content of ``source`` matches. InputError where none does."""
    if isinstance(content, Mapping):
        for known in FORMATS:
            if known.matches(content):
                return known
    names = ", ".join(known.name for known in FORMATS)
    example = ", ".join(str(name) for name in list(_names(content))[:3]) or "nothing"
    raise InputError(f"{source} has none of the known formats ({names}); it holds {example} ...")


def _names(content: Any) -> list[Any]:
    return list(_state(content)) if isinstance(content, Mapping) else []


def backbone_state(
    content: Mapping[str, Any], known: Format, source: str
) -> dict[str, torch.Tensor]:
    """The backbone's tensors under torchvision's names, without the head.

    Raises InputError where an entry below the prefix is no tensor.
    """
    out = {}
    for name, value in _state(content).items():
        if not str(name).startswith(known.prefix):
            continue
        short = str(name).removeprefix(known.prefix)
        if short.startswith(HEADS):
            continue
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{source}: {name} is a {type(value).__name__}, not a tensor")
        out[short] = value
    return out
