"""Versions of the libraries that decide the numbers."""

from __future__ import annotations

import platform
from importlib import metadata

import numpy
import PIL
import torch
import torchvision


def versions() -> dict[str, str]:
    """Library → version; plain strings, as a safe reader of checkpoints demands."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a str subclass
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "Pillow": PIL.__version__,
        "moco-transfer": _own_version(),
    }


def _own_version() -> str:
    try:
        return metadata.version("moco-transfer")
    except metadata.PackageNotFoundError:
        return "not installed"
