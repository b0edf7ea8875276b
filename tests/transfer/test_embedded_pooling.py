"""Regions pooled from several maps, against one map at a time."""

from __future__ import annotations

import torch
from torchvision.ops import roi_align

from transfer.engines.embedded.pooling import ROIPooler, assign_levels


def test_rows_and_gradients_of_several_levels():
    """Each region gets its own level's values, each map the gradient of its own regions."""
    generator = torch.Generator().manual_seed(0)
    strides = (4, 8, 16)
    maps = [
        torch.randn(2, 3, 512 // s, 512 // s, generator=generator, requires_grad=True)
        for s in strides
    ]
    low = torch.rand(20, 2, generator=generator) * 100
    sides = torch.tensor([20.0, 150.0, 60.0, 350.0]).repeat(5)[:, None]
    boxes = torch.cat([low, low + sides], dim=1)
    levels = assign_levels(boxes, strides).tolist()
    assert set(levels) == {0, 1, 2}
    pooled = ROIPooler("ROIAlignV2", 5, 0, strides)(maps, [boxes[:12], boxes[12:]])
    weights = torch.randn(pooled.shape, generator=generator)
    gradients = torch.autograd.grad((pooled * weights).sum(), maps)
    rows = []
    for index, (box, level) in enumerate(zip(boxes, levels, strict=True)):
        region = torch.cat([torch.tensor([float(index >= 12)]), box])[None]
        rows.append(roi_align(maps[level], region, 5, 1 / strides[level], 0, aligned=True))
    expected = torch.cat(rows)
    assert torch.equal(pooled, expected)
    for found, same in zip(
        gradients, torch.autograd.grad((expected * weights).sum(), maps), strict=True
    ):
        torch.testing.assert_close(found, same)
