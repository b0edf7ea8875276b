"""``out.yaml`` beside ``out.pkl``: what these weights need of any Detectron2 program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from convert.conventions import Conventions
from runtime.errors import InputError
from runtime.files import write_text

# How the MoCo papers fine-tune (v1, appendix): BN is trained, synchronised and re-estimated before
# an evaluation, nothing is frozen. Weights with folded BN cannot.
PROTOCOL = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.FPN.NORM": "SyncBN",
    "TEST.PRECISE_BN.ENABLED": True,
}


MARK = "# Written by convert_to_d2.py: "


def check_yaml(weights: str | Path) -> Path:
    """The file beside ``weights``. InputError where it exists and somebody else wrote it."""
    file = Path(weights).with_suffix(".yaml")
    own = file.is_file() and file.read_text(errors="replace").startswith(MARK)
    if file.exists() and not own:
        raise InputError(
            f"{file} would be overwritten, and is not of this tool: give {Path(weights).name} "
            "another name"
        )
    return file


def write_yaml(weights: str | Path, conventions: Conventions) -> Path:
    """Write the Detectron2 keys that ``weights`` (a ``.pkl``) needs to the ``.yaml`` beside it.

    A recipe takes them over with ``_BASE_``. Returns the file's path.
    """
    file = check_yaml(weights)
    keys: dict[str, Any] = {"MODEL.WEIGHTS": str(Path(weights).resolve())}
    keys |= {} if conventions.frozen_bn else PROTOCOL
    keys |= conventions.detectron2_keys()
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    text = f"{MARK}what {Path(weights).name} needs of a Detectron2 program.\n"
    text += "# In a recipe: _BASE_: [its other base, this file]\n"
    if conventions.depth < 50 and conventions.architecture.out != 64:
        text += "# Detectron2 itself builds ResNet-18 and -34 with 64 channels only.\n"
    write_text(file, text + yaml.safe_dump(tree, sort_keys=False))
    return file
