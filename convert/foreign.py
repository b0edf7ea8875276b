"""Objects in a checkpoint that are neither tensors nor plain values, as records that do nothing.

Trainers save their arguments, configurations and meters beside the weights, and ``weights_only``
rightly refuses to import their classes. The weights can be read all the same: each class of the
packages below is replaced by one that keeps what it is given and runs nothing. To read files of
another toolkit, add its package; any other name in a file is still refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("argparse", "omegaconf", "numpy", "mmengine", "mmcv", "vissl"),
    *("lightly_train", "timm", "torchvision"),
    *("torch.nn.modules", "torch.nn.parallel"),  # lightly-train saves whole networks, too
    *("torch.optim", "pathlib", "datetime", "functools"),  # of what Lightning was called with
)
NAMES = ("builtins.getattr",)  # mmengine's meters refer to their own methods


class Record:
    """Stands for an object of a class that is not imported: keeps its arguments, runs nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def is_network(self) -> bool:
        """Whether it stands for a ``torch.nn.Module``."""
        return isinstance(self.state, dict) and "_modules" in self.state


def arguments(content: Any) -> Mapping[str, Any]:
    """What a trainer's ``args`` (argparse) in a checkpoint say; empty where there are none."""
    args = content.get("args") if isinstance(content, Mapping) else None
    state = args.state if isinstance(args, Record) else args
    return state if isinstance(state, Mapping) else {}


def records(file: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """A class of its own for each foreign name in a torch file, as ``safe_globals`` takes them."""
    if not zipfile.is_zipfile(file):
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    return [(type("Record", (Record,), {}), name) for name in names if is_foreign(name)]


def is_foreign(name: str) -> bool:
    """Whether ``module.name`` is read as a record."""
    name = name.replace("__builtin__.", "builtins.", 1)  # Python 2's word, which protocol 2 keeps
    return name in NAMES or name.startswith(tuple(f"{package}." for package in PACKAGES))
