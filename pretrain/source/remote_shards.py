"""WebDataset shards on a server: fetched into a cache on this machine, and read there.

Everything else is as for :class:`Shards` on a disk: names, order, fingerprint.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from pretrain.source.images import GoneError
from pretrain.source.remote import RemoteFile
from pretrain.source.remote_index import TRIES, index_of, located
from pretrain.source.shard_cache import GIB, ShardCache
from pretrain.source.shard_index import common_classes
from pretrain.source.shards import Shards, joined_places
from pretrain.source.tar_index import TarIndex
from runtime.errors import InputError

log = logging.getLogger("moco")


@dataclass(frozen=True)
class RemoteShards(Shards):
    """``remote`` are the shards on the server, ``shards`` their places in the cache.

    ``digests``: SHA-256 of the files that the images were made from, uint8 N x 32.
    """

    url: str = field(default="", repr=False)
    remote: tuple[RemoteFile, ...] = ()
    digests: np.ndarray = field(default_factory=lambda: np.empty((0, 32), np.uint8))
    cache: ShardCache = field(default_factory=ShardCache)
    doubts: tuple[str, ...] = ()

    @classmethod
    def open(cls, url: str, option: str, cache: ShardCache) -> RemoteShards:
        """The shards that ``url`` names: a tar file, a pattern, or a folder with a shards.json.

        Their indices are those of make_shards, or of an earlier start; else all are fetched.
        InputError where they cannot be had or used.
        """
        if not _names_a_server(url):  # the URL is not shown: parts of a password may look like it
            raise InputError(
                f"{option} is no URL of a server: look at its host and port, and write user and "
                "password percent-encoded, / as %2F, and an @ behind the host as %40"
            )
        doubts: list[str] = []
        remote, beside = located(url, option, doubts)
        names, folder = _names(remote)
        indices = index_of(remote, beside, cache, doubts)
        whole = TarIndex.joined(list(indices))
        assert whole.digests is not None
        return cls(
            root=Path(folder),
            shards=tuple(map(cache.path, remote)),
            names=common_classes(list(beside.values())),
            url=folder,
            remote=tuple(remote),
            digests=whole.digests,
            cache=cache,
            doubts=tuple(doubts),
            **joined_places(names, indices),
        )

    @property
    def place(self) -> str:
        """The URL of the folder, without credentials."""
        return self.url

    def name_of(self, index: int) -> str:
        """Image ``index`` with its URL."""
        return f"{self.url}/{self.files[index]}"

    def read(self, index: int) -> bytes:
        """The bytes of image ``index``; its shard is fetched first where it is not there."""
        for attempt in range(TRIES):
            try:
                return super().read(index)
            except GoneError:
                if attempt:
                    log.warning(
                        "%s was removed from DATA.SHARD_CACHE while it was read: too small for "
                        "all that share it; raise DATA.SHARD_CACHE_GIB",
                        self.remote[self.shard[index]].name,
                    )
                self.open_files.close()
                self.fetch(int(self.shard[index]))
        return super().read(index)

    def sha256(self, index: int) -> bytes:
        """SHA-256 (32 bytes) of the file that image ``index`` was made from; nothing is fetched."""
        return self.digests[index].tobytes()

    def fetch(self, shard: int) -> None:
        """Have shard number ``shard`` in the cache. InputError where that fails."""
        self.cache.fetch(self.remote[shard])

    def state(self) -> str:
        """A digest of the shards' names, sizes and versions."""
        files = "\n".join(f"{f.name} {f.size} {f.version} {f.sha256}" for f in self.remote)
        return hashlib.sha256(files.encode("utf-8", "surrogateescape")).hexdigest()

    def total_bytes(self) -> int:
        """Of all shards."""
        return sum(file.size for file in self.remote)

    def at_hand(self) -> int:
        """All images where the cache holds all shards; else of those in an eighth of it."""
        if self.total_bytes() <= self.cache.most:
            return len(self.files)
        together = np.cumsum([file.size for file in self.remote])
        shards = max(1, int(np.searchsorted(together, self.cache.most // 8)))
        return int((self.shard < shards).sum())

    def check_any_order(self, what: str, remedy: str = "raise it") -> None:
        """InputError where ``what``, which reads in any order, would fetch shards repeatedly."""
        if self.total_bytes() > self.cache.most:
            raise InputError(
                f"{what} reads all {len(self.remote)} shards of {self.place!r} "
                f"({self.total_bytes() / GIB:.3g} GiB) in any order, and DATA.SHARD_CACHE_GIB "
                f"{self.cache.most / GIB:.3g} does not hold them: {remedy}"
            )

    def describe(self) -> None:
        """Say in the log where the shards are, and what may go wrong with them."""
        there = sum(path.exists() for path in self.shards)
        log.info(
            "%s: %d shards, %.3g GiB, %d of them in %s, which may hold %.3g GiB",
            *(self.place, len(self.remote), self.total_bytes() / GIB, there, self.cache.folder),
            self.cache.most / GIB,
        )
        for doubt in self.doubts:
            log.warning("%s", doubt)
        super().describe()


def _names_a_server(url: str) -> bool:
    """Not so ``http://me:12/34@host/``, whose host would be "me": the password is cut at its /."""
    try:
        parts = urlsplit(url)
        cut = parts.port is not None and "@" in parts.path and "@" not in parts.netloc
        return parts.hostname is not None and parts.port != 0 and not cut
    except ValueError:
        return False


def _names(remote: Sequence[RemoteFile]) -> tuple[list[str], str]:
    """Names of the shards below the folder that they have in common, and its URL."""
    scheme = remote[0].name.partition("://")[0]
    paths = [file.name.partition("://")[2] for file in remote]
    folders = [path.split("/")[:-1] for path in paths]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    folder = "/".join(names[0] for names in shared)  # of // too, which means something on S3
    return [path[len(folder) :].removeprefix("/") for path in paths], f"{scheme}://{folder}"
