"""A recipe file and the files that it builds on, as one plain dictionary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from runtime.errors import InputError

BASE_KEY = "_BASE_"
MAX_BYTES = 1 << 20
MAX_DEPTH = 8
MAX_SHARED = 100  # aliases in a file, and entries of the list that one is for


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without repeated keys, of which the last would silently win, and without
    YAML 1.1's numbers to the bases 8 and 60: nobody means 64 by 0100, or 90 by 1:30.

    Aliases stand for plain lists only, as in every ``config.yaml`` of Detectron2: others can blow
    up a few bytes to gigabytes.
    """

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if not self.check_event(yaml.events.AliasEvent):
            return super().compose_node(parent, index)
        alias = self.get_event()
        node: Any = self.anchors.get(alias.anchor)
        self.aliases += 1
        if self.aliases > MAX_SHARED or not _is_plain_list(node):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases may stand for short plain lists only", alias.start_mark
            )
        return yaml.SequenceNode(node.tag, list(node.value), alias.start_mark, alias.end_mark)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: Any) -> Any:
        digits = node.value.lstrip("+-")
        if ":" in digits or (digits[:1] == "0" and digits[1:2].isdigit()):
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is no plain decimal number", node.start_mark
            )
        return self.yaml_constructors[f"{node.tag}:base"](self, node)


def _is_plain_list(node: Any) -> bool:
    return (
        isinstance(node, yaml.SequenceNode)
        and len(node.value) <= MAX_SHARED
        and all(isinstance(item, yaml.ScalarNode) for item in node.value)
    )


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(f"{_tag}:base", _Loader.yaml_constructors[_tag])
    _Loader.add_constructor(_tag, _Loader.construct_decimal)


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML recipe; ``_BASE_`` names a file (or files), relative to the one that names it.

    Values of a file override those of its bases. Only plain YAML is read: no object tags, aliases
    for short plain lists only, local files of at most 1 MiB. InputError, naming the file, for
    everything else.
    """
    return _read(Path(path), ())


def _read(path: Path, users: tuple[Path, ...]) -> dict[str, Any]:
    """``users`` are the files that led here, outermost first."""
    here = _resolve(path)
    if here in users:
        raise InputError(
            f"{users[-1]}: {BASE_KEY} makes a cycle: "
            + " -> ".join(str(p) for p in (*users[users.index(here) :], here))
        )
    if len(users) >= MAX_DEPTH:
        raise InputError(f"{users[0]}: {BASE_KEY} is nested more than {MAX_DEPTH} files deep")
    recipe = _parse(path, here)
    bases = recipe.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        _merge(_read(_base_path(here, base), (*users, here)), into=merged, file=here)
    _merge(recipe, into=merged, file=here)
    return merged


def _parse(path: Path, here: Path) -> dict[str, Any]:
    text = _text(path, here)
    try:
        recipe = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a plain YAML recipe: {reason}") from None
    except (RecursionError, ValueError, TypeError) as error:  # nesting, dates, lists as keys
        raise InputError(f"{path}: not a plain YAML recipe: {error}") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: a recipe is a YAML mapping of keys, e.g. 'MODEL: ...'")
    _check_keys(recipe, path, "")
    return recipe


def _text(path: Path, here: Path) -> str:
    try:
        if not here.is_file():
            raise InputError(f"{path}: no such recipe file")
        with open(here, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"{path}: larger than 1 MiB, so this is not a recipe")
        return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text, so this is not a recipe") from None


def _base_path(here: Path, base: object) -> Path:
    if not isinstance(base, str) or not base or "://" in base:
        raise InputError(f"{here}: {BASE_KEY} must name local files, got {base!r}")
    return here.parent / os.path.expanduser(base)


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # link cycles, null bytes
        raise InputError(f"{str(path)!r}: no usable file name: {error}") from None


def _check_keys(section: dict[str, Any], path: Path, prefix: str) -> None:
    for key, value in section.items():
        if not isinstance(key, str):
            raise InputError(f"{path}: the key {prefix}{key} must be text")
        if isinstance(value, dict):
            _check_keys(value, path, f"{prefix}{key}.")


def _merge(update: dict[str, Any], into: dict[str, Any], file: Path) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise InputError(f"{file}: {key} is a section, but a value in {BASE_KEY}")
            _merge(value, into[key], file)
        else:
            into[key] = value
