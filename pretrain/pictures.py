"""Pictures that show a person what a run does to the images."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torchvision.utils import make_grid

from pretrain.data import ViewDataset
from runtime.errors import InputError
from runtime.files import atomic_write

VIEW_ROWS = 8


def save_views(dataset: ViewDataset, path: Path) -> None:
    """Write a grid of the first images' views in two epochs: one image a row.

    Raises InputError where the storage of the images fails.
    """
    rows = []
    for index in range(min(VIEW_ROWS, len(dataset.source.files))):
        for epoch in (0, 1):
            sample = dataset[epoch, index]
            if isinstance(sample, InputError):
                raise sample
            rows.extend(sample[0])
    grid = make_grid(torch.stack(rows), nrow=2 * dataset.view_count, padding=2)
    with atomic_write(path) as stream:
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(stream, format="PNG")
