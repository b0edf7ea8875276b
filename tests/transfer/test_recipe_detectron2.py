"""Our tables of defaults against Detectron2's own."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

from detectron2.config import get_cfg

from transfer.recipe.defaults import HONOURED, KNOWN
from transfer.recipe.load import leaves

pytestmark = pytest.mark.detectron2


def test_both_tables_together_are_detectron2_s_defaults() -> None:
    ours = dict(leaves(HONOURED)) | dict(leaves(KNOWN))
    theirs = dict(leaves(get_cfg()))
    assert ours == theirs
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in theirs.items()}
