"""What the encoder's features are worth on images that are not trained on.

The recipe names the folders (``MONITOR.*``). Nothing here changes the training: it works on a copy
of the encoder and draws from no generator that has a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import Dataset
from torchvision.models.resnet import ResNet

from pretrain.augment import drawn_view
from pretrain.config import view_recipe
from pretrain.features import CentreCrops, embed, encoder_at_rest
from pretrain.knn import knn_accuracy
from pretrain.monitor.measures import retrieval
from pretrain.source.images import ImageFolder, ImageSource
from pretrain.source.open_source import open_source
from pretrain.source.shard_cache import ShardCache
from pretrain.views import ViewRecipe
from runtime.errors import InputError
from runtime.randomness import generator
from runtime.urls import is_url, shown

MAX_RETRIEVAL = 2000  # images: one minute of decoding, and chance is far enough below 1 %


@dataclass(frozen=True)
class Labelled:
    """Images with labels for nearest neighbours: in ``folder`` a place and a label for each."""

    folder: ImageSource
    indices: list[int]
    labels: torch.Tensor


@dataclass(frozen=True)
class HeldOut:
    """The folders of the monitor, read and checked. None: not asked for."""

    knn: tuple[Labelled, Labelled] | None  # neighbours are sought among the first, for the second
    retrieval: ImageSource | None

    @classmethod
    def scan(cls, cfg: CfgNode) -> HeldOut:
        """List the images. InputError where a folder does not fit."""
        monitor = cfg.MONITOR
        views = monitor.RETRIEVAL_DATA
        cache = ShardCache.of(cfg.DATA.SHARD_CACHE, cfg.DATA.SHARD_CACHE_GIB)
        if is_url(monitor.KNN_DATA):
            raise InputError(
                f"MONITOR.KNN_DATA {shown(monitor.KNN_DATA)!r}: name class folders on a disk"
            )
        return cls(
            labelled_halves(Path(monitor.KNN_DATA)) if monitor.KNN_DATA else None,
            open_source(views, "MONITOR.RETRIEVAL_DATA", cache) if views else None,
        )

    def measure(self, encoder: ResNet, cfg: CfgNode, workers: int) -> dict[str, float]:
        """Figures in percent: ``knn_acc1``, ``retrieval_acc1`` and the chance level of each.

        Of the pooled features (before the head), which are what is transferred. All ranks call
        this; ``encoder`` may be in training and stays as it is.
        """
        if self.knn is None and self.retrieval is None:
            return {}
        resting, size, figures = encoder_at_rest(encoder), cfg.VIEWS.CROP_SIZE, {}
        if self.knn is not None:
            known, asked = self.knn
            found = [
                embed(resting, CentreCrops(part.folder, size, part.indices), workers=workers)
                for part in (known, asked)
            ]
            figures["knn_acc1"] = knn_accuracy(found[0], known.labels, found[1], asked.labels)
            figures["knn_chance"] = 100 * float(asked.labels.bincount().max()) / len(asked.labels)
        if self.retrieval is not None:
            views = HeldOutViews(self.retrieval, view_recipe(cfg), cfg.SEED)
            found_views = embed(resting, views, workers=workers)
            figures["retrieval_acc1"] = float(retrieval(found_views[0::2], found_views[1::2]))
            figures["retrieval_chance"] = 200 / len(views)
        return figures


class HeldOutViews(Dataset):
    """Two views of each image, as in training: items 2i and 2i + 1 are those of the i-th image.

    At most MAX_RETRIEVAL images, drawn by the seed. The views are a pure function of the seed and
    the image, and none that the training sees. Items as of :class:`CentreCrops`.
    """

    def __init__(self, folder: ImageSource, recipe: ViewRecipe, seed: int) -> None:
        self.folder, self.recipe, self.seed = folder, recipe, seed
        order = generator(seed, "retrieval images").permutation(len(folder.files))
        self.indices = sorted(int(i) for i in order[:MAX_RETRIEVAL])

    def __len__(self) -> int:
        return 2 * len(self.indices)

    def __getitem__(self, item: int) -> torch.Tensor | InputError:
        index, number = self.indices[item // 2], item % 2
        try:
            image = self.folder.pixels(index)
        except InputError as error:
            return error
        rng = generator(self.seed, "retrieval", index, number)
        return torch.from_numpy(drawn_view(self.recipe, image, rng))


def labelled_halves(root: Path) -> tuple[Labelled, Labelled]:
    """``root/train`` and ``root/val`` where both are there, else two halves of each class folder.

    The halves depend on the number of files of a class and nothing else, not on the run's seed, so
    that the figures of several runs compare. InputError where a class has a single image, or the
    two parts have other classes.
    """
    option = "MONITOR.KNN_DATA"
    if (root / "train").is_dir() and (root / "val").is_dir():
        parts = [ImageFolder.scan(root / name, option) for name in ("train", "val")]
        if parts[0].classes() != parts[1].classes():
            odd = sorted(set(parts[0].classes()) ^ set(parts[1].classes()))[0]
            raise InputError(
                f"{option} {str(root)!r}: class folder {odd!r} is in train or in val, not in both"
            )
        known, asked = (_labelled(part, range(len(part.files))) for part in parts)
        return known, asked
    folder = ImageFolder.scan(root, option)
    labels = np.array(folder.labels())
    halves: tuple[list[int], list[int]] = ([], [])
    for label, name in enumerate(folder.classes()):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise InputError(
                f"{option} {str(root)!r}: class folder {name!r} has a single image, which cannot "
                "be split in two halves: add one or remove the folder"
            )
        order = members[generator(0, "kNN halves", label).permutation(len(members))]
        for half, share in zip(halves, np.array_split(order, 2), strict=True):
            half += sorted(int(i) for i in share)
    return _labelled(folder, halves[0]), _labelled(folder, halves[1])


def _labelled(folder: ImageSource, indices: range | list[int]) -> Labelled:
    labels = folder.labels()
    return Labelled(folder, list(indices), torch.tensor([labels[i] for i in indices]))
