"""WebDataset shards on a local disk, read in any order by means of an index of their headers.

So a data set in shards is shuffled, split and resumed exactly as a folder is.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.source import raw
from pretrain.source.images import ImageSource, NoClassError
from pretrain.source.open_files import OpenFiles
from pretrain.source.shard_index import checked, common_classes, shards_listed
from pretrain.source.tar_index import (
    ORIGINAL_BYTES,
    TarIndex,
    index_tar,
    original_digest,
    sample_key,
    tars_in,
)
from runtime.errors import InputError
from runtime.urls import shown

log = logging.getLogger("moco")

MAX_SHARDS = 1_000_000  # that a pattern may name
LOOKED_AT = 1000  # images with raw pixels, for the fingerprint: at least so many, or all


@dataclass(frozen=True)
class Shards(ImageSource):
    """The images of tar files, in the order of the files and of their members.

    ``files`` are named SHARD.tar/MEMBER. ``shards`` are paths; ``shard``, ``offsets``, ``sizes``,
    ``given`` (class index or -1) and ``originals`` (as of :class:`TarIndex`) are int64 N.
    ``names`` are those of the classes, where the shards' index file knows them.
    """

    root: Path
    files: tuple[str, ...]
    shards: tuple[Path, ...]
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    given: np.ndarray
    originals: np.ndarray
    names: tuple[str, ...] = ()
    open_files: OpenFiles = field(default_factory=OpenFiles, compare=False, repr=False)

    @classmethod
    def scan(cls, shards: Sequence[Path], root: Path) -> Shards:
        """Index the tar files, all below ``root``. InputError for the first that cannot be used."""
        missing = [path for path in shards if not path.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(shards)} shards are not there, the first is "
                f"{str(missing[0])!r}"
            )
        beside = checked(shards)
        names = [os.path.relpath(path, root).replace(os.sep, "/") for path in shards]
        places = joined_places(names, [index_tar(path) for path in shards])
        return cls(root, shards=tuple(shards), names=common_classes(beside), **places)

    def describe(self) -> None:
        """Warn where samples hold several images: a mask beside a photo would be trained on."""
        keys = pairwise(map(sample_key, self.files))
        second = [i for i, (before, key) in enumerate(keys, start=1) if before == key]
        if second:
            log.warning(
                "%d image(s) share a sample with the one before, the first two are %r and %r: "
                "each counts as an image of its own; masks and the like must not be in the shards",
                *(len(second), *self.files[second[0] - 1 : second[0] + 1]),
            )

    def read(self, index: int) -> bytes:
        """The bytes of image ``index``. InputError where that fails."""
        return self.open_files.read(*self._place(index))

    def sha256(self, index: int) -> bytes:
        """SHA-256 (32 bytes) of the file that image ``index`` was made from, by ``KEY.sha256``."""
        if self.originals[index] < 0:
            return super().sha256(index)
        path, offset = self.shards[self.shard[index]], int(self.originals[index])
        text = self.open_files.read(path, offset, ORIGINAL_BYTES)
        return original_digest(text, repr(self.files[index]))

    def _place(self, index: int) -> tuple[Path, int, int]:
        return self.shards[self.shard[index]], int(self.offsets[index]), int(self.sizes[index])

    def images_in_shards(self) -> list[int]:
        """Number of images of each shard."""
        return np.bincount(self.shard, minlength=len(self.shards)).tolist()

    def file_sizes(self) -> list[int]:
        """Bytes of each image."""
        return self.sizes.tolist()

    def class_names(self) -> list[str]:
        """Classes by the ``.cls`` members: their names, or numbers as text that sorts like them."""
        if (self.given < 0).any():
            first = self.files[int(np.argmax(self.given < 0))]
            where = f"{first!r} in {self.place!r} has no class"
            raise NoClassError(where, "KEY.cls beside KEY.jpg")
        if self.given.max() < len(self.names):
            return [self.names[value] for value in self.given]
        width = len(str(self.given.max()))
        return [f"{value:0{width}d}" for value in self.given]

    def fingerprint(self) -> str:
        """SHA-256 over shards' and members' names, sizes and classes.

        And over what some images of raw pixels were made from, which sizes do not tell apart.
        """
        digest = hashlib.sha256()
        for name, size, given in zip(self.files, self.sizes, self.given, strict=True):
            digest.update(os.fsencode(name) + f"\0{size}\0{given}\n".encode())
        pixels = [i for i, name in enumerate(self.files) if name.endswith(raw.SUFFIX)]
        for index in pixels[:: max(1, len(pixels) // LOOKED_AT)]:
            digest.update(self.sha256(index))
        return digest.hexdigest()


def joined_places(names: Sequence[str], indices: Sequence[TarIndex]) -> dict[str, Any]:
    """Where the images lie, as the fields of :class:`Shards`; ``names`` are those of the shards."""
    whole = TarIndex.joined(indices)
    files = [f"{n}/{member}" for n, i in zip(names, indices, strict=True) for member in i.names]
    return {
        "files": tuple(files),
        "shard": np.repeat(np.arange(len(indices)), [len(index.names) for index in indices]),
        "offsets": whole.offsets,
        "sizes": whole.sizes,
        "given": whole.classes,
        "originals": whole.originals,
    }


def shards_in(folder: Path) -> list[Path]:
    """The tar files in ``folder``: those of its ``shards.json``, or all, sorted.

    InputError where one of a numbered row is missing.
    """
    listed = shards_listed(folder)
    if listed is not None:
        return listed
    paths = tars_in(folder)
    numbers: dict[tuple[str, str], list[int]] = {}
    for path in paths:
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", path.name)
        if match:
            numbers.setdefault((match[1], match[3]), []).append(int(match[2]))
    for (before, after), row in numbers.items():
        there = set(row)
        gap = next((n for n in range(min(row), max(row)) if n not in there), None)
        if gap is not None:
            raise InputError(
                f"{str(folder)!r} has shards {before}{min(row)}{after} to {before}{max(row)}{after}"
                f" but not {gap}: add it, or name the shards, e.g. "
                f"'{{{min(row)}..{gap - 1},{gap + 1}..{max(row)}}}'"
            )
    return paths


def expand(pattern: str) -> list[str]:
    """``a{000..002}.tar`` or ``{train,val}.tar``, as in bash: the names, in order.

    The items of a brace are words or ranges of numbers, whose leading zeros are kept. InputError
    for a wrong pattern.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    if any("{" in part or "}" in part for part in parts):
        raise InputError(f"{shown(pattern)!r}: braces do not match, or lie in each other")
    choices = [[part] if i % 2 == 0 else _items(part, pattern) for i, part in enumerate(parts)]
    if np.prod([float(len(choice)) for choice in choices]) > MAX_SHARDS:
        raise InputError(f"{shown(pattern)!r} names more than {MAX_SHARDS} shards")
    names = ["".join(choice) for choice in itertools.product(*choices)]
    if len(set(names)) < len(names):
        raise InputError(f"{shown(pattern)!r} names a shard twice")
    return names


def _items(brace: str, pattern: str) -> list[str]:
    items: list[str] = []
    for item in brace.split(","):
        match = re.fullmatch(r"(\d+)\.\.(\d+)", item)
        if not match:
            items.append(item)
            continue
        first, last = int(match[1]), int(match[2])
        if not 0 <= last - first < MAX_SHARDS:
            raise InputError(f"{shown(pattern)!r}: the range {item!r} is empty or too long")
        items += [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return items
