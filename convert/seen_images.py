"""Which images an encoder was pretrained on, small enough to travel with its weights.

A test image that the encoder has seen makes the test too easy, and nobody notices. So pretraining
keeps a digest of each image file (of a random sample where there are very many), the converter
passes them on, and fine-tuning compares its test images with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from runtime.errors import InputError
from runtime.randomness import generator

MOST = 10_000  # files to read when a run starts; test sets of thousands do not slip through


@dataclass(frozen=True)
class SeenImages:
    """Attributes:
    total: number of images that the encoder was pretrained on.
    digests: int64, those of all files, or of a random sample of ``MOST`` of them; sorted.
    """

    total: int
    digests: np.ndarray

    @classmethod
    def of(cls, count: int, sha256: Callable[[int], bytes]) -> SeenImages:
        """Of ``count`` images, where ``sha256(i)`` gives that of file i, 32 bytes."""
        chosen = generator(0, "seen images").permutation(count)[:MOST]
        return cls(count, np.sort(np.array([digest(sha256(int(i))) for i in chosen])))

    def among(self, names: Sequence[str], sha256: Callable[[int], bytes]) -> list[str]:
        """Those of ``names`` that were seen: byte for byte the same file, by any name.

        ``sha256(i)`` gives that of file i, 32 bytes. Of an image that was made smaller for a shard
        it is the original file's.
        """
        known = set(self.digests.tolist())
        return [name for i, name in enumerate(names) if digest(sha256(i)) in known]

    def sentence(
        self, found: Sequence[str], count: int, images: str = "the images of pretraining"
    ) -> str:
        """That ``found`` of ``count`` test images were seen; "at least" where this is a sample."""
        sample = "" if len(self.digests) == self.total else "at least "
        return (
            f"{sample}{len(found)} of {count} test images were among {images}, {found[0]!r} for one"
        )

    def to_dict(self, tensor: bool = False) -> dict[str, Any]:
        """For a checkpoint (as a tensor) or a ``backbone.pkl`` (as an array)."""
        return {
            "total": self.total,
            "digests": torch.from_numpy(self.digests) if tensor else self.digests,
        }

    @classmethod
    def from_dict(cls, values: Any, source: str) -> SeenImages | None:
        """The inverse of :meth:`to_dict`; None for None. InputError where it is malformed."""
        if values is None:
            return None
        try:
            digests = np.asarray(values["digests"])
            total = int(values["total"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source} has a damaged list of seen images: {error!r}") from error
        if digests.dtype != np.int64 or digests.ndim != 1 or len(digests) > max(total, 0):
            raise InputError(f"{source} has a damaged list of seen images")
        return cls(total, digests)


def digest(sha256: bytes) -> int:
    """The first 8 bytes of a SHA-256 as a signed integer."""
    return int.from_bytes(sha256[:8], "little", signed=True)
