"""What a source states of recipes, for the pages that set it beside their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Fact(NamedTuple):
    """A value that a source states for the recipes with these names (or parts of names)."""

    recipes: tuple[str, ...]
    key: str
    value: Any
    source: str


def facts(recipes: str, source: str, **values: Any) -> list[Fact]:
    """Keys are written with two underscores for a dot."""
    names = tuple(recipes.split())
    return [Fact(names, key.replace("__", "."), value, source) for key, value in values.items()]


def differing(values: Mapping[str, Any], stated: Iterable[Fact]) -> dict[str, Any]:
    """Key → (value here, value stated, source), of the facts that do not hold."""
    return {
        fact.key: (values[fact.key], fact.value, fact.source)
        for fact in stated
        if values[fact.key] != fact.value
    }


def row(*cells: object) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
