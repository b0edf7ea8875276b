"""What lies beside weights from the Hugging Face Hub, and says what no tensor shows.

``config.json`` by timm (``architecture``, ``model_args``, ``pretrained_cfg`` with mean and std) or
by transformers (``model_type`` and the options of its ``ResNetConfig``), and the latter's
``preprocessor_config.json`` (``image_mean``, ``image_std``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the files that they lie beside
MAX_BYTES = 1 << 20


def hub_config(path: str | Path) -> Mapping[str, Any]:
    """``config.json`` of the weights ``path``; empty where they are not timm's or transformers'."""
    values = _beside(path, "config.json")
    known = isinstance(values.get("pretrained_cfg"), dict) or values.get("model_type") == "resnet"
    return values if known else {}


def hub_pixels(path: str | Path) -> Mapping[str, Any]:
    """``mean`` and ``std`` of transformers' weights ``path``; empty where nothing says them."""
    values = _beside(path, "preprocessor_config.json")
    found = {key: values.get(f"image_{key}") for key in ("mean", "std")}
    return found if all(found.values()) else {}


def _beside(path: str | Path, name: str) -> Mapping[str, Any]:
    file = Path(path).with_name(name)
    if Path(path).name not in WEIGHTS or not file.is_file() or file.stat().st_size > MAX_BYTES:
        return {}
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
