"""The second half of DATA.PIPELINE split: crops become views on the training device.

Workers only decode, crop and resize. What is left is done here with batched torch operations, each
image with its own parameters, its own operations and their order, and with the pixels of
``reference.py``. Decisions are taken on the host from the rows of parameters (``rows.py``), so that
it never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import torch

from pretrain.augment.batched_ops import blend_, blur_, box_radius, shift_hue_, to_grey_
from pretrain.augment.rows import CONTRAST, FLIP, GREY, HUE_SLOT, SATURATION, SIGMA, SLOTS

# Values of pixels at a time: on a CPU what its cache holds, on a GPU what half a gigabyte does
AT_A_TIME = {"cpu": 2**20, "cuda": 2**25}


def finish(crops: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Finished views, uint8 N x 3 x S x S, of crops as such on any device.

    ``rows``: float32 N x WIDTH on the CPU, see ``rows.py``. A view does not depend on the others of
    the batch.
    """
    size = max(1, AT_A_TIME[crops.device.type] // prod(crops.shape[1:]))
    parts = zip(crops.split(size), rows.split(size), strict=True)
    return torch.cat([_finish_part(part, some.numpy()) for part, some in parts])


def _finish_part(crops: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    order = _in_order_of_hue(rows)
    rows, places = rows[order], _moved(order, crops.device)
    images = crops.index_select(0, places).float()
    _on_some(images, rows[:, GREY] == 1, to_grey_)
    _jitter(images, rows)
    _on_some(images, rows[:, GREY] == 2, to_grey_)
    _blur(images, rows[:, SIGMA])
    out = images.to(torch.uint8)
    _on_some(out, rows[:, FLIP] > 0, lambda some: some.copy_(some.flip(3)))
    return torch.empty_like(out).index_copy_(0, places, out)


def _in_order_of_hue(rows: np.ndarray) -> np.ndarray:
    """Places of the rows, sorted: hue at all, late hue, something after it.

    Rows that share a step are then neighbours, and every step works on a slice of the batch.
    """
    used = rows[:, :SLOTS] > 0
    before, after = used[:, :HUE_SLOT].sum(1), used[:, HUE_SLOT + 1 :].sum(1)
    return np.lexsort((after, before, used[:, HUE_SLOT]))[::-1].copy()


def _jitter(images: torch.Tensor, rows: np.ndarray) -> None:
    operations, factors = rows[:, :SLOTS], rows[:, SLOTS : 2 * SLOTS]
    table = np.stack(
        [np.where(operations > 0, factors, 1), operations == CONTRAST, operations == SATURATION]
    )
    table[0, :, HUE_SLOT] = np.trunc(factors[:, HUE_SLOT] * 255)  # as torchvision does
    numbers = _moved(table[..., None, None, None].astype(np.float32), images.device)
    for slot in range(SLOTS):
        used = np.flatnonzero(operations[:, slot])
        if not len(used):
            continue
        span = slice(used[0], used[-1] + 1)
        if slot == HUE_SLOT:
            shift_hue_(images[span], numbers[0, span, slot, 0])
        else:
            blend_(images[span], *numbers[:, span, slot])


def _blur(images: torch.Tensor, sigma: np.ndarray) -> None:
    chosen = sigma > 0
    if not chosen.any():
        return
    radius = box_radius(torch.from_numpy(sigma[chosen])).float()
    moved, reach = _moved(radius.numpy()[:, None], images.device), int(radius.max()) + 1
    _on_some(images, chosen, lambda some: blur_(some, moved, reach))


def _on_some(
    images: torch.Tensor, chosen: np.ndarray, change_: Callable[[torch.Tensor], object]
) -> None:
    """Let ``change_`` change the images of the ``chosen`` rows (bool N) in place."""
    if chosen.any():
        places = _moved(np.flatnonzero(chosen), images.device)
        some = images.index_select(0, places)
        change_(some)
        images.index_copy_(0, places, some)


def _moved(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # only from pinned memory is the copy asynchronous
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
