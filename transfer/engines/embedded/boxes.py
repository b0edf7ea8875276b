"""Boxes as float32 N x 4 XYXY tensors in absolute pixels: overlap, coding, regression losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

# A box grows at most to 1000 / 16 of its size in one step, so that exp() cannot overflow.
MAX_LOG_SCALE = math.log(1000.0 / 16)

IOU_LOSSES: dict[str, Callable[..., Tensor]] = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, len(a) x len(b); 0 (not NaN) where two boxes do not overlap."""
    extent = torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])
    overlap = extent.clamp_(min=0).prod(dim=2)
    union = area(a)[:, None] + area(b) - overlap
    return torch.where(overlap > 0, overlap / union, overlap.new_zeros(1))


def area(boxes: Tensor) -> Tensor:
    """Areas in square pixels, N."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def nonempty(boxes: Tensor, min_size: float = 0.0) -> Tensor:
    """Which boxes have both sides longer than ``min_size``, bool N."""
    return (boxes[:, 2] - boxes[:, 0] > min_size) & (boxes[:, 3] - boxes[:, 1] > min_size)


class BoxCoder:
    """R-CNN's box parameterisation: shifts relative to a box's size, logarithms of scales."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(weights)

    def encode(self, sources: Tensor, targets: Tensor) -> Tensor:
        """Deltas that move ``sources`` onto ``targets``, N x 4."""
        x, y, width, height = _centre_size(sources)
        target_x, target_y, target_width, target_height = _centre_size(targets)
        wx, wy, ww, wh = self.weights
        return torch.stack(
            (
                wx * (target_x - x) / width,
                wy * (target_y - y) / height,
                ww * torch.log(target_width / width),
                wh * torch.log(target_height / height),
            ),
            dim=1,
        )

    def decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Apply deltas, N x (K * 4), to boxes, N x 4: N x (K * 4) boxes, always in float32."""
        deltas = deltas.float()
        x, y, width, height = (side[:, None] for side in _centre_size(boxes.to(deltas.dtype)))
        dx, dy, dw, dh = (deltas[:, i::4] / weight for i, weight in enumerate(self.weights))
        centre_x = dx * width + x
        centre_y = dy * height + y
        new_width = torch.exp(dw.clamp(max=MAX_LOG_SCALE)) * width
        new_height = torch.exp(dh.clamp(max=MAX_LOG_SCALE)) * height
        corners = (
            centre_x - 0.5 * new_width,
            centre_y - 0.5 * new_height,
            centre_x + 0.5 * new_width,
            centre_y + 0.5 * new_height,
        )
        return torch.stack(corners, dim=-1).reshape(deltas.shape)

    def loss(
        self, kind: str, beta: float, deltas: Tensor, sources: Tensor, targets: Tensor
    ) -> Tensor:
        """Summed regression loss of ``deltas`` (N x 4), which should map sources onto targets.

        ``kind`` is BBOX_REG_LOSS_TYPE: smooth_l1 on deltas (L1 for beta 0), or an IoU loss on
        decoded boxes.
        """
        if kind == "smooth_l1":
            return smooth_l1_loss(deltas, self.encode(sources, targets), beta, reduction="sum")
        return IOU_LOSSES[kind](self.decode(deltas, sources), targets, reduction="sum")


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = boxes[:, 2] - boxes[:, 0]
    height = boxes[:, 3] - boxes[:, 1]
    return boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height, width, height
