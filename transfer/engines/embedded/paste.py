"""Puts the small square masks of detections into the image, at their boxes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 0.5
MAX_BYTES = 1024**3  # of one chunk's float maps, on an accelerator


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Probabilities N x side x side at boxes N x 4 to masks bool N x height x width.

    On the CPU one mask is drawn at a time, within its box; on an accelerator whole images are,
    as many as fit. Every box must have an area.
    """
    count = len(masks)
    result = torch.zeros(count, height, width, device=masks.device, dtype=torch.bool)
    if count == 0:
        return result
    on_cpu = masks.device.type == "cpu"
    chunks = count if on_cpu else math.ceil(count * height * width * 4 / MAX_BYTES)
    for index in torch.arange(count, device=masks.device).chunk(min(chunks, count)):
        window = (0, 0, width, height)
        if on_cpu:
            window = _window(boxes[index[0]], height, width)
        x0, y0, x1, y1 = window
        drawn = _draw(masks[index], boxes[index], window)
        result[index, y0:y1, x0:x1] = drawn >= THRESHOLD
    return result


def _window(box: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels around a box, one more on each side, within the image."""
    x0, y0 = (box[:2].floor() - 1).clamp(min=0).int().tolist()
    x1, y1 = (box[2:].ceil() + 1).int().tolist()
    return x0, y0, min(x1, width), min(y1, height)


def _draw(masks: Tensor, boxes: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Sample masks bilinearly at the centres of the pixels of a window, N x h x w."""
    x0, y0, x1, y1 = window
    left, top, right, bottom = boxes.split(1, dim=1)
    x = torch.arange(x0, x1, device=masks.device, dtype=torch.float32) + 0.5
    y = torch.arange(y0, y1, device=masks.device, dtype=torch.float32) + 0.5
    x = (x - left) / (right - left) * 2 - 1
    y = (y - top) / (bottom - top) * 2 - 1
    size = (len(masks), y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None, :].expand(size), y[:, :, None].expand(size)], dim=3)
    return F.grid_sample(masks[:, None], grid.to(masks.dtype), align_corners=False)[:, 0]
