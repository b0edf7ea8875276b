"""What goes into a shard: members KEY.jpg, KEY.cls, ... as WebDataset groups them, byte for byte
the same whenever the same images are put in.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from pretrain.source import raw
from pretrain.source.decode import DECODERS, printable
from pretrain.source.flaws import Flaw
from pretrain.source.images import ImageSource, UnreadableImageError
from pretrain.source.shard_index import Shard
from pretrain.source.tar_index import CLASS_SUFFIX, ORIGINAL_SUFFIX
from runtime.errors import InputError
from runtime.files import atomic_write, sha256
from runtime.image_files import IMAGE_SUFFIXES
from runtime.randomness import generator

FORMATS = ("jpeg", "raw")
DEFAULT_QUALITY = 90
DEFAULT_SIZE = 10_000  # images in a shard; img2dataset's, too
MAX_KEY = 60  # characters of a file's name in its key; tar headers have 100 bytes for it


@dataclass(frozen=True)
class Options:
    """What the shards hold, and in which order.

    Attributes:
        format: "jpeg": files go in as they are, of any format; "raw": decoded, as .npy.
        short_side: pixels that larger images are made smaller to; 0: their own size.
        quality: of the JPEGs that smaller images become; 0 where none are written.
        shard_size: images in a shard; the last one has the rest.
        seed: of the order; None: the source's.
    """

    format: str = "jpeg"
    short_side: int = 0
    quality: int = 0
    shard_size: int = DEFAULT_SIZE
    seed: int | None = 0

    @property
    def writes_jpegs(self) -> bool:
        """Whether images are encoded anew."""
        return self.format == "jpeg" and self.short_side > 0

    def check(self) -> None:
        """InputError for the first option that is wrong or does not fit the others."""
        if self.short_side < 0:
            raise InputError(f"--short-side {self.short_side} must be a number of pixels above 0")
        if self.shard_size < 1:
            raise InputError(f"--shard-size {self.shard_size} must be at least one image")
        if self.quality and not self.writes_jpegs:
            raise InputError(
                "--quality is of the JPEGs that --short-side makes: without it files go in as they "
                "are, and --format raw has none"
            )
        if self.writes_jpegs and not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality} must lie in 1 ... 100")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed} must be a whole number from 0 on")

    def made_with(self, fingerprint: str) -> dict[str, Any]:
        """What decides the bytes of the shards of a source with this fingerprint."""
        changed = self.short_side or self.format == "raw"
        made_by = f"Pillow {PIL.__version__}" if changed else ""
        return {**asdict(self), "made_by": made_by, "fingerprint": fingerprint}

    def order(self, count: int) -> np.ndarray:
        """Which image of the source comes where: int64 ``count``."""
        if self.seed is None:
            return np.arange(count)
        return generator(self.seed, "order of shards").permutation(count)


@dataclass(frozen=True)
class Content:
    """All images to be put into shards; ``labels`` are their class indices, None without.

    ``skip``: unreadable images are left out and noted, instead of an InputError.
    """

    source: ImageSource
    labels: Sequence[int] | None
    options: Options
    skip: bool

    def shards(self) -> list[tuple[str, np.ndarray]]:
        """Names of the shards, and which images of the source each holds."""
        order, size = self.options.order(len(self.source.files)), self.options.shard_size
        starts = range(0, len(order), size)
        return [
            (f"shard-{n:06d}.tar", order[start : start + size]) for n, start in enumerate(starts)
        ]

    def write(self, path: Path, indices: np.ndarray, tick: Callable[[], None]) -> Shard:
        """Make the shard ``path``; ``tick`` is called after each image.

        InputError where an image cannot be read, or the disk is full.
        """
        flaws: list[Flaw] = []
        try:
            with atomic_write(path) as stream:
                with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    for index in indices:
                        try:
                            members = list(self._members(int(index), flaws))
                        except UnreadableImageError as error:
                            flaws.append(self._left_out(error))
                            members = []
                        for name, content in members:
                            _add(tar, name, content)
                        tick()
                images = len(indices) - sum(not flaw.used for flaw in flaws)
                if not images:
                    raise InputError(f"no image for {path.name} can be read, of {len(indices)}")
        except OSError as error:
            raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error
        unreadable, damaged = (
            tuple((printable(flaw.name), flaw.reason) for flaw in flaws if flaw.used == used)
            for used in (False, True)
        )
        size = path.stat().st_size
        return Shard(path.name, images, size, sha256(path), unreadable, damaged)

    def _left_out(self, error: UnreadableImageError) -> Flaw:
        if not self.skip:
            raise InputError(f"{error}, or leave such images out with --skip-unreadable")
        return Flaw(error.name, error.reason)

    def _members(self, index: int, flaws: list[Flaw]) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the members for one image; its damage goes to ``flaws``."""
        key = self._key(index)
        content, suffix = self._image(index, flaws)
        yield key + suffix, content
        if self.labels is not None:
            yield key + CLASS_SUFFIX, str(self.labels[index]).encode()
        original = self.source.sha256(index)
        # a test image is to be recognised also where the shard holds it changed
        if original != hashlib.sha256(content).digest():
            yield key + ORIGINAL_SUFFIX, original.hex().encode()

    def _key(self, index: int) -> str:
        """Number in the source, so that no two are alike, and name, so that people find it again.

        Without dots: WebDataset's key ends at the first.
        """
        number = str(index).zfill(len(str(len(self.source.files) - 1)))
        stem = os.path.splitext(self.source.files[index].rpartition("/")[2])[0]
        return f"{number}_{re.sub(r'[^A-Za-z0-9_-]', '_', stem)[:MAX_KEY]}"

    def _image(self, index: int, flaws: list[Flaw]) -> tuple[bytes, str]:
        """The content and suffix of the member. UnreadableImageError also where no pixel is used:
        better now than in training.
        """
        name, damage = self.source.files[index], list[str]()
        pixels = self.source.pixels(index, damage)
        flaws += [Flaw(str(self.source.root / name), reason, used=True) for reason in damage]
        smaller = _made_smaller(Image.fromarray(pixels), self.options.short_side)
        if self.options.format == "raw":
            return raw.to_bytes(pixels if smaller is None else np.asarray(smaller)), raw.SUFFIX
        if smaller is None:
            content = self.source.read(index)
            return content, _suffix(name, content)
        out = io.BytesIO()
        smaller.save(out, "JPEG", quality=self.options.quality)
        return out.getvalue(), ".jpg"


def _made_smaller(image: Image.Image, short_side: int) -> Image.Image | None:
    """Bilinear with antialiasing, as torchvision's Resize. None where it is small enough."""
    width, height = image.size
    short = min(width, height)
    if not short_side or short <= short_side:
        return None
    size = (width * short_side // short, height * short_side // short)
    return image.resize(size, Image.Resampling.BILINEAR)


def _suffix(name: str, content: bytes) -> str:
    """By the name; a list may name files without a suffix."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return suffix
    if content.startswith(raw.MAGIC):
        return raw.SUFFIX
    with Image.open(io.BytesIO(content), formats=DECODERS) as image:
        return f".{image.format}".lower()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time, owner and rights are the same everywhere
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
