"""Write docs/pretraining_recipes.md: settings, published figures, and the sources of each value.

``test_pretraining_doc.py`` fails where the page, the recipes and ``pretraining_facts.py`` differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from facts import row  # noqa: E402
from pretraining_facts import FACTS, FIGURES  # noqa: E402

from pretrain.config import load_cfg  # noqa: E402
from runtime.config import leaves  # noqa: E402
from runtime.yaml_file import read_recipe  # noqa: E402

PAGE = ROOT / "docs" / "pretraining_recipes.md"
RECIPES = tuple(
    path.stem
    for kind in ("moco", "ablation", "supervised")
    for path in sorted((ROOT / "configs").glob(f"{kind}*"))
)


def resolved(recipe: str) -> dict[str, Any]:
    """Every key with its value under a recipe."""
    return dict(leaves(load_cfg(str(ROOT / f"configs/{recipe}.yaml"), [])))


def stated(recipe: str) -> set[str]:
    """The keys that the recipe's own files state."""
    return {key for key, _ in leaves(read_recipe(ROOT / f"configs/{recipe}.yaml"))}


def page() -> str:
    """docs/pretraining_recipes.md."""
    lines = [INTRODUCTION, *_settings(), FIGURES_TEXT, *_figures(), FACTS_TEXT, *_sources()]
    return "\n".join(lines) + "\n"


INTRODUCTION = """# Pretraining recipes

Made by `python tests/pretrain/make_pretraining_doc.py`; `tests/pretrain/test_pretraining_doc.py`
fails when a recipe, this page or a stated value drifts from another.

`tools/pretrain.py --config configs/NAME.yaml DATA.ROOT DIR OUTPUT_DIR DIR` runs one. All run with
another encoder by `MODEL.ARCH resnet18` (34, 50, 101, 152), or wider ones: `resnet50w2x`,
`resnet50w4x`. `--batch N` takes another batch: it scales the rate linearly, the warm-up (and a
length in steps) inversely, and says what it changed; epochs, queue, temperature and BN groups stay.
The batch is that of all processes together, and BN groups have a fixed size: the number of GPUs
changes nothing.

## Settings
"""
FIGURES_TEXT = """
## Figures to expect

Linear classification on ImageNet, top-1 in percent, as published. None was reproduced here by
training.
"""
FACTS_TEXT = """
## What the sources state

Each value below is compared with the recipes by the test. The papers are arXiv 1911.05722 (v1) and
2003.04297 (v2).
"""


def _settings() -> Iterator[str]:
    columns = "recipe encoder K m τ head BN_group batch rate schedule length crop".split()
    yield row(*(name.replace("_", " ") for name in columns))
    yield "|---" * len(columns) + "|"
    for recipe in RECIPES:
        v = resolved(recipe)
        moco = v["METHOD"] == "moco"
        dictionary = [f"{v[f'MODEL.{key}']:g}" for key in ("QUEUE_SIZE", "MOMENTUM", "TEMPERATURE")]
        steps = v["SOLVER.MAX_STEPS"]
        yield row(
            *(f"`{recipe}`", v["MODEL.ARCH"]),
            *(dictionary if moco else "---"),
            ("MLP" if v["MODEL.MLP"] else "linear") if moco else "classes",
            *(v["MODEL.BN_GROUP_SIZE"], v["SOLVER.BATCH_SIZE"], v["SOLVER.BASE_LR"], _schedule(v)),
            f"{steps:,} steps" if steps else f"{v['SOLVER.EPOCHS']} epochs",
            v["VIEWS.CROP_SIZE"],
        )


def _schedule(v: dict[str, Any]) -> str:
    kind, warmup = v["SOLVER.SCHEDULE"], v["SOLVER.WARMUP_STEPS"]
    factor = f"× {v['SOLVER.GAMMA']:g}"
    text = {
        "cosine": "cosine",
        "multistep": f"{factor} at {', '.join(map(str, v['SOLVER.MILESTONES']))}",
        "exponential": f"{factor} every {v['SOLVER.DECAY_PERIOD']:,}",
    }[kind]
    return text + (f", {warmup} steps of warm-up" if warmup else "")


def _figures() -> Iterator[str]:
    yield "| recipe | top-1 | source |"
    yield "|---|---|---|"
    for recipe, (figure, source) in FIGURES.items():
        yield row(f"`{recipe}`", figure, source)


def _sources() -> Iterator[str]:
    yield "| values | recipes | source |"
    yield "|---|---|---|"
    for (recipes, source), facts in groupby(FACTS, lambda fact: (fact.recipes, fact.source)):
        values = ", ".join(f"`{fact.key} {fact.value}`" for fact in facts)
        names = ", ".join(f"`{name}`" if name in RECIPES else f"`{name}*`" for name in recipes)
        yield row(values, names, source)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE} written")
