"""Cuts regions out of feature maps, each from the pyramid level that fits its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

# A region of 224 pixels (an ImageNet crop) belongs to the level of stride 16.
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4


class ROIPooler:
    """RoIAlign or RoIPool over one map or a pyramid (Detectron2's ``ROIPooler``).

    ``kind`` is POOLER_TYPE: ROIAlignV2 (pixel centres aligned), ROIAlign (not) or ROIPool.
    """

    def __init__(self, kind: str, resolution: int, ratio: int, strides: Sequence[int]) -> None:
        self.kind = kind
        self.resolution = resolution
        self.ratio = ratio
        self.strides = tuple(strides)

    def __call__(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps (each N x C x H x W) and the boxes of N images to R x C x size x size."""
        every = torch.cat(list(boxes))
        image = torch.cat([x.new_full((len(x), 1), index) for index, x in enumerate(boxes)])
        regions = torch.cat([image, every], dim=1)
        if len(maps) == 1:
            return self._pool(maps[0], regions, self.strides[0])
        levels = assign_levels(every, self.strides)
        rows = [torch.nonzero(levels == level).squeeze(1) for level in range(len(maps))]
        pooled = [
            self._pool(x, regions[index], stride)
            for x, index, stride in zip(maps, rows, self.strides, strict=True)
        ]
        return _Interleave.apply(rows, *pooled)

    def _pool(self, x: Tensor, regions: Tensor, stride: int) -> Tensor:
        regions = regions.to(x.dtype)  # under autocast the maps may be half precision
        if self.kind == "ROIPool":
            return roi_pool(x, regions, self.resolution, 1.0 / stride)
        aligned = self.kind == "ROIAlignV2"
        return roi_align(x, regions, self.resolution, 1.0 / stride, self.ratio, aligned)


class _Interleave(torch.autograd.Function):
    """Parts of a tensor to the whole: the rows of part i go to the places ``rows[i]``.

    Together the places are 0 .. R - 1. Assigning part after part would be the same, but its
    gradient copies the whole tensor for each part.
    """

    @staticmethod
    def forward(ctx: Any, rows: list[Tensor], *parts: Tensor) -> Tensor:
        ctx.rows = rows
        whole = parts[0].new_empty((sum(map(len, rows)), *parts[0].shape[1:]))
        for index, part in zip(rows, parts, strict=True):
            whole[index] = part
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient[index] for index in ctx.rows)


def assign_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Index into ``strides`` for each box, by its size (Lin et al. 2017, equation 1)."""
    finest, coarsest = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    size = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    level = torch.floor(CANONICAL_LEVEL + torch.log2(size / CANONICAL_SIZE + 1e-8))
    return level.clamp(min=finest, max=coarsest).to(torch.int64) - finest
