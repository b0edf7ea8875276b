"""Configurations: a recipe file and KEY VALUE overrides merged over tables of known keys."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from runtime.errors import InputError
from runtime.urls import shown
from runtime.yaml_file import read_recipe

MAX_VALUE = 10_000  # characters of a text, which is then parsed as a Python literal


def merge(path: str | os.PathLike[str], overrides: Sequence[str], *tables: CfgNode) -> None:
    """Set the keys of a recipe, then of KEY VALUE overrides, in place.

    A key is set in the first of ``tables`` that has it; their keys and types are the ones allowed.
    Texts that read as Python literals become them, as in Detectron2; ``~/`` is the home. InputError
    names the key that is wrong and the nearest known one.
    """
    if len(overrides) % 2:
        raise InputError(
            f"overrides are pairs KEY VALUE, but {short(overrides[-1])} has no value; "
            "write e.g. SOLVER.BASE_LR 0.01"
        )
    for key, value in leaves(read_recipe(path)):
        _assign(tables, key, value, where=str(path))
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _assign(tables, key, value, where="override")


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a nested mapping with their full names, e.g. MODEL.RPN.NMS_THRESH."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get(cfg: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value or section at a full name, or ``default``."""
    value: Any = cfg
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value


def refuse_another_recipe(
    run: str, before: Mapping[str, Any], now: CfgNode, may_differ: Collection[str]
) -> None:
    """InputError for the first key that a resumed ``run`` was not begun with.

    ``before`` maps full names to values; keys in ``may_differ`` say where and how, never what.
    """
    for key, value in leaves(now):
        if key not in may_differ and before.get(key) != value:
            raise InputError(
                f"{key} is {value!r}, but {run!r} was begun with {before.get(key)!r}: resume with "
                "the recipe of the run, or start a new one in another OUTPUT_DIR"
            )


def set_value(cfg: CfgNode, key: str, value: Any) -> None:
    """Set the existing key of that full name."""
    section, _, name = key.rpartition(".")
    node = get(cfg, section) if section else cfg
    node[name] = value


class _PlainDumper(yaml.SafeDumper):
    """Without anchors, which our own reader refuses."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(cfg: CfgNode) -> str:
    """``cfg`` as YAML that can be read as a recipe again."""
    return yaml.dump(_plain(cfg), Dumper=_PlainDumper)


def _plain(value: Any) -> Any:
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def short(value: object) -> str:
    """``repr``, cut to 80 characters; of a URL without credentials."""
    text = repr(shown(value) if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


_MISSING = object()


def _assign(tables: Sequence[CfgNode], key: str, value: Any, where: str) -> None:
    """Set one key in the first table that has it."""
    target = next((table for table in tables if get(table, key, _MISSING) is not _MISSING), None)
    if target is None:
        raise InputError(f"{where}: unknown key {short(key)}{_suggestion(tables[0], key)}")
    old = get(target, key)
    if isinstance(old, Mapping):
        raise InputError(f"{where}: {key} is a section; set one of {', '.join(map(str, old))}")
    if isinstance(value, str) and len(value) > MAX_VALUE:
        raise InputError(f"{where}: the value of {key} has more than {MAX_VALUE} characters")
    if isinstance(old, float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, TypeError):
            value = float(value)  # yacs alone refuses 1 where 1.0 is meant
    if isinstance(value, str) and value.startswith("~/"):
        value = os.path.expanduser(
            value
        )  # the shell does it; in a file, a folder "~" would be made
    if isinstance(old, str) and isinstance(value, str) and value[:1] not in ("'", '"'):
        value = repr(value)  # text stays text: a folder may be called 2024
    try:
        target.merge_from_list([key, value])
        new = get(target, key)
    except (ValueError, TypeError, AssertionError, MemoryError, RecursionError):
        new = None
    if new is None and old is not None:
        raise InputError(
            f"{where}: {key} must be of the kind {type(old).__name__}, like {short(old)}, "
            f"got {short(value)}"
        )


def _suggestion(cfg: CfgNode, key: str) -> str:
    """The nearest key; a name in the wrong section is the commonest slip, then a misspelt one."""
    names = {name.upper(): name for name, _ in leaves(cfg)}
    asked = key[:200].upper()
    last = asked.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    near = difflib.get_close_matches(asked, same, n=1, cutoff=0.0)
    near = near or difflib.get_close_matches(asked, names, n=1)
    ends = {name.rpartition(".")[2]: name for name in names}
    near = near or [ends[end] for end in difflib.get_close_matches(last, ends, n=1)]
    return f"; did you mean {names[near[0]]}?" if near else f"; known are {', '.join(cfg)}"
