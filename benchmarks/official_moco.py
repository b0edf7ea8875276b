"""The official MoCo code, loaded from a checkout of it and made to run without a GPU.

``OFFICIAL_MOCO`` names a checkout of github.com/facebookresearch/moco; default: ``ref/moco`` beside
this repository. None of it is copied here.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
BUILDER = Path(os.environ.get("OFFICIAL_MOCO", ROOT.parent / "ref" / "moco")) / "moco/builder.py"
MISSING = f"no official MoCo code at {BUILDER}: set OFFICIAL_MOCO to a checkout"


def new_official(encoder: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    """The official ``MoCo(encoder, dim, K, m, T, mlp)``."""
    spec = importlib.util.spec_from_file_location("official_moco_builder", BUILDER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MoCo(encoder, *arguments)


@contextmanager
def on_cpu(order: torch.Tensor | None = None) -> Iterator[None]:
    """Within the block ``.cuda()`` does nothing, and the batch is shuffled in ``order``, if any."""
    randperm = torch.randperm if order is None else lambda size: order
    with (
        patch.object(torch.Tensor, "cuda", lambda self: self),
        patch.object(torch, "randperm", randperm),
    ):
        yield
