"""What was learnt, for a person to see: images beside those that the encoder finds most alike."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torchvision.models.resnet import ResNet
from torchvision.transforms import functional as TF

from pretrain.features import CentreCrops, embed, encoder_at_rest
from pretrain.pictures import save_grid
from pretrain.source.decode import printable
from pretrain.source.images import ImageSource
from runtime.distributed import is_main
from runtime.errors import InputError
from runtime.files import write_text
from runtime.randomness import generator

QUERIES, NEIGHBOURS = 8, 6
MAX_IMAGES = 2000  # among which neighbours are sought; drawn by the seed
TILE = 112  # pixels


def save_neighbours(
    encoder: ResNet,
    folder: ImageSource,
    unreadable: Collection[str],
    cfg: CfgNode,
    workers: int,
    path: Path,
) -> None:
    """Write a picture, and a text file of the same name with the files and cosines shown in it.

    One row for each query: the query, then its nearest other images by the pooled features, the
    most alike first. Queries are a pure function of the seed. Images whose names are ``unreadable``
    are left out. All ranks must call this. InputError where another one cannot be read.
    """
    size = cfg.VIEWS.CROP_SIZE
    order = generator(cfg.SEED, "neighbours").permutation(folder.at_hand())
    readable = (int(i) for i in order if printable(folder.files[i]) not in unreadable)
    indices = list(islice(readable, MAX_IMAGES))
    if len(indices) < 2:
        raise InputError("there are no two readable images")
    features = embed(encoder_at_rest(encoder), CentreCrops(folder, size, indices), workers=workers)
    if not is_main():
        return
    cosine = features[:QUERIES] @ features.T
    cosine.fill_diagonal_(-torch.inf)  # the query itself
    cosines, nearest = cosine.topk(min(NEIGHBOURS, len(indices) - 1), dim=1)
    rows, lines = [], []
    for query, (found, values) in enumerate(zip(nearest.tolist(), cosines.tolist(), strict=True)):
        places = [indices[query], *(indices[i] for i in found)]
        rows.append([_tile(folder, i, size) for i in places])
        names = [printable(folder.files[i]) for i in places]  # bytes of no text cannot be written
        lines.append(names[0])
        lines += [f"  {value:.3f}  {name}" for value, name in zip(values, names[1:], strict=True)]
    save_grid(rows, path, TILE, ["query", *(f"nearest {i + 1}" for i in range(len(rows[0]) - 1))])
    write_text(path.with_suffix(".txt"), "\n".join(lines) + "\n")


def _tile(folder: ImageSource, index: int, size: int) -> Image.Image:
    """The image as the encoder saw it, enlarged or reduced."""
    crop = CentreCrops(folder, size, [index])[0]
    if isinstance(crop, InputError):
        raise crop
    return TF.to_pil_image(crop).resize((TILE, TILE), Image.Resampling.BICUBIC)
