"""MoCo's ROI head within Detectron2, and the conversion to and from ``Instances``."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from detectron2.structures import Boxes, Instances
from parity_models import C4_MOCO, RECIPES, batch, recipe

from runtime.errors import InputError
from transfer.engines.detectron2 import heads
from transfer.engines.detectron2.convert import from_instances, to_instances

pytestmark = pytest.mark.detectron2


def test_the_head_is_res5_with_one_more_norm_and_nothing_else() -> None:
    """As described in the MoCo paper, section 4.2, for ResNet-50."""
    assert RECIPES["R50-C4-ExtraNorm-naiveSyncBN"] is C4_MOCO
    cfg = recipe("R50-C4-ExtraNorm-naiveSyncBN", get_cfg())
    torch.manual_seed(0)
    with_norm = build_model(cfg).state_dict()
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    torch.manual_seed(0)
    plain = build_model(cfg).state_dict()
    extra = [name for name in with_norm if name not in plain]
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert extra == [f"roi_heads.res5.norm.{part}" for part in parts]
    assert with_norm["roi_heads.res5.norm.weight"].shape == (2048,)
    assert all(torch.equal(with_norm[name], plain[name]) for name in plain)


def test_the_norm_is_the_last_layer_of_res5() -> None:
    cfg = recipe("R18-C4-ExtraNorm-BN", get_cfg())
    res5 = build_model(cfg).train().roi_heads.res5
    y = res5(torch.randn(16, 256, 4, 4))
    assert y.min() < 0  # after a ReLU it could not be
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(512), atol=1e-4, rtol=0)


def test_a_norm_is_needed() -> None:
    cfg = recipe("R18-C4-ExtraNorm-BN", get_cfg())
    cfg.MODEL.RESNETS.NORM = ""
    with pytest.raises(InputError, match="has no norm to add"):
        build_model(cfg)


def test_registering_twice_changes_nothing() -> None:
    before = ROI_HEADS_REGISTRY.get(heads.NAME)
    heads.register()
    importlib.reload(heads)
    assert ROI_HEADS_REGISTRY.get(heads.NAME) is before


def test_somebody_else_s_head_of_that_name_stays_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Other(Res5ROIHeads):
        pass

    monkeypatch.setitem(ROI_HEADS_REGISTRY._obj_map, heads.NAME, Other)
    with caplog.at_level(logging.WARNING):
        heads.register()
    assert ROI_HEADS_REGISTRY.get(heads.NAME) is Other
    assert "is used instead of ours" in caplog.text


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_samples_become_instances(mask_format: str) -> None:
    cfg = recipe("R50-C4-Mask-FrozenBN-bitmask", get_cfg())
    cfg.INPUT.MASK_FORMAT = mask_format
    sample = batch(cfg)[0]
    result = to_instances(sample)
    instances = result["instances"]
    assert set(result) == {"image", "height", "width", "instances"}
    assert instances.image_size == (128, 171)
    assert torch.equal(instances.gt_boxes.tensor, sample["targets"]["boxes"])
    assert torch.equal(instances.gt_classes, sample["targets"]["classes"])
    boxes = instances.gt_masks.get_bounding_boxes().tensor
    assert (boxes - sample["targets"]["boxes"]).abs().max() < 1  # masks touch their boxes


def test_keypoints_become_instances() -> None:
    sample = batch(recipe("R18-FPN-Keypoint", get_cfg()))[0]
    converted = to_instances(sample)["instances"].gt_keypoints.tensor
    assert torch.equal(converted, sample["targets"]["keypoints"])


def test_samples_without_targets_stay() -> None:
    sample = {"image": torch.zeros(3, 4, 4), "height": 4, "width": 4}
    assert to_instances(sample) == sample


def test_instances_become_detections() -> None:
    boxes, scores = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0.5])
    instances = Instances((5, 6), pred_boxes=Boxes(boxes), scores=scores)
    instances.pred_classes = torch.tensor([7])
    assert set(from_instances(instances)) == {"boxes", "scores", "classes"}
    instances.pred_masks = torch.ones(1, 5, 6, dtype=torch.uint8)
    instances.pred_keypoints = torch.ones(1, 17, 3)
    found = from_instances(instances)
    assert torch.equal(found["boxes"], boxes)
    assert found["classes"].tolist() == [7]
    assert found["masks"].dtype == torch.bool
    assert found["keypoints"].shape == (1, 17, 3)
