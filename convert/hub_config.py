"""``config.json`` as timm writes it for the Hugging Face Hub: it says what no tensor shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the files that it lies beside
MAX_BYTES = 1 << 20


def hub_config(path: str | Path) -> Mapping[str, Any]:
    """``architecture``, ``model_args`` and ``pretrained_cfg`` (mean, std) of the weights ``path``.

    Empty where they are no weights from the Hub, or not timm's.
    """
    file = Path(path).with_name("config.json")
    if Path(path).name not in WEIGHTS or not file.is_file() or file.stat().st_size > MAX_BYTES:
        return {}
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    known = isinstance(values, dict) and isinstance(values.get("pretrained_cfg"), dict)
    return values if known else {}
