"""Recipes against what their sources state, and docs/pretraining_recipes.md against both.

``python tests/pretrain/make_pretraining_doc.py`` writes the page anew.
"""

from __future__ import annotations

import ast
from pathlib import Path

import make_pretraining_doc as doc
import pytest
from conftest import ROOT
from facts import differing
from make_pretraining_doc import RECIPES
from pretraining_facts import FIGURES, UNUSED, facts_of

from pretrain.checks import check_values
from pretrain.config import load_cfg
from pretrain.encoder import build_encoder

OFFICIAL = Path("/work/ref/moco/main_moco.py")
ARGUMENTS = {
    "--arch": "MODEL.ARCH",
    "--epochs": "SOLVER.EPOCHS",
    "--batch-size": "SOLVER.BATCH_SIZE",
    "--lr": "SOLVER.BASE_LR",
    "--schedule": "SOLVER.MILESTONES",
    "--momentum": "SOLVER.MOMENTUM",
    "--weight-decay": "SOLVER.WEIGHT_DECAY",
    "--moco-dim": "MODEL.DIM",
    "--moco-k": "MODEL.QUEUE_SIZE",
    "--moco-m": "MODEL.MOMENTUM",
    "--moco-t": "MODEL.TEMPERATURE",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_values_are_those_of_the_sources(recipe: str) -> None:
    assert differing(doc.resolved(recipe), facts_of(recipe)) == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_key_of_a_recipe_has_one_source(recipe: str) -> None:
    keys = [fact.key for fact in facts_of(recipe)]
    assert len(keys) == len(set(keys))
    assert doc.stated(recipe) - set(keys) == UNUSED.get(recipe, set())


def test_the_page_is_up_to_date() -> None:
    assert doc.PAGE.read_text() == doc.page(), "python tests/pretrain/make_pretraining_doc.py"


def test_figures_are_of_shipped_recipes() -> None:
    assert set(FIGURES) <= set(RECIPES)


def test_official_defaults_are_moco_v1() -> None:
    """The official parser's own defaults, read from its source."""
    if not OFFICIAL.is_file():
        pytest.skip(f"no official MoCo at {OFFICIAL}")
    values, seen = doc.resolved("moco_v1_R50_200ep"), {}
    for node in ast.walk(ast.parse(OFFICIAL.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            names = [ast.literal_eval(argument) for argument in node.args]
            name = next((name for name in names if name in ARGUMENTS), None)
            default = next((k.value for k in node.keywords if k.arg == "default"), None)
            if name and default:
                seen[name] = ast.literal_eval(default)
    assert seen == {name: values[key] for name, key in ARGUMENTS.items()}


def test_every_recipe_runs_with_other_encoders() -> None:
    for arch in ("resnet18", "resnet34", "resnet101", "resnet50w2x"):
        cfg = load_cfg(str(ROOT / "configs/moco_v2_R50_200ep.yaml"), ["MODEL.ARCH", arch])
        check_values(cfg)
    assert build_encoder("resnet34", cfg.MODEL.DIM).fc.out_features == 128
