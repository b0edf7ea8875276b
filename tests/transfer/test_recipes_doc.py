"""Recipes against what their sources state, and docs/recipes.md against both.

``python tests/transfer/make_recipes_doc.py`` writes the page anew.
"""

from __future__ import annotations

from pathlib import Path

import make_recipes_doc as doc
import pytest
from facts import differing
from make_recipes_doc import RECIPES
from recipe_facts import FIGURES, facts_of

OFFICIAL = Path("/work/ref/moco/detection/configs")
TWINS = {"voc_R50_C4": "pascal_voc_R_50_C4_24k_moco", "coco_R50_C4_2x": "coco_R_50_C4_2x_moco"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_values_are_those_of_the_sources(recipe: str) -> None:
    assert differing(doc.resolved(recipe), facts_of(recipe)) == {}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if not name.startswith("custom")])
def test_every_key_of_a_recipe_has_a_source(recipe: str) -> None:
    assert doc.stated(recipe) - {fact.key for fact in facts_of(recipe)} == set()


def test_the_page_is_up_to_date() -> None:
    assert doc.PAGE.read_text() == doc.page(), "python tests/transfer/make_recipes_doc.py"


def test_figures_are_of_shipped_recipes() -> None:
    assert set(FIGURES) <= set(RECIPES)


@pytest.mark.parametrize("recipe", TWINS)
def test_official_recipes_resolve_to_ours(recipe: str) -> None:
    """The norm is the only difference: naiveSyncBN since 2020, SyncBN before."""
    path = OFFICIAL / f"{TWINS[recipe]}.yaml"
    if not path.is_file():
        pytest.skip(f"no official MoCo recipe at {path}")
    ours, theirs = doc.resolved(recipe), doc.resolved_file(path)
    differ = {key for key in ours if ours[key] != theirs[key]}
    assert differ == {"MODEL.RESNETS.NORM", "MODEL.WEIGHTS"}
