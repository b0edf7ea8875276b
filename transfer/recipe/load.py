"""From a recipe file and overrides to one checked configuration."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fvcore.common.config import CfgNode

from runtime.errors import InputError
from transfer.recipe.choices import CHOICES, contradictions
from transfer.recipe.defaults import HONOURED, KNOWN
from transfer.recipe.read import read_recipe

MAX_VALUE = 10_000  # characters of a text, which is then parsed as a Python literal
OTHER_ENGINE = "the detectron2 engine can run it (--engine detectron2)"


def load_cfg(path: str | os.PathLike[str], overrides: Sequence[str], base: CfgNode) -> CfgNode:
    """Merge a recipe, then KEY VALUE overrides, into a copy of ``base``.

    ``base`` is :func:`default_cfg` or Detectron2's ``get_cfg()``: its keys and types are the ones
    allowed, and texts that read as Python literals become them, as in Detectron2. A key of
    Detectron2 that ``base`` lacks may only state its default. InputError names the key that is
    wrong and the nearest known one.
    """
    if len(overrides) % 2:
        raise InputError(
            f"overrides are pairs KEY VALUE, but {_short(overrides[-1])} has no value; "
            "write e.g. SOLVER.BASE_LR 0.01"
        )
    cfg = base.clone()
    cfg.defrost()
    beyond = CfgNode(KNOWN)
    for key, value in leaves(read_recipe(path)):
        _assign(cfg, beyond, key, value, where=str(path))
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _assign(cfg, beyond, key, value, where="override")
    _refuse_changes(beyond)
    if cfg.VERSION != 2:
        raise InputError(f"{path}: VERSION is {cfg.VERSION}; only 2, Detectron2's present, is read")
    return cfg


def check_honoured(cfg: CfgNode) -> None:
    """InputError for the first key or value that the embedded engine cannot honour."""
    honoured = dict(leaves(HONOURED))
    known = dict(leaves(KNOWN))
    for key, _ in leaves(cfg):
        if key not in honoured and key not in known:
            raise InputError(f"{key} is unknown to the embedded engine; {OTHER_ENGINE}")
    _refuse_changes(cfg)
    for key, allowed in CHOICES.items():
        value = _get(cfg, key)
        if value not in allowed:
            raise InputError(
                f"{key} {value!r} is not built into the embedded engine, which has "
                f"{', '.join(map(repr, allowed))}; {OTHER_ENGINE}"
            )
    for line in contradictions(cfg):
        raise InputError(line)


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a nested mapping with their full names, e.g. MODEL.RPN.NMS_THRESH."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _refuse_changes(cfg: CfgNode) -> None:
    for key, default in leaves(KNOWN):
        value = _get(cfg, key, default)
        if value != default:
            raise InputError(
                f"{key} is {_short(value)}: the embedded engine only does {default!r} here; "
                f"{OTHER_ENGINE}"
            )


def _get(cfg: CfgNode, key: str, default: Any = None) -> Any:
    value: Any = cfg
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value


_MISSING = object()


def _assign(cfg: CfgNode, beyond: CfgNode, key: str, value: Any, where: str) -> None:
    """Set one key in ``cfg``, or in ``beyond`` if only that has it."""
    target = cfg if _get(cfg, key, _MISSING) is not _MISSING else beyond
    old = _get(target, key, _MISSING)
    if old is _MISSING:
        raise InputError(f"{where}: unknown key {_short(key)}{_suggestion(cfg, key)}")
    if isinstance(old, Mapping):
        raise InputError(f"{where}: {key} is a section; set one of {', '.join(map(str, old))}")
    if isinstance(value, str) and len(value) > MAX_VALUE:
        raise InputError(f"{where}: the value of {key} has more than {MAX_VALUE} characters")
    try:
        target.merge_from_list([key, value])
        new = _get(target, key)
    except (ValueError, TypeError, AssertionError, MemoryError, RecursionError):
        new = None
    if new is None and old is not None:
        raise InputError(
            f"{where}: {key} must be of the kind {type(old).__name__}, like {_short(old)}, "
            f"got {_short(value)}"
        )


def _suggestion(cfg: CfgNode, key: str) -> str:
    names = [name for name, _ in leaves(cfg)]
    # A name in the wrong section is the commonest slip, hence the last part counts by itself.
    last = key.rpartition(".")[2]
    near = [name for name in names if name.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(key[:200], names, n=1)
    return f"; did you mean {near[0]}?" if near else "; Detectron2's documentation lists all keys"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
