"""``shards.json`` beside shards: what belongs to the set, so that nothing is missing unnoticed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pretrain.source.flaws import DAMAGED, UNREADABLE
from pretrain.source.tar_index import TarIndex, tars_in
from runtime.errors import InputError
from runtime.files import sha256, write_text
from runtime.progress import Bar

NAME = "shards.json"
MEMBERS = "members.npz"  # where the images lie in all shards: for those who have not read them yet
UNFINISHED = "unfinished.jsonl"  # while shards are being made
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """A finished shard: its file, what was left out of it, and what is damaged in it.

    ``bytes`` are of the file, ``sha256`` hexadecimal, the others (name, reason) of images.
    """

    name: str
    images: int
    bytes: int
    sha256: str
    unreadable: tuple[tuple[str, str], ...] = ()
    damaged: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Shard:
        """Of JSON. KeyError, TypeError or ValueError where it is malformed."""
        name, images, size = str(values["name"]), int(values["images"]), int(values["bytes"])
        if "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} is no file name")
        unreadable, damaged = (
            tuple((str(image), str(reason)) for image, reason in values.get(flaw, ()))
            for flaw in ("unreadable", "damaged")
        )
        return cls(name, images, size, str(values["sha256"]), unreadable, damaged)

    def is_in(self, folder: Path) -> bool:
        """Whether the file is there, byte for byte."""
        path = folder / self.name
        return path.is_file() and path.stat().st_size == self.bytes and sha256(path) == self.sha256


@dataclass(frozen=True)
class ShardIndex:
    """Attributes:
    made_with: the options and the source's fingerprint; the same give the same bytes.
    classes: their names in the order of the class indices; () without classes.
    shards: all of the set.
    members: SHA-256 of ``members.npz``, the :class:`TarIndex` of all shards in their order, with
        digests; "" in sets of before there was one.
    """

    made_with: dict[str, Any]
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    members: str = ""

    @property
    def images(self) -> int:
        """In all shards."""
        return sum(shard.images for shard in self.shards)

    def flaws(self) -> dict[str, list[tuple[str, str]]]:
        """Unreadable images and damaged ones, (name, reason), by the name of their list."""
        return {
            UNREADABLE: [image for shard in self.shards for image in shard.unreadable],
            DAMAGED: [image for shard in self.shards for image in shard.damaged],
        }

    @classmethod
    def read(cls, folder: Path) -> ShardIndex | None:
        """That of ``folder``; None without one. InputError where it is damaged."""
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, where: str) -> ShardIndex:
        """Of the bytes of the file that is ``where``. InputError where they are damaged."""
        try:
            values = json.loads(content)
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}, not {FORMAT}")
            shards = tuple(Shard.from_dict(shard) for shard in values["shards"])
            if not shards or len({shard.name for shard in shards}) < len(shards):
                raise ValueError("no shards, or one twice")
            return cls(
                dict(values["made_with"]),
                tuple(str(name) for name in values["classes"]),
                shards,
                str(values.get("members", "")),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{where!r} is damaged ({error!r}): make the shards anew") from error

    def listed(self, name: str, size: int, where: str, remedy: str) -> Shard:
        """What is known of the file ``where``. InputError where nothing, or another size, is."""
        shard = self._by_name.get(name)
        if shard is None:
            raise InputError(f"{where!r} is not listed in the {NAME} beside it")
        if size != shard.bytes:
            raise InputError(
                f"{where!r} has {size} bytes, {shard.bytes} by the {NAME} beside it: {remedy}"
            )
        return shard

    @cached_property
    def _by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    def parts(self, whole: TarIndex) -> dict[str, TarIndex]:
        """Of the index of all shards that of each. ValueError where it is not of these shards."""
        if len(whole.names) != self.images:
            raise ValueError(f"{len(whole.names)} images, not {self.images}")
        found, first = {}, 0
        for shard in self.shards:
            found[shard.name] = part = whole.part(first, first + shard.images)
            part.check_bounds(shard.bytes)
            first += shard.images
        return found

    def write(self, folder: Path) -> None:
        """As ``shards.json`` in ``folder``."""
        values = {"format": FORMAT, "images": self.images, **asdict(self)}
        write_text(folder / NAME, json.dumps(values, indent=1) + "\n")


def shards_listed(folder: Path) -> list[Path] | None:
    """The shards of ``folder`` by its ``shards.json``; None without one.

    InputError where other tar files lie there, or the set is not finished.
    """
    index = _finished(folder)
    if index is None:
        return None
    listed = {shard.name for shard in index.shards}
    extra = [path.name for path in tars_in(folder) if path.name not in listed]
    if extra:
        raise InputError(f"{str(folder)!r} holds {extra[0]!r}, of which its {NAME} knows nothing")
    return [folder / shard.name for shard in index.shards]


def common_classes(indices: Sequence[ShardIndex | None]) -> tuple[str, ...]:
    """Names of the classes, if all of ``indices`` agree on them; else ()."""
    found = {index.classes if index else () for index in indices}
    return found.pop() if len(found) == 1 else ()


def checked(shards: Sequence[Path]) -> list[ShardIndex | None]:
    """The indices that lie beside ``shards``, folder by folder; None where one has none.

    InputError for the first shard that is not listed or has another size.
    """
    indices = []
    for folder in dict.fromkeys(path.parent for path in shards):
        index = _finished(folder)
        indices.append(index)
        if index is None:
            continue
        for path in (path for path in shards if path.parent == folder):
            index.listed(path.name, path.stat().st_size, str(path), "copy it or make it anew")
    return indices


def verify(folder: str | os.PathLike[str]) -> ShardIndex:
    """Compare the SHA-256 of all shards of ``folder``. InputError where one differs or is missing.

    With a progress bar on a terminal.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is not a folder of shards")
    index = ShardIndex.read(path)
    if shards_listed(path) is None or index is None:
        raise InputError(f"{str(path)!r} has no {NAME}, which tools/make_shards.py writes")
    wrong = []
    with Bar("shards", len(index.shards)) as bar:
        for number, shard in enumerate(index.shards, start=1):
            if not shard.is_in(path):
                wrong.append(shard.name)
            bar.show(number)
    members = path / MEMBERS
    if index.members and not (members.is_file() and sha256(members) == index.members):
        raise InputError(
            f"{str(members)!r} is damaged or missing: run tools/make_shards.py as before, it makes "
            "it again"
        )
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(index.shards)} shards in {str(path)!r} are damaged or missing, "
            f"the first is {wrong[0]!r}: run tools/make_shards.py as before, it makes them again"
        )
    return index


def _finished(folder: Path) -> ShardIndex | None:
    if (folder / UNFINISHED).exists():
        raise InputError(
            f"the shards in {str(folder)!r} are not finished: run tools/make_shards.py as before, "
            "it goes on"
        )
    return ShardIndex.read(folder)
