"""Our tables of defaults against Detectron2's own, and its stock recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import detectron2
from detectron2.config import get_cfg

from runtime.errors import InputError
from transfer.recipe.defaults import HONOURED, KNOWN, default_cfg
from transfer.recipe.load import check_honoured, leaves, load_cfg

pytestmark = pytest.mark.detectron2

STOCK = Path(detectron2.__file__).parent / "model_zoo" / "configs"
RUNNABLE = [
    f"COCO-{task}/{model}_rcnn_R_50_{kind}_1x.yaml"
    for task, model in (("Detection", "faster"), ("InstanceSegmentation", "mask"))
    for kind in ("C4", "FPN", "DC5")
] + [
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
    "PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml",
    "Cityscapes/mask_rcnn_R_50_FPN.yaml",
]


def test_both_tables_together_are_detectron2_s_defaults() -> None:
    ours = dict(leaves(HONOURED)) | dict(leaves(KNOWN))
    theirs = dict(leaves(get_cfg()))
    assert ours == theirs
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in theirs.items()}


@pytest.mark.parametrize("name", RUNNABLE)
def test_stock_recipes_load_as_detectron2_loads_them(name: str) -> None:
    path = STOCK / name
    if not path.is_file():
        pytest.skip("Detectron2's configs folder is not beside its package")
    reference = get_cfg()
    reference.merge_from_file(str(path))
    full = load_cfg(path, [], get_cfg())
    assert dict(leaves(full)) == dict(leaves(reference))
    small = load_cfg(path, [], default_cfg())
    assert dict(leaves(small)).items() <= dict(leaves(reference)).items()
    check_honoured(small)
    check_honoured(full)


@pytest.mark.parametrize(
    "name", ["COCO-Detection/rpn_R_50_C4_1x.yaml", "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"]
)
def test_other_stock_recipes_are_refused_with_the_engine_that_runs_them(name: str) -> None:
    if not (STOCK / name).is_file():
        pytest.skip("Detectron2's configs folder is not beside its package")
    with pytest.raises(InputError, match="the detectron2 engine can run it"):
        check_honoured(load_cfg(STOCK / name, [], default_cfg()))
