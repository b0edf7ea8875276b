"""Which shards a URL names, and where their images lie: if possible without fetching them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pretrain.source import shard_index
from pretrain.source.remote import DeniedError, MissingError, RemoteFile, content, look
from pretrain.source.shard_cache import GIB, ShardCache
from pretrain.source.shard_index import MEMBERS, ShardIndex
from pretrain.source.shards import expand
from pretrain.source.tar_index import FOLDER, VERSION, TarIndex, kept, scan_tar
from runtime.distributed import is_main
from runtime.errors import InputError
from runtime.files import user_cache
from runtime.progress import Bar
from runtime.urls import shown, with_path

log = logging.getLogger("moco")

PARALLEL = 8  # files asked for at a time
TRIES = 5  # to read a shard that others keep removing
Item = TypeVar("Item")
Result = TypeVar("Result")


def located(
    url: str, option: str, doubts: list[str]
) -> tuple[list[RemoteFile], dict[str, ShardIndex | None]]:
    """The shards that ``url`` names, and what the shards.json of each folder says.

    ``doubts`` gets what a user should know. InputError for the first that cannot be had.
    """
    path = shown(url).partition("://")[2]
    if path.endswith("/"):
        index = _index_in(url, doubts)
        if index is None:
            raise InputError(
                f"{option}: there is no {shard_index.NAME}, which tools/make_shards.py writes, in "
                f"{shown(url)!r}: name the shards, e.g. 's3://bucket/x-{{000..063}}.tar'"
            )
        remote = _look_at([_sibling(url, shard.name) for shard in index.shards])
        beside: dict[str, ShardIndex | None] = {_folder(remote[0]): index}
    elif path.endswith(".tar"):
        name, mark, query = url.partition("?")
        remote = _look_at([name + mark + query for name in expand(name)])
        first = {_folder(file): file.url for file in reversed(remote)}
        beside = {folder: _index_in(first[folder], doubts) for folder in first}
    else:
        raise InputError(
            f"{option} {shown(url)!r}: name a .tar file, a pattern such as "
            "'s3://bucket/x-{000..063}.tar', or a folder of shards with / at its end"
        )
    remote = [_as_listed(file, beside[_folder(file)]) for file in remote]
    if any(not (file.version or file.sha256) for file in remote):
        doubts.append(
            f"{shown(url)}: the server gives neither ETag nor Last-Modified, and there is no "
            f"{shard_index.NAME}: a shard replaced by one of the same size goes unnoticed"
        )
    return remote, beside


def _folder(file: RemoteFile) -> str:
    return file.name.rpartition("/")[0]


def _base(file: RemoteFile) -> str:
    return file.name.rpartition("/")[2]


def _sibling(url: str, name: str) -> str:
    return with_path(url, lambda path: f"{path.rpartition('/')[0]}/{name}")


def _look_at(urls: Sequence[str]) -> list[RemoteFile]:
    def there(url: str) -> RemoteFile | None:
        try:
            return look(url)
        except MissingError:
            return None

    found = _in_parallel(there, urls, "shards looked for")
    missing = [shown(url) for url, file in zip(urls, found, strict=True) if file is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(urls)} shards are not there, the first is {missing[0]!r}"
        )
    return [file for file in found if file is not None]


def _index_in(url: str, doubts: list[str]) -> ShardIndex | None:
    """The shards.json in the folder of ``url``; None without one. InputError if damaged."""
    place = _sibling(url, shard_index.NAME)
    try:
        found = content(place)
    except MissingError:
        return None
    except DeniedError as error:  # a key for the shards alone opens nothing else
        doubts.append(f"what arrives of the shards is not compared with checksums: {error}")
        return None
    return ShardIndex.parse(found, shown(place))


def _as_listed(file: RemoteFile, index: ShardIndex | None) -> RemoteFile:
    """With the checksum of shards.json. InputError where that says something else."""
    if index is None:
        return file
    shard = index.listed(_base(file), file.size, file.name, "copy it there anew")
    return replace(file, sha256=shard.sha256)


def index_of(
    remote: Sequence[RemoteFile],
    beside: dict[str, ShardIndex | None],
    cache: ShardCache,
    doubts: list[str],
) -> list[TarIndex]:
    """The index of each shard, with digests, by what ``beside`` says of its folder.

    By the file that make_shards has written beside the shards, or by an earlier start; else the
    shard is fetched. ``doubts`` gets what a user should know.
    """
    made: dict[str, TarIndex] = {}
    for folder, index in beside.items():
        if index is not None and index.members:
            url = next(file.url for file in remote if _folder(file) == folder)
            made |= {
                f"{folder}/{name}": part for name, part in _made(url, index, cache, doubts).items()
            }
    left = [file for file in remote if file.name not in made]
    if not all(_cached_index(file) for file in left):
        log.warning(
            "reading all %d shards (%.3g GiB) to see what is in them: the first start only",
            *(len(left), sum(file.size for file in left) / GIB),
        )
    # none is removed before it has been looked through
    parallel = cache.most // max((2 * file.size for file in left if file.size), default=1)
    scanned = _in_parallel(
        lambda file: _index(file, cache, doubts), left, "shards indexed", parallel
    )
    made |= {file.name: index for file, index in zip(left, scanned, strict=True)}
    return [made[file.name] for file in remote]


def _made(url: str, index: ShardIndex, cache: ShardCache, doubts: list[str]) -> dict[str, TarIndex]:
    """By the file that make_shards has written beside the shards, one of which is ``url``."""
    try:
        file = replace(look(_sibling(url, MEMBERS)), sha256=index.members)
    except MissingError as error:
        raise InputError(
            f"{error}: {shard_index.NAME} beside it asks for it, copy it there, too"
        ) from error
    content_of_members = _verified(file, cache)
    _tell_of_earlier(file, cache.earlier(file), doubts)
    try:
        whole = TarIndex.read(io.BytesIO(content_of_members))
        if whole.digests is None:
            raise ValueError("no digests")
        return index.parts(whole)
    except Exception as error:
        raise InputError(f"{file.name!r} is damaged: make the shards anew") from error


def _verified(file: RemoteFile, cache: ShardCache) -> bytes:
    """The content of a small file, with its SHA-256; a copy in the cache may be damaged."""
    for _ in range(TRIES):
        path = cache.fetch(file)
        with contextlib.suppress(FileNotFoundError):  # others needed the room
            found = path.read_bytes()
            if hashlib.sha256(found).hexdigest() == file.sha256:
                return found
            path.unlink()
    raise InputError(f"{file.name!r} does not stay in DATA.SHARD_CACHE: raise SHARD_CACHE_GIB")


def _index(file: RemoteFile, cache: ShardCache, doubts: list[str]) -> TarIndex:
    """Of an earlier start; else of the shard, which is fetched."""
    stem, name = _names_of_index(file)
    before: list[Path] = []
    with contextlib.suppress(RuntimeError):  # the user has no home
        before = [p for p in user_cache(FOLDER).glob(f"{stem}-*.npz") if p.name != name]
    index = kept(lambda: user_cache(FOLDER) / name, lambda: _scan(file, cache))
    _tell_of_earlier(file, before, doubts)
    return index


def _tell_of_earlier(file: RemoteFile, before: Sequence[Path], doubts: list[str]) -> None:
    """``before``: what is kept of other states. The main process, which has the log, removes it."""
    for path in before:
        doubts.append(f"{file.name} has changed on the server since it was read last")
        if is_main():
            path.unlink(missing_ok=True)


def _names_of_index(file: RemoteFile) -> tuple[str, str]:
    """With which those of the URL begin, and that of the file in its present state."""
    stem = "url-" + hashlib.sha256(os.fsencode(file.name)).hexdigest()[:32]
    state = f"{VERSION}\0{file.size}\0{file.version}\0{file.sha256}"
    return stem, f"{stem}-{hashlib.sha256(state.encode()).hexdigest()[:32]}.npz"


def _cached_index(file: RemoteFile) -> bool:
    with contextlib.suppress(RuntimeError):
        return (user_cache(FOLDER) / _names_of_index(file)[1]).exists()
    return False


def _scan(file: RemoteFile, cache: ShardCache) -> TarIndex:
    for _ in range(TRIES):
        path = cache.fetch(file)
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as held:
            problem, index = None, None
            try:
                index = scan_tar(path, digests=True)
            except InputError as error:
                problem = InputError(str(error).replace(str(path), file.name))
            status = os.fstat(held.fileno())
            if status.st_size < file.size or not os.path.samestat(status, path.stat()):
                continue  # others needed the room while it was looked through
            if index is None:
                raise problem or AssertionError
            return index
    raise InputError(f"{file.name!r} does not stay in DATA.SHARD_CACHE: raise SHARD_CACHE_GIB")


def _in_parallel(
    action: Callable[[Item], Result], items: Sequence[Item], unit: str, most: int = PARALLEL
) -> list[Result]:
    """The results in order. The first problem stops what has not begun."""
    pool = ThreadPoolExecutor(max(1, min(most, PARALLEL)))
    try:
        with Bar(unit, len(items)) as bar:
            return list(_shown_by(bar, pool.map(action, items)))
    finally:
        pool.shutdown(cancel_futures=True)


def _shown_by(bar: Bar, results: Iterable[Result]) -> Iterable[Result]:
    for number, result in enumerate(results, start=1):
        bar.show(number)
        yield result
