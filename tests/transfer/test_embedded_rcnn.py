"""The whole embedded detector where Detectron2 is absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_models import batch, recipe, spread_weights
from torch import Tensor

from runtime.errors import InputError
from transfer.engines.embedded import build_model
from transfer.engines.embedded.rcnn import rescale
from transfer.recipe.defaults import default_cfg

FIXTURE = json.loads((Path(__file__).parent / "fixtures/detectron2_parity.json").read_text())


@pytest.mark.parametrize("name", FIXTURE)
def test_recorded_output_of_detectron2(name: str) -> None:
    """Seeds in, Detectron2's numbers out. Other CPUs add up in another order: hence 1e-4."""
    recorded = FIXTURE[name]
    cfg = recipe(name, default_cfg())
    torch.manual_seed(0)
    model = build_model(cfg)
    state = model.state_dict()
    assert list(state) == recorded["keys"]
    sums = [tensor.double().abs().sum().item() for tensor in state.values()]
    assert sums == pytest.approx(recorded["initial_sums"], rel=1e-4)
    spread_weights(model)
    torch.manual_seed(1)
    losses = model.train()(batch(cfg))
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(recorded["losses"], rel=1e-4)
    spread_weights(model)  # the statistics as they were before the training step
    with torch.no_grad():
        found = model.eval()(batch(cfg))
    for image, expected in zip(found, recorded["detections"], strict=True):
        pairs = counterparts(image, expected)
        # Where two scores or two pixels of a heat map tie, another CPU may decide otherwise.
        assert len(pairs) >= 0.9 * len(expected["scores"])
        for theirs, ours in pairs.items():
            if "mask_areas" in expected:
                area = image["masks"][ours].sum().item()
                assert area == pytest.approx(expected["mask_areas"][theirs], rel=1e-2, abs=3)
        if "keypoints" in expected:
            points = image["keypoints"][list(pairs.values())]
            same = torch.tensor(expected["keypoints"])[list(pairs)]
            assert (points - same).abs().le(1e-2).float().mean() > 0.95


def counterparts(image: dict[str, Tensor], expected: dict[str, Any]) -> dict[int, int]:
    """Expected detection to ours with one class, score (1e-4 relative) and box (0.01 pixels)."""
    same = image["classes"][:, None] == torch.tensor(expected["classes"])
    scores = torch.tensor(expected["scores"])
    same &= (image["scores"][:, None] - scores).abs() <= 1e-4 * scores
    distance = (image["boxes"][:, None] - torch.tensor(expected["boxes"])).abs().amax(dim=2)
    same &= distance <= 0.01 + 1e-4 * image["boxes"].max()
    return {int(theirs): int(ours) for ours, theirs in same.nonzero()}


def test_detections_are_scaled_clipped_and_without_empty_boxes() -> None:
    found = {
        "boxes": torch.tensor([[10.0, 10, 60, 20], [5, 5, 5, 9], [40, 0, 50, 25]]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "classes": torch.tensor([1, 2, 3]),
        "keypoints": torch.ones(3, 1, 3),
    }
    before = found["boxes"].clone()
    scaled = rescale(found, (25, 50), height=50, width=150)
    assert scaled["boxes"].tolist() == [[30, 20, 150, 40], [120, 0, 150, 50]]
    assert scaled["classes"].tolist() == [1, 3]
    assert scaled["keypoints"][0, 0].tolist() == [3, 2, 1]
    assert torch.equal(found["boxes"], before)


def test_images_are_normalised_and_padded_on_the_right_and_below() -> None:
    cfg = recipe("R18-FPN-BN-frozen-2", default_cfg())
    model = build_model(cfg)
    samples = batch(cfg)
    images, sizes = model._normalise([s["image"] for s in samples])
    assert images.shape == (2, 3, 160, 192)  # 155 x 171, up to multiples of 32
    assert sizes == [(128, 171), (155, 112)]
    mean, std = cfg.MODEL.PIXEL_MEAN[2], cfg.MODEL.PIXEL_STD[2]
    expected = (samples[1]["image"][2, 154, 111].item() - mean) / std
    assert images[1, 2, 154, 111].item() == pytest.approx(expected, rel=1e-5)
    assert images[1, :, 155:].abs().sum() == 0
    assert images[1, :, :, 112:].abs().sum() == 0


def test_changing_the_recipe_later_does_not_change_the_model() -> None:
    cfg = recipe("R18-C4-ExtraNorm-BN", default_cfg())
    model = build_model(cfg)
    cfg.MODEL.RPN.NMS_THRESH = 0.1
    assert model.proposal_generator.settings.NMS_THRESH == 0.7


def test_diverged_training_stops() -> None:
    cfg = recipe("R18-C4-ExtraNorm-BN", default_cfg())
    model = build_model(cfg).train()
    with torch.no_grad():
        model.proposal_generator.rpn_head.anchor_deltas.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="region proposals hold infinite"):
        model(batch(cfg))


def test_non_finite_proposals_are_dropped_in_evaluation() -> None:
    cfg = recipe("R18-C4-ExtraNorm-BN", default_cfg())
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.proposal_generator.rpn_head.anchor_deltas.bias.fill_(float("nan"))
        found = model(batch(cfg))
    assert [len(image["boxes"]) for image in found] == [0, 0]


def test_extra_norm_follows_res5_and_basic_blocks_suit_resnet18() -> None:
    keys = list(build_model(recipe("R18-C4-ExtraNorm-BN", default_cfg())).state_dict())
    head = [key for key in keys if key.startswith("roi_heads.res5.")]
    assert "roi_heads.res5.1.conv2.weight" in head
    assert not any("conv3" in key or ".2." in key for key in head)
    assert head[-5:] == [
        f"roi_heads.res5.norm.{part}"
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]


def test_half_width_resnet18_trains() -> None:
    cfg = recipe("R18-C4-ExtraNorm-BN", default_cfg())
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    model = build_model(cfg).train()
    sum(model(batch(cfg)).values()).backward()
    assert model.roi_heads.res5[0].conv1.weight.shape == (256, 128, 3, 3)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"MODEL.RESNETS.NORM": ""}, "has no norm to add"),
        ({"MODEL.ROI_HEADS.IN_FEATURES": ["res5"]}, r"IN_FEATURES is \['res5'\]"),
        ({"MODEL.ROI_HEADS.IN_FEATURES": ["res3", "res4"]}, "takes one feature map"),
        ({"MODEL.RPN.IN_FEATURES": ["res3", "res4"]}, "same number"),
    ],
)
def test_recipes_that_cannot_be_built(changes: dict[str, object], reason: str) -> None:
    cfg = recipe("R18-C4-ExtraNorm-BN", default_cfg())
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4"]
    for key, value in changes.items():
        cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=reason):
        build_model(cfg)
