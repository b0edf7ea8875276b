"""From a recipe file and overrides to one checked configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from runtime.config import get, leaves, merge, short
from runtime.errors import InputError
from transfer.recipe.choices import CHOICES, contradictions
from transfer.recipe.defaults import HONOURED, KNOWN, SCHEDULE

OTHER_ENGINE = "the detectron2 engine can run it (--engine detectron2)"


def load_cfg(path: str | os.PathLike[str], overrides: Sequence[str], base: CfgNode) -> CfgNode:
    """Merge a recipe, then KEY VALUE overrides, into a copy of ``base``.

    ``base`` is :func:`default_cfg` or Detectron2's ``get_cfg()``: its keys and types are the ones
    allowed, and texts that read as Python literals become them, as in Detectron2. A key of
    Detectron2 that ``base`` lacks may only state its default. InputError names the key that is
    wrong and the nearest known one.
    """
    return load_recipe(path, overrides, base)[0]


def load_recipe(
    path: str | os.PathLike[str], overrides: Sequence[str], base: CfgNode
) -> tuple[CfgNode, CfgNode]:
    """As :func:`load_cfg`, and the recipe's SCHEDULE section, our only one beside Detectron2's."""
    cfg = base.clone()
    cfg.defrost()
    beyond, ours = CfgNode(KNOWN), CfgNode({"SCHEDULE": SCHEDULE})
    merge(path, overrides, cfg, beyond, ours)
    _refuse_changes(beyond)
    if cfg.VERSION != 2:
        raise InputError(f"{path}: VERSION is {cfg.VERSION}; only 2, Detectron2's present, is read")
    return cfg, ours.SCHEDULE


def check_honoured(cfg: CfgNode) -> None:
    """InputError for the first key or value that the embedded engine cannot honour."""
    honoured = dict(leaves(HONOURED))
    known = dict(leaves(KNOWN))
    for key, _ in leaves(cfg):
        if key not in honoured and key not in known:
            raise InputError(f"{key} is unknown to the embedded engine; {OTHER_ENGINE}")
    _refuse_changes(cfg)
    for key, allowed in CHOICES.items():
        value = get(cfg, key)
        if value not in allowed:
            raise InputError(
                f"{key} {value!r} is not built into the embedded engine, which has "
                f"{', '.join(map(repr, allowed))}; {OTHER_ENGINE}"
            )
    for line in contradictions(cfg):
        raise InputError(line)


def _refuse_changes(cfg: CfgNode) -> None:
    for key, default in leaves(KNOWN):
        value = get(cfg, key, default)
        if _lists(value) != _lists(default):
            raise InputError(
                f"{key} is {short(value)}: the embedded engine only does {default!r} here; "
                f"{OTHER_ENGINE}"
            )


def _lists(value: object) -> object:
    """Tuples as lists, which is how YAML writes them."""
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
