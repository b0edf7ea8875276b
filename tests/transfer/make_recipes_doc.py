"""Write docs/recipes.md: recipes resolved, published figures, and the sources of each value.

``test_recipes_doc.py`` fails where the page, the recipes and ``recipe_facts.py`` differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from facts import row  # noqa: E402
from fvcore.common.config import CfgNode  # noqa: E402
from recipe_facts import FACTS, FIGURES, facts_of  # noqa: E402

from runtime.config import leaves  # noqa: E402
from runtime.yaml_file import read_recipe  # noqa: E402
from transfer.recipe.defaults import HONOURED, KNOWN  # noqa: E402
from transfer.recipe.load import load_recipe  # noqa: E402

PAGE = ROOT / "docs" / "recipes.md"
BASES = ("Base_C4", "Base_DC5", "Base_FPN")
RECIPES = tuple(p.stem for p in sorted((ROOT / "transfer").glob("*.yaml")) if p.stem not in BASES)


def resolved(recipe: str) -> dict[str, Any]:
    """All of Detectron2's keys with their values under a recipe, and those of SCHEDULE."""
    return resolved_file(ROOT / f"transfer/{recipe}.yaml")


def resolved_file(path: Path) -> dict[str, Any]:
    """The same for any recipe file."""
    cfg, epochs = load_recipe(path, [], CfgNode(_united(HONOURED, KNOWN)))
    return dict(leaves(cfg)) | {f"SCHEDULE.{key}": value for key, value in epochs.items()}


def _united(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    sections = {k: _united(a.get(k, {}), v) for k, v in b.items() if isinstance(v, dict)}
    return {**a, **b, **sections}


def stated(recipe: str) -> set[str]:
    """The keys that the recipe's own files state."""
    return {key for key, _ in leaves(read_recipe(ROOT / f"transfer/{recipe}.yaml"))}


def page() -> str:
    """docs/recipes.md."""
    return "\n".join(
        [INTRODUCTION, *_settings(), FIGURES_TEXT, *_figures(), FACTS_TEXT, *_sources()]
    )


INTRODUCTION = """# Recipes

Made by `python tests/transfer/make_recipes_doc.py`; `tests/transfer/test_recipes_doc.py` fails when
a recipe, this page or a stated value drifts from another.

Every recipe runs with another depth by `MODEL.RESNETS.DEPTH 18` (34, 101, 152); only the dilated-C5
needs 50 or more, since Detectron2's basic blocks have no dilation. `--batch N` and
`--scale-to-gpus` scale batch, rate and all lengths together.

## Resolved settings

Batch and rate are for all GPUs together. Lengths are iterations, or epochs of the user's data.
"""
FIGURES_TEXT = """
## Figures to expect

Published AP of random / supervised ImageNet / MoCo v1 (ImageNet) initialisation. None was
reproduced here by training. The families with and without `4conv1fc` must not be mixed.
"""
FACTS_TEXT = """
## What the sources state

Each value below is compared with the recipes by the test.
"""


def _settings() -> Iterator[str]:
    yield "| recipe | train → test | length | steps | warm-up | batch | rate | train sizes | test |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for recipe in RECIPES:
        v = resolved(recipe)
        epochs = v["SCHEDULE.EPOCHS"]
        if epochs:
            times = (
                f"{epochs:g} epochs",
                _listed(v["SCHEDULE.STEPS"]),
                f"{v['SCHEDULE.WARMUP_EPOCHS']:g}",
            )
        else:
            times = (
                str(v["SOLVER.MAX_ITER"]),
                _listed(v["SOLVER.STEPS"]),
                str(v["SOLVER.WARMUP_ITERS"]),
            )
        data = " + ".join(v["DATASETS.TRAIN"]) or "the user's"
        data += f" → {' + '.join(v['DATASETS.TEST'])}" if v["DATASETS.TEST"] else ""
        sizes = v["INPUT.MIN_SIZE_TRAIN"]
        cells = (
            *(f"`{recipe}`", data, *times, v["SOLVER.IMS_PER_BATCH"], v["SOLVER.BASE_LR"]),
            *(f"{sizes[0]}–{sizes[-1]}", v["INPUT.MIN_SIZE_TEST"]),
        )
        yield row(*cells)


def _figures() -> Iterator[str]:
    yield "| recipe | random / supervised / MoCo v1 | source |"
    yield "|---|---|---|"
    for recipe in RECIPES:
        if recipe in FIGURES:
            yield row(f"`{recipe}`", *FIGURES[recipe])


def _sources() -> Iterator[str]:
    yield "| key | value | recipes | source |"
    yield "|---|---|---|---|"
    for fact in FACTS:
        names = [recipe for recipe in RECIPES if fact in facts_of(recipe)]
        where = "all" if len(names) == len(RECIPES) else ", ".join(f"`{name}`" for name in names)
        yield row(f"`{fact.key}`", f"`{fact.value!r}`", where, fact.source)


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE} written")
