"""Backbones and norms against torchvision's and torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from fvcore.common.config import CfgNode
from parity_models import FPN as FPN_RECIPE
from parity_models import spread_weights
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from runtime.errors import InputError
from transfer.engines.embedded.fpn import FPN
from transfer.engines.embedded.norms import FrozenBatchNorm2d, freeze, get_norm
from transfer.engines.embedded.resnet import ResNet
from transfer.recipe.defaults import default_cfg


def resnet_cfg(depth: int, norm: str = "BN", **keys: object) -> CfgNode:
    cfg = default_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    resnet = cfg.MODEL.RESNETS
    resnet.DEPTH, resnet.NORM, resnet.STRIDE_IN_1X1 = depth, norm, False
    resnet.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    resnet.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in keys.items():
        resnet[key] = value
    return cfg


def torchvision_weights(ours: nn.Module) -> dict[str, Tensor]:
    """Our state dict under torchvision's names."""
    renamed = {}
    for name, tensor in ours.state_dict().items():
        name = name.replace("stem.", "")
        for index in (2, 3, 4, 5):
            name = name.replace(f"res{index}.", f"layer{index - 1}.")
        name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        for index in (1, 2, 3):
            name = name.replace(f"conv{index}.norm", f"bn{index}")
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize(
    ("name", "cfg"),
    [
        ("resnet18", resnet_cfg(18)),
        ("resnet50", resnet_cfg(50)),
        ("resnext50_32x4d", resnet_cfg(50, NUM_GROUPS=32, WIDTH_PER_GROUP=4)),
    ],
)
def test_resnet_equals_torchvision(name: str, cfg: CfgNode) -> None:
    ours = ResNet(cfg).eval()
    spread_weights(ours)
    reference = torchvision.models.get_model(name, weights=None).eval()
    missing, unexpected = reference.load_state_dict(torchvision_weights(ours), strict=False)
    assert missing == ["fc.weight", "fc.bias"]
    assert unexpected == []
    x = torch.randn(1, 3, 70, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = ours(x)
        y = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        for index in (2, 3, 4, 5):
            y = reference.get_submodule(f"layer{index - 1}")(y)
            torch.testing.assert_close(maps[f"res{index}"], y)
            assert ours.shapes[f"res{index}"].channels == y.shape[1]
            assert ours.shapes[f"res{index}"].stride == 2**index


def test_half_width_resnet18_has_a_quarter_of_the_convolution_weights() -> None:
    def weights(cfg: CfgNode) -> int:
        inner = ResNet(cfg).state_dict().items()
        return sum(v.numel() for n, v in inner if v.dim() == 4 and "stem" not in n)

    half = resnet_cfg(18, STEM_OUT_CHANNELS=32, RES2_OUT_CHANNELS=32)
    assert weights(half) * 4 == weights(resnet_cfg(18))


def test_dilated_res5_keeps_the_stride() -> None:
    backbone = ResNet(resnet_cfg(50, RES5_DILATION=2))
    assert backbone.shapes["res5"].stride == 16
    res5 = backbone.get_submodule("res5")
    assert [block.conv2.dilation for block in res5] == [(2, 2)] * 3
    assert [block.conv2.stride for block in res5] == [(1, 1)] * 3


@pytest.mark.parametrize(("in_1x1", "strides"), [(True, (2, 1)), (False, (1, 2))])
def test_placement_of_the_stride(in_1x1: bool, strides: tuple[int, int]) -> None:
    block = ResNet(resnet_cfg(50, STRIDE_IN_1X1=in_1x1)).get_submodule("res3")[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_freezing(freeze_at: int) -> None:
    cfg = resnet_cfg(18)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    frozen = ("stem", "res2", "res3", "res4", "res5")[:freeze_at]
    for name, module in ResNet(cfg).named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.requires_grad == (name.split(".")[0] not in frozen)
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            expected = FrozenBatchNorm2d if name.split(".")[0] in frozen else nn.BatchNorm2d
            assert type(module) is expected


def test_only_the_stages_up_to_the_last_output_exist() -> None:
    backbone = ResNet(resnet_cfg(18, OUT_FEATURES=["res3"]))
    assert [name for name, _ in backbone.named_children()] == ["stem", "res2", "res3"]
    assert list(backbone(torch.zeros(1, 3, 32, 32))) == ["res3"]


def test_an_output_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match=r"OUT_FEATURES is \['res6'\]; .*'res5'"):
        ResNet(resnet_cfg(18, OUT_FEATURES=["res6"]))


def test_fpn_equals_torchvision() -> None:
    cfg = resnet_cfg(18)
    cfg.MODEL.FPN.IN_FEATURES = FPN_RECIPE["MODEL.FPN.IN_FEATURES"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    ours = FPN(ResNet(cfg), cfg).eval()
    spread_weights(ours)
    reference = FeaturePyramidNetwork([64, 128, 256, 512], 16, extra_blocks=LastLevelMaxPool())
    state = {}
    for index, level in enumerate((2, 3, 4, 5)):
        for part in ("weight", "bias"):
            inner, layer = f"fpn_lateral{level}.{part}", f"fpn_output{level}.{part}"
            state[f"inner_blocks.{index}.0.{part}"] = ours.state_dict()[inner]
            state[f"layer_blocks.{index}.0.{part}"] = ours.state_dict()[layer]
    reference.load_state_dict(state)
    x = torch.randn(1, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = ours(x)
        expected = reference(ours.bottom_up(x))
    assert list(maps) == ["p2", "p3", "p4", "p5", "p6"]
    for (name, ours_map), reference_map in zip(maps.items(), expected.values(), strict=True):
        assert torch.equal(ours_map, reference_map)
        assert ours.shapes[name].stride == 128 // ours_map.shape[2]
    assert ours.size_divisibility == 32


def test_fpn_over_maps_that_do_not_halve_is_refused() -> None:
    cfg = resnet_cfg(18)
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res4"]
    with pytest.raises(InputError, match="each must be twice"):
        FPN(ResNet(cfg), cfg)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_frozen_norm_equals_batch_norm_in_evaluation_mode(with_gradient: bool) -> None:
    norm = nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(5, generator=torch.Generator().manual_seed(1)) + 0.5)
    frozen = FrozenBatchNorm2d.frozen(norm)
    x = torch.randn(2, 5, 3, 3, requires_grad=with_gradient)
    torch.testing.assert_close(frozen(x), norm(x))
    assert list(frozen.state_dict()) == list(norm.state_dict())
    assert list(frozen.parameters()) == []


def test_a_new_frozen_norm_changes_nothing() -> None:
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(FrozenBatchNorm2d(4)(x), x)


def test_layer_norm_is_torch_s_over_the_channels() -> None:
    norm = get_norm("LN", 5)
    assert norm is not None
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5))
        norm.bias.copy_(torch.rand(5))
    x = torch.randn(2, 5, 3, 4)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (5,), norm.weight, norm.bias, eps=1e-6)
    torch.testing.assert_close(norm(x), expected.permute(0, 3, 1, 2))


def test_freezing_leaves_group_norm_in_place() -> None:
    module = nn.Sequential(nn.Conv2d(3, 32, 1), get_norm("GN", 32))
    freeze(module)
    assert isinstance(module[1], nn.GroupNorm)
    assert not any(p.requires_grad for p in module.parameters())
