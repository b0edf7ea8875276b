"""Pictures that show a person what a run does to the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms import functional as TF

from pretrain.loading.batches import ViewDataset
from runtime.files import atomic_write

VIEW_ROWS, VIEW_EPOCHS = 8, 2
GAP, HEADER = 2, 14  # pixels


def save_views(dataset: ViewDataset, path: Path) -> None:
    """Write the first images, each beside its views in two epochs: one image a row.

    Raises InputError where the storage of the images fails.
    """
    size = dataset.recipe.crop_size
    header = ["image"]
    for epoch in range(VIEW_EPOCHS):
        header += ["", f"epoch {epoch}", *[""] * (dataset.view_count - 1)]
    rows = []
    for index in range(min(VIEW_ROWS, len(dataset.source.files))):
        row: list[Image.Image | None] = []
        for epoch in range(VIEW_EPOCHS):
            sample = dataset[epoch, index]
            if not row:
                image = dataset.source.load(sample.image_index)
                image.thumbnail((size, size))
                row = [image]
            row += [None, *(TF.to_pil_image(view) for view in sample.finished())]
        rows.append(row)
    save_grid(rows, path, size, header)


def save_grid(
    rows: Sequence[Sequence[Image.Image | None]], path: Path, size: int, header: Sequence[str]
) -> None:
    """Write rows of RGB images as one PNG: cells of ``size`` pixels under a line of titles.

    Images are at most ``size`` x ``size`` and stand in the middle of their cells. A column whose
    images are None is a narrow gap.
    """
    widths = [4 * GAP if image is None else size + GAP for image in rows[0]]
    lefts = [GAP + sum(widths[:column]) for column in range(len(widths) + 1)]
    canvas = Image.new("RGB", (lefts[-1], HEADER + len(rows) * (size + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(10)
    for left, width, title in zip(lefts, widths, header, strict=False):
        while title and pen.textlength(title, font=font) > width:
            title = title[:-1]  # a cell of a few pixels has no room for words
        pen.text((left, 1), title, "black", font)
    for number, row in enumerate(rows):
        top = HEADER + GAP + number * (size + GAP)
        for left, image in zip(lefts, row, strict=False):
            if image is not None:
                middle = ((size - image.width) // 2, (size - image.height) // 2)
                canvas.paste(image, (left + middle[0], top + middle[1]))
    with atomic_write(path) as stream:
        canvas.save(stream, format="PNG")
