"""Detectron2's stock recipes and MoCo's official ones run unchanged, or are refused by key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model as build_reference
from fvcore.common.config import CfgNode

from runtime.config import leaves
from runtime.errors import InputError
from transfer.engines.detectron2 import heads  # noqa: F401  (registers MoCo's head)
from transfer.engines.embedded import build_model
from transfer.recipe.defaults import default_cfg
from transfer.recipe.load import check_honoured, load_cfg

pytestmark = pytest.mark.detectron2

FOLDERS = (  # a build copies the recipes into the package; a source tree has them beside it
    Path(model_zoo.__file__).parent / "configs",
    Path(model_zoo.__file__).parents[2] / "configs",
)
STOCK = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
OFFICIAL = Path(os.environ.get("MOCO_SOURCE", "/work/ref/moco")) / "detection" / "configs"

RUNNABLE = {  # pattern → number of files
    "PascalVOC-Detection/faster_rcnn_R_50_*.yaml": 2,
    "COCO-Detection/faster_rcnn_*.yaml": 10,
    "COCO-InstanceSegmentation/mask_rcnn_*.yaml": 11,
    "COCO-Keypoints/keypoint_rcnn_*.yaml": 4,
    "Cityscapes/mask_rcnn_R_50_FPN.yaml": 1,
    "LVISv*-InstanceSegmentation/mask_rcnn_*_FPN_1x.yaml": 6,
    "Misc/*mask_rcnn_R_50_FPN_?x_gn.yaml": 3,
    "Misc/*mask_rcnn_R_50_FPN_?x_syncbn.yaml": 2,
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml": 1,
}
REFUSED = {
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml": "MODEL.ROI_HEADS.NAME 'CascadeROIHeads'",
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml": "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
    "COCO-Detection/rpn_R_50_C4_1x.yaml": "MODEL.META_ARCHITECTURE 'ProposalNetwork'",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml": "MODEL.LOAD_PROPOSALS",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
    "Misc/semantic_R_50_FPN_1x.yaml": "MODEL.META_ARCHITECTURE 'SemanticSegmentor'",
}


def stock(pattern: str) -> list[Path]:
    if not STOCK.is_dir():
        pytest.skip("Detectron2's recipes are not installed with it")
    return sorted(STOCK.glob(pattern))


def official() -> list[Path]:
    if not OFFICIAL.is_dir():
        pytest.skip("needs the official MoCo source: MOCO_SOURCE=DIR")
    return sorted(OFFICIAL.glob("*_*.yaml"))


def both(path: Path) -> tuple[CfgNode, CfgNode]:
    """A recipe in the embedded engine's table and in Detectron2's; the same as Detectron2 reads."""
    small, full = load_cfg(path, [], default_cfg()), load_cfg(path, [], get_cfg())
    reference = get_cfg()
    reference.merge_from_file(str(path))
    assert dict(leaves(full)) == dict(leaves(reference))
    assert dict(leaves(small)).items() <= dict(leaves(reference)).items()
    check_honoured(small)
    check_honoured(full)
    return small, full


def shapes(cfg: CfgNode, engine: str) -> Iterator[tuple[str, torch.Size, bool]]:
    """Names and shapes of a model that is only outlined: on the meta device nothing is drawn."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg) if engine == "embedded" else build_reference(cfg)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, value in model.state_dict().items():
        yield name, value.shape, name in trained


@pytest.mark.parametrize("pattern", RUNNABLE)
def test_stock_recipes_run_unchanged(pattern: str) -> None:
    paths = stock(pattern)
    assert len(paths) == RUNNABLE[pattern]
    for path in paths:
        small, full = both(path)
        assert list(shapes(small, "embedded")) == list(shapes(full, "detectron2")), path


def test_official_moco_recipes_run_unchanged() -> None:
    paths = official()
    assert len(paths) == 4
    for path in paths:
        small, full = both(path)
        assert list(shapes(small, "embedded")) == list(shapes(full, "detectron2")), path


def test_our_recipes_are_the_official_ones() -> None:
    ours = Path(__file__).parents[2] / "transfer"
    official()
    for mine, theirs in (
        ("voc_R50_C4", "pascal_voc_R_50_C4_24k_moco"),
        ("coco_R50_C4_2x", "coco_R_50_C4_2x_moco"),
    ):
        left = dict(leaves(load_cfg(ours / f"{mine}.yaml", [], default_cfg())))
        right = dict(leaves(load_cfg(OFFICIAL / f"{theirs}.yaml", [], default_cfg())))
        # SyncBN as in the paper; the official files say naiveSyncBN since November 2020
        different = {key for key in left if left[key] != right[key]}
        assert different == {"MODEL.WEIGHTS", "MODEL.RESNETS.NORM"}
        assert right["MODEL.RESNETS.NORM"] == "naiveSyncBN"


@pytest.mark.parametrize("name", REFUSED)
def test_other_stock_recipes_are_refused_with_the_key_and_the_engine(name: str) -> None:
    (path,) = stock(name)
    with pytest.raises(InputError, match=re.escape(REFUSED[name])) as caught:
        check_honoured(load_cfg(path, [], default_cfg()))
    assert "the detectron2 engine can run it" in str(caught.value)


def test_federated_loss_is_refused() -> None:
    (path,) = stock("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    with pytest.raises(InputError, match=r"MODEL\.ROI_BOX_HEAD\.USE_FED_LOSS is True"):
        load_cfg(path, ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "True"], default_cfg())
