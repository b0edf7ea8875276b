"""The cache of shards: bounded, shared by processes, and nothing in it that is not whole."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shard_server import ShardServer, serving

from pretrain.source import remote
from pretrain.source.images import GoneError
from pretrain.source.open_files import OpenFiles
from pretrain.source.remote import RemoteFile, look
from pretrain.source.shard_cache import ShardCache
from runtime.errors import InputError

pytest.importorskip("aiohttp")
SIZE = 1 << 18
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardServer]:
    """Eight files of the same size."""
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    (tmp_path / "files").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        (tmp_path / "files" / f"{number}.tar").write_bytes(rng.bytes(SIZE))
    with serving(tmp_path / "files") as running:
        yield running


def files(server: ShardServer) -> list[RemoteFile]:
    return [look(server.url(f"{number}.tar")) for number in range(8)]


def content(server: ShardServer, number: int) -> bytes:
    return (server.folder / f"{number}.tar").read_bytes()


def on_the_disk(folder: Path) -> int:
    """Bytes of the disk that the cache takes, files without a name that are open included."""
    found = {path.stat() for path in folder.rglob("*") if path.is_file()}
    for descriptor in range(3, 256):
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if status.st_nlink == 0 and status.st_size == SIZE:
                found.add(status)
    return sum(status.st_blocks * 512 for status in found)


def test_the_ones_used_last_stay_and_no_open_file_takes_more(
    server: ShardServer, tmp_path: Path
) -> None:
    cache, shards, opened = ShardCache(tmp_path / "cache", 3 * SIZE), files(server), OpenFiles()
    stray = tmp_path / "cache" / "mine.tar"
    stray.parent.mkdir()
    stray.write_bytes(b"not a shard of ours")
    for number in (0, 1, 2, 0, 3, 4, 5, 1):
        path = cache.fetch(shards[number])
        if server.times("GET", f"{number}.tar") > 1:  # the file that is open was removed
            with pytest.raises(GoneError):
                opened.read(path, 0, SIZE)
            opened.close()
        assert opened.read(path, 0, SIZE) == content(server, number)
        assert cache.used() <= 3 * SIZE
        assert on_the_disk(tmp_path / "cache") <= 3 * SIZE + 4096
    assert [cache.path(shard).exists() for shard in shards[:6]] == [0, 1, 0, 0, 1, 1]
    assert stray.exists()
    assert [server.times("GET", f"{n}.tar") for n in range(6)] == [1, 2, 1, 1, 1, 1]


def test_one_of_several_processes_downloads(server: ShardServer, tmp_path: Path) -> None:
    cache, shards = ShardCache(tmp_path / "cache", 3 * SIZE), files(server)
    server.latency = 0.2

    def work() -> None:
        for shard in shards[:3]:
            if cache.fetch(shard).stat().st_size != SIZE:
                os._exit(1)

    processes = [FORK.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [server.times("GET", f"{n}.tar") for n in range(3)] == [1, 1, 1]


def test_a_killed_download_leaves_nothing_that_counts(server: ShardServer, tmp_path: Path) -> None:
    cache, shards = ShardCache(tmp_path / "cache", 2 * SIZE), files(server)
    server.rate = SIZE / 10  # ten seconds
    process = FORK.Process(target=cache.fetch, args=(shards[0],))
    process.start()
    deadline = time.monotonic() + 20
    while not any(p.stat().st_size for p in cache.folder.glob(".*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not cache.path(shards[0]).exists()
    assert len(list(cache.folder.glob(".*.part"))) == 1
    server.rate = 0
    for number in (0, 1):
        assert cache.fetch(shards[number]).read_bytes() == content(server, number)
    assert not list(cache.folder.glob(".*"))
    assert cache.used() == 2 * SIZE


def test_a_full_disk_is_one_line(
    server: ShardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, shard = ShardCache(tmp_path / "cache", 2 * SIZE), files(server)[0]

    class Full:
        def get_file(self, path: str, target: str) -> None:
            Path(target).write_bytes(b"part")
            raise OSError(errno.ENOSPC, "No space left on device", target)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_file_system", lambda url: (Full(), url))
        with pytest.raises(InputError, match=r"0.tar': no space left on the disk of DATA.SHARD_CA"):
            cache.fetch(shard)
    assert cache.used() == 0
    (tmp_path / "a-file").write_text("x")
    with pytest.raises(InputError, match=r"cannot keep .*0.tar' in DATA.SHARD_CACHE .*a-file"):
        ShardCache(tmp_path / "a-file", SIZE).fetch(shard)
    assert ShardCache.of("", 1e300).most >= 1 << 62


def test_a_long_name_of_any_script_fits(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, SIZE)
    shard = RemoteFile(f"http://host/{'あ' * 85}.tar", SIZE, "1")
    with cache._partial(cache.path(shard).name, SIZE) as path:
        assert path.exists()
        assert path.name.endswith(f".{SIZE}.{path.name[-13:-5]}.part")
    assert cache.path(shard).name.endswith("あああ.tar")


def test_a_cache_cleared_during_a_download_is_named(server: ShardServer, tmp_path: Path) -> None:
    cache, shard = ShardCache(tmp_path / "cache", 2 * SIZE), files(server)[0]

    def clear(method: str, name: str) -> None:
        if method == "GET":
            shutil.rmtree(cache.folder)

    server.fault = clear
    with pytest.raises(InputError, match=r"cache' was cleared while 'http://.*0.tar' was fetched"):
        cache.fetch(shard)
    server.fault = lambda method, name: None
    assert cache.fetch(shard).read_bytes() == content(server, 0)


def test_a_known_checksum_counts(server: ShardServer, tmp_path: Path) -> None:
    shard, wanted = files(server)[0], hashlib.sha256(content(server, 0)).hexdigest()
    cache = ShardCache(tmp_path / "cache", 2 * SIZE)
    good = RemoteFile(shard.url, shard.size, shard.version, wanted)
    assert cache.fetch(good).read_bytes() == content(server, 0)
    bad = RemoteFile(shard.url, shard.size, shard.version, "0" * 64)
    assert cache.path(bad) != cache.path(good)
    with pytest.raises(InputError, match=r"0.tar', 5 times: .* SHA-256 of shards.json"):
        cache.fetch(bad)


def test_a_forked_process_leaves_the_connections_alone(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share an epoll object: what one removes from it, the other waits for in vain."""
    monkeypatch.setattr(remote, "READ", 20)
    monkeypatch.setattr(remote, "ATTEMPTS", 1)

    def ask() -> None:
        gc.collect()
        assert remote.content(server.url("0.tar")) == content(server, 0)
        gc.collect()

    for _ in range(3):
        ask()
        process = FORK.Process(target=ask)
        process.start()
        process.join()
        assert process.exitcode == 0
    ask()
