"""Cuts regions out of feature maps, each from the pyramid level that fits its size."""

from __future__ import annotations

from collections.abc import Sequence

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
        size = (len(regions), maps[0].shape[1], self.resolution, self.resolution)
        output = maps[0].new_zeros(size)
        for level, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            index = torch.nonzero(levels == level).squeeze(1)
            output[index] = self._pool(x, regions[index], stride)
        return output

    def _pool(self, x: Tensor, regions: Tensor, stride: int) -> Tensor:
        regions = regions.to(x.dtype)  # under autocast the maps may be half precision
        if self.kind == "ROIPool":
            return roi_pool(x, regions, self.resolution, 1.0 / stride)
        aligned = self.kind == "ROIAlignV2"
        return roi_align(x, regions, self.resolution, 1.0 / stride, self.ratio, aligned)


def assign_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Index into ``strides`` for each box, by its size (Lin et al. 2017, equation 1)."""
    finest, coarsest = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    size = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    level = torch.floor(CANONICAL_LEVEL + torch.log2(size / CANONICAL_SIZE + 1e-8))
    return level.clamp(min=finest, max=coarsest).to(torch.int64) - finest
