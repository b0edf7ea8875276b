"""Configurations: YAML read without object tags, merged over a table of known keys.

Detectron2's habits (``_BASE_``, ``KEY VALUE`` overrides) without its dangers: a YAML file cannot
run code, leave this machine or grow without bound.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from runtime.errors import InputError

BASE_KEY = "_BASE_"
MAX_BYTES = 1 << 20
MAX_DEPTH = 8
MAX_VALUE = 10_000


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a recipe with its ``_BASE_`` files merged below it.

    Raises InputError, in one line, for a missing or malformed file, object tags, anchors, a
    ``_BASE_`` that is no local file, or a chain of them that loops or is deeper than 8.
    """
    return _read(Path(path), ())


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in chain or len(chain) >= MAX_DEPTH:
        names = " -> ".join(file.name for file in (*chain, resolved))
        raise InputError(f"{BASE_KEY} loops or is deeper than {MAX_DEPTH}: {names}")
    content = _parse(path)
    base = content.pop(BASE_KEY, None)
    if base is None:
        return content
    if not isinstance(base, str) or "://" in base or base.startswith("~"):
        raise InputError(f"{path}: {BASE_KEY} {base!r} must name a local file")
    return _merged(_read(path.parent / base, (*chain, resolved)), content)


def _parse(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than 1 MiB: not a recipe")
        text = path.read_text(encoding="utf-8")
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
                line = token.start_mark.line + 1
                raise InputError(f"{path}, line {line}: anchors and aliases are not allowed")
        content = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"cannot read recipe {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not plain YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold KEY: VALUE lines, not a {type(content).__name__}")
    return content


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out


def build_cfg(defaults: CfgNode, recipe: dict[str, Any], overrides: Sequence[str] = ()) -> CfgNode:
    """A clone of ``defaults`` with ``recipe`` and then ``KEY VALUE ...`` overrides merged in.

    Raises InputError for an unknown key (with the nearest known one), a wrong type, or an odd
    number of overrides.
    """
    cfg = defaults.clone()
    known = list(flatten(defaults))
    for key in flatten(recipe):
        _check_known(key, known)
    try:
        cfg.merge_from_other_cfg(CfgNode(recipe))
    except (ValueError, AssertionError, KeyError) as error:
        raise InputError(f"wrong value in the recipe: {error}") from error
    if len(overrides) % 2:
        raise InputError(f"overrides come as KEY VALUE pairs, but {overrides[-1]!r} stands alone")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _check_known(key, known)
        if len(value) > MAX_VALUE:
            raise InputError(f"the value given for {key} is longer than {MAX_VALUE} characters")
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError, KeyError, MemoryError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            raise InputError(f"wrong value for {key}: {reason}") from error
    return cfg


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested dict by dotted name: ``{"MODEL.ARCH": "resnet50", ...}``."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            out.update(flatten(value, f"{name}."))
        else:
            out[name] = value
    return out


def _check_known(key: str, known: list[str]) -> None:
    if key in known or any(name.startswith(f"{key}.") for name in known):
        return
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise InputError(f"unknown key {key!r}; the nearest known key is {nearest[0]!r}")
