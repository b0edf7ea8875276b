"""Anchor boxes of the region proposal network (Detectron2's ``DefaultAnchorGenerator``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runtime.errors import InputError


class AnchorGenerator(nn.Module):
    """Anchors of all levels: exact (not rounded) sizes, all ratios of a size before the next.

    ``sizes`` and ``ratios`` hold one list a level, or one list for all levels. Sizes are square
    roots of areas in pixels, ratios are height / width, ``offset`` is in strides.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.offset = offset
        sizes = _per_level(sizes, len(strides), "SIZES")
        ratios = _per_level(ratios, len(strides), "ASPECT_RATIOS")
        for level, (level_sizes, level_ratios) in enumerate(zip(sizes, ratios, strict=True)):
            cell = cell_anchors(level_sizes, level_ratios)
            self.register_buffer(f"cell{level}", cell, persistent=False)
        counts = {len(s) * len(r) for s, r in zip(sizes, ratios, strict=True)}
        if len(counts) != 1:
            raise InputError(
                "MODEL.ANCHOR_GENERATOR: each level must have the same number of anchors, "
                f"got {sorted(counts)}; give as many SIZES x ASPECT_RATIOS for each level"
            )
        self.anchors_per_cell = counts.pop()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of each map, float32 (H * W * A) x 4 XYXY, cells row by row."""
        return [
            self._grid(level, height=x.shape[-2], width=x.shape[-1]) for level, x in enumerate(maps)
        ]

    def _grid(self, level: int, height: int, width: int) -> Tensor:
        stride = self.strides[level]
        cell = self.get_buffer(f"cell{level}")
        start = self.offset * stride

        def centres(length: int) -> Tensor:
            return torch.arange(
                start, length * stride, step=stride, dtype=torch.float32, device=cell.device
            )

        y, x = torch.meshgrid(centres(height), centres(width), indexing="ij")
        x, y = x.reshape(-1), y.reshape(-1)
        shifts = torch.stack((x, y, x, y), dim=1)
        return (shifts[:, None] + cell[None]).reshape(-1, 4)


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors around the origin, float32 (sizes * ratios) x 4 XYXY, size-major."""
    boxes = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2.0 / ratio)
            height = ratio * width
            boxes.append([-width / 2.0, -height / 2.0, width / 2.0, height / 2.0])
    return torch.tensor(boxes, dtype=torch.float32)


def _per_level(
    values: Sequence[Sequence[float]], levels: int, key: str
) -> Sequence[Sequence[float]]:
    """One list a level: a flat list or a single list serves all levels."""
    if values and not isinstance(values[0], Sequence):
        values = [values]
    if len(values) == 1:
        return list(values) * levels
    if len(values) != levels:
        raise InputError(
            f"MODEL.ANCHOR_GENERATOR.{key} has {len(values)} lists for {levels} feature maps "
            "(MODEL.RPN.IN_FEATURES); give one list, or one a map"
        )
    return values
