"""Our tables of defaults against Detectron2's own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2.config import CfgNode, get_cfg

from runtime.yaml_file import read_recipe
from transfer.recipe.defaults import HONOURED, KNOWN
from transfer.recipe.load import leaves

pytestmark = pytest.mark.detectron2


def test_both_tables_together_are_detectron2_s_defaults() -> None:
    ours = dict(leaves(HONOURED)) | dict(leaves(KNOWN))
    theirs = dict(leaves(get_cfg()))
    assert ours == theirs
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in theirs.items()}


def test_config_yaml_of_its_runs_is_read(tmp_path: Path) -> None:
    """It has aliases: the default configuration holds lists that are there twice."""
    (tmp_path / "config.yaml").write_text(get_cfg().dump())
    assert "*id001" in get_cfg().dump()
    found = read_recipe(tmp_path / "config.yaml")
    assert dict(leaves(CfgNode(found))) == dict(leaves(get_cfg().load_cfg(get_cfg().dump())))
