"""The arms of a comparison: which weights each starts from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError
from transfer.run.job import RANDOM

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWN_FILES = frozenset({"plots", "table.md", "table.csv", "report.html"})


@dataclass(frozen=True)
class Arm:
    """One arm: its name, and its weights file (``None`` for random initialisation)."""

    name: str
    weights: Path | None


def is_valid_name(name: str) -> bool:
    """Whether ``name`` is safe as a folder name: letters, digits, ``.``, ``_`` and ``-``."""
    return _NAME.fullmatch(name) is not None and name.casefold() not in _OWN_FILES


def parse_arms(specs: Sequence[str]) -> tuple[Arm, ...]:
    """Parse the values of ``--arm`` (``random`` or ``NAME=FILE``), in the given order.

    Raises :class:`InputError` for odd or repeated names and for missing files. Names that differ
    only in case are refused as well: on some file systems they share one folder.
    """
    if not specs:
        raise InputError("no arms given: pass --arm random or --arm NAME=FILE at least once")
    arms: dict[str, Arm] = {}
    for spec in specs:
        arm = _parse_arm(spec)
        if arm.name.casefold() in arms:
            raise InputError(f"--arm {arm.name} is given twice: give every arm its own name")
        arms[arm.name.casefold()] = arm
    return tuple(arms.values())


def _parse_arm(spec: str) -> Arm:
    name, equals, file = spec.partition("=")
    if not is_valid_name(name):
        raise InputError(
            f"--arm {spec!r}: the name {name!r} is not usable as a folder; use up to 64 letters, "
            f"digits, '.', '_' or '-', starting with a letter or digit (not {_listed(_OWN_FILES)})"
        )
    if name.casefold() == RANDOM:
        if equals or name != RANDOM:
            raise InputError(
                f"--arm {spec!r}: the arm 'random' starts from random values and takes no file; "
                "write --arm random, or give these weights another name"
            )
        return Arm(RANDOM, None)
    if not file:
        raise InputError(f"--arm {spec!r} names no weights: write --arm {name}=FILE")
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"--arm {spec!r}: the file {file} {what}; give a converted weights file")
    return Arm(name, path)


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
