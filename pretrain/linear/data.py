"""The labelled images of an evaluation, and whether any of its test images is known already."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.config import CfgNode

from convert.seen_images import SeenImages
from pretrain.source.images import ImageSource
from pretrain.source.open_source import open_source
from pretrain.source.shard_cache import ShardCache
from runtime.errors import InputError

log = logging.getLogger("moco")


@dataclass(frozen=True)
class Data:
    """Images to train on and to test with.

    ``labels`` (int64) are the class indices of the test images, ``sha256(i)`` gives that of test
    image i.
    """

    train: ImageSource
    test: ImageSource
    labels: torch.Tensor
    sha256: Callable[[int], bytes]

    @classmethod
    def open(cls, cfg: CfgNode) -> Data:
        """DATA.TRAIN and DATA.TEST. InputError where they cannot be used together."""
        cache = ShardCache.of(cfg.DATA.SHARD_CACHE, cfg.DATA.SHARD_CACHE_GIB)
        train = open_source(cfg.DATA.TRAIN, "DATA.TRAIN", cache)
        test = open_source(cfg.DATA.TEST, "DATA.TEST", cache)
        labels = torch.tensor(test_labels(train, test))
        return cls(train, test, labels, functools.cache(test.sha256))  # two checks ask for it

    def describe(self) -> None:
        """Say in the log what a user may want to know of them."""
        self.train.describe()
        self.test.describe()
        if missing := set(range(len(self.train.classes()))) - set(self.labels.tolist()):
            log.warning("%d classes of DATA.TRAIN have no test image", len(missing))

    def seen_by(self, cfg: CfgNode, seen: SeenImages | None) -> int | None:
        """How many test images the encoder was pretrained on; None where its file does not say.

        InputError if there are any and DATA.ALLOW_SEEN is off.
        """
        if seen is None:
            return None
        found = seen.among(self.test.files, self.sha256)
        if found and not cfg.DATA.ALLOW_SEEN:
            raise InputError(
                f"{seen.sentence(found, len(self.test.files))}: take others, or allow it with "
                "DATA.ALLOW_SEEN True, which results.json will say"
            )
        return len(found)

    def in_both(self) -> int:
        """How many test images are training images, too, byte for byte; a warning for any.

        Of very many training images a random sample is looked at (:class:`SeenImages`).
        """
        train = SeenImages.of(len(self.train.files), self.train.sha256)
        found = train.among(self.test.files, self.sha256)
        if found:
            told = train.sentence(found, len(self.test.files), "those of DATA.TRAIN")
            log.warning("%s: the accuracy is too high", told)
        return len(found)

    def identity(self) -> dict[str, str]:
        """The fingerprints of both."""
        return {"train": self.train.fingerprint(), "test": self.test.fingerprint()}

    def to_dict(self, identity: dict[str, str]) -> dict[str, Any]:
        """What results.json says of them."""
        return {
            "train": {"images": len(self.train.files), "sha256": identity["train"]},
            "test": {"images": len(self.test.files), "sha256": identity["test"]},
            "classes": len(self.train.classes()),
        }


def test_labels(train: ImageSource, test: ImageSource) -> list[int]:
    """Class index of each test image, in the order of the training classes.

    By name: a class without test images must not shift the others. InputError where a test image
    is of no training class, or the two are the same images.
    """
    if train.root.resolve() == test.root.resolve() and train.files == test.files:
        raise InputError(f"DATA.TRAIN and DATA.TEST are the same images, {test.place!r}")
    index = {name: i for i, name in enumerate(train.classes())}
    names = test.class_names()
    for name, file in zip(names, test.files, strict=True):
        if name not in index:
            raise InputError(
                f"DATA.TEST: {file!r} is of class {name!r}, which DATA.TRAIN does not have: "
                f"{', '.join(list(index)[:5])} ..."
            )
    return [index[name] for name in names]
