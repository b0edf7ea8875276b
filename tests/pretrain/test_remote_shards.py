"""Shards behind URLs: the same batches and runs as from a disk; what is fetched, and what fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_runs import IMAGES, Job, differences, kill, metrics
from served_shards import cache, largest
from shard_server import ShardServer, serving
from sources_synthetic import write_tar
from test_faults import wait_for_step

from pretrain.loading.batches import Batch, EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.loading.order import window_of
from pretrain.loading.prefetch import check_cache
from pretrain.source.open_source import open_source
from pretrain.source.remote_shards import RemoteShards
from pretrain.source.shard_cache import ShardCache
from pretrain.source.shard_index import ShardIndex, verify
from pretrain.source.tar_index import TarIndex
from pretrain.views import ViewRecipe
from runtime.errors import InputError
from runtime.files import sha256

pytest.importorskip("aiohttp")
pytest_plugins = ("served_shards",)  # its fixtures
USER, SECRET = "me:hidden-password@", "?X-Signature=hidden-signature"
BOTH = pytest.mark.parametrize("made", ["jpeg", "raw"], indirect=True)


def loaded(source: object, workers: int, window: int, start: int = 0) -> list[Batch]:
    """All batches of two epochs."""
    dataset = ViewDataset(source, ViewRecipe(8, blur_prob=0.5), 2, 7, source.labels())
    batches = EpochBatches(IMAGES, 8, 12, 7, start, window=window_of(source, window))
    return [
        Batch(tuple(view.clone() for view in b.views), b.labels.clone(), b.indices.clone())
        for b in Loader(dataset, batches, workers)
    ]


def same(found: list[Batch], wanted: list[Batch]) -> bool:
    return len(found) == len(wanted) and all(
        torch.equal(torch.stack(a.views), torch.stack(b.views))
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        for a, b in zip(found, wanted, strict=True)
    )


@BOTH
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_disk(
    workers: int, shards: Path, server: ShardServer, tmp_path: Path
) -> None:
    local = open_source(shards)
    whole = open_source(server.url(), cache=cache(tmp_path, shards))
    assert isinstance(whole, RemoteShards)
    assert not [name for method, name in server.asked if method == "GET" and name[-3:] == "tar"]
    assert whole.files == local.files
    assert whole.classes() == ("a", "b")
    assert whole.fingerprint() == local.fingerprint()
    assert [whole.sha256(i) for i in range(IMAGES)] == [local.sha256(i) for i in range(IMAGES)]
    check_cache(whole, 0, 8)
    assert same(loaded(whole, workers, 0), loaded(local, workers, 0))
    assert all(server.times("GET", path.name) == 1 for path in shards.glob("*.tar"))
    small = open_source(server.url(), cache=ShardCache(tmp_path / "s", 8 * largest(shards)))
    assert same(loaded(small, workers, 5, start=2), loaded(local, workers, 5, start=2))
    assert small.cache.used() <= small.cache.most < small.total_bytes()


@BOTH
def test_a_pattern_without_an_index_fetches_all_once(
    shards: Path, server: ShardServer, tmp_path: Path
) -> None:
    for name in ("shards.json", "members.npz"):
        (shards / name).unlink()
    pattern = "shard-{000002..000007}.tar"
    local = open_source(shards / pattern)
    for start in range(2):
        server.asked.clear()
        few = cache(tmp_path, shards, 3 if start else 2)
        source = open_source(server.url(pattern), cache=few)
        fetched = [name for method, name in server.asked if method == "GET" and name[-3:] == "tar"]
        assert len(fetched) == (0 if start else 6)  # the second start has the index of the first
        assert (source.files, source.fingerprint()) == (local.files, local.fingerprint())
        assert source.classes() == ("0", "1")
    assert [source.read(i) for i in range(24)] == [local.read(i) for i in range(24)]
    assert [source.sha256(i) for i in range(24)] == [local.sha256(i) for i in range(24)]
    one = open_source(server.url("shard-000003.tar"), cache=few)
    assert one.files == open_source(shards / "shard-000003.tar").files
    (shards / "shard-000003.tar").write_bytes((shards / "shard-000004.tar").read_bytes())
    again = open_source(server.url(pattern), cache=few)
    assert any("shard-000003.tar has changed on the server since" in d for d in again.doubts)
    assert again.fingerprint() != source.fingerprint()


PASSING = [500, 503, 429, "drop", None, "short", "flip"]
FINAL = {
    403: r"cannot read 'http://127.0.0.1:\d+/shard-000001.tar': HTTP 403 Forbidden$",
    404: r"there is no file 'http://127.0.0.1:\d+/shard-000001.tar'",
    500: r"/shard-000001.tar', 5 times: HTTP 500 Internal Server Error$",
    "drop": r"/shard-000001.tar', 5 times: ",
    "short": r"/shard-000001.tar', 5 times: ",
    "flip": r"/shard-000001.tar', 5 times: the bytes that arrived do not have the SHA-256",
}


def test_what_fails_is_tried_again_and_then_named(
    shards: Path, server: ShardServer, tmp_path: Path
) -> None:
    local = open_source(shards)
    source = open_source(server.url("", USER) + SECRET, cache=cache(tmp_path, shards))
    failing = iter(PASSING)
    server.fault = lambda method, name: next(failing, None) if method == "GET" else None
    images = source.images_in_shards()
    firsts = np.cumsum(images) - images
    for shard in (0, 2):
        assert source.read(firsts[shard]) == local.read(firsts[shard])
    assert next(failing, None) is None
    for fault, message in FINAL.items():
        server.fault = lambda method, name, fault=fault: fault if method == "GET" else None
        with pytest.raises(InputError, match=message) as caught:
            source.read(firsts[1])
        assert "hidden" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert not list(source.cache.folder.glob(".*"))
    server.fault = lambda method, name: None
    assert source.read(firsts[1]) == local.read(firsts[1])


def test_a_start_that_cannot_work_is_one_line(
    shards: Path, server: ShardServer, tmp_path: Path
) -> None:
    few = cache(tmp_path, shards, 0.5)
    server.fault = lambda method, name: {"a": 500, "b": "no length", "c": 403}.get(name[:1])
    write_tar(shards / "b.tar", [("x.jpg", b"1")])
    for name, message in {
        "shard-{000010..000014}.tar": "3 of 5 shards are not there, the first is 'http://127",
        "nowhere/": "there is no shards.json",
        "nowhere.tar": "1 of 1 shards are not there",
        "": "DATA.SHARD_CACHE_GIB is",
        "x": "name a .tar file, a pattern",
        "b.tar": "b.tar' has .*no Content-Length",
        "a.tar": "a.tar', 5 times: HTTP 500",
        "c.tar": "c.tar': HTTP 403",
        "{b.tar": "braces do not match",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            open_source(server.url(name, USER) + SECRET, cache=few).read(0)
        assert "hidden" not in str(caught.value)
    for url, message in {
        "http://me:hidden/word@127.0.0.1/x.tar": "^DATA.ROOT is no URL of a server: look",
        "http://me:12/hidden@127.0.0.1/x.tar": "^DATA.ROOT is no URL of a server: .* as %2F, and",
        "http://127.0.0.1:1/x.tar?hidden": "read 'http://127.0.0.1:1/x.tar', 5 times: Cannot",
        "http:///x.tar?hidden": "^DATA.ROOT is no URL of a server",
        "http://127.0.0.1:99999/x.tar?hidden": "look at its host and port",
        "FILE:///hidden/x.tar": "^DATA.ROOT is no URL of a server",
        "https:/me:hidden@127.0.0.1/x.tar": "^DATA.ROOT is neither a file nor a URL",
        " http://me:hidden@127.0.0.1/x.tar": "without spaces before",
        "http://a..b/x.tar?hidden": "read 'http://a..b/x.tar': ",  # once
        "nosuch://b/x.tar": "Protocol not known: nosuch",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            open_source(url, cache=few)
        assert "hidden" not in str(caught.value)
    values = json.loads((shards / "shards.json").read_text())
    values["shards"][3]["bytes"] += 1
    (shards / "shards.json").write_text(json.dumps(values))
    with pytest.raises(
        InputError, match=r"shard-000003.tar' has \d+ bytes, \d+ by the shards.json"
    ):
        open_source(server.url(), cache=cache(tmp_path, shards))
    (shards / "shards.json").write_text("{}")
    with pytest.raises(InputError, match=r"shards.json' is damaged"):
        open_source(server.url(), cache=cache(tmp_path, shards))


def test_a_changed_shard_is_never_mixed_in(
    shards: Path, server: ShardServer, tmp_path: Path
) -> None:
    for listed in (True, False):
        if not listed:
            (shards / "shards.json").unlink()
        source = open_source(
            server.url("shard-{000000..000003}.tar"), cache=cache(tmp_path, shards)
        )
        victim = shards / "shard-000001.tar"
        before = victim.read_bytes()
        for path in source.cache.folder.glob("*-shard-*"):
            path.unlink()
        victim.write_bytes(before[:-600] + b"x" + before[-599:])
        with pytest.raises(InputError, match=r"shard-000001.tar' has changed on the server since"):
            source.read(4)
        victim.write_bytes(before)
        assert source.read(4) == open_source(shards / "shard-000001.tar").read(0)


def test_members_belong_to_the_set(shards: Path, server: ShardServer, tmp_path: Path) -> None:
    assert verify(shards).members
    content = bytearray((shards / "members.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (shards / "members.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"members.npz' is damaged or missing"):
        verify(shards)
    with pytest.raises(InputError, match=r"members.npz', 5 times: .* SHA-256"):
        open_source(server.url(), cache=cache(tmp_path, shards))
    (shards / "members.npz").unlink()
    with pytest.raises(InputError, match=r"members.npz' .*: shards.json beside it asks for it"):
        open_source(server.url(), cache=cache(tmp_path, shards))


def test_a_kept_copy_of_the_members_is_verified_and_told_when_it_changes(
    shards: Path, server: ShardServer, tmp_path: Path
) -> None:
    few = cache(tmp_path, shards)
    source = open_source(server.url(), cache=few)
    (kept,) = few.folder.glob("*-members.npz")
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # by the disk
    again = open_source(server.url(), cache=few)
    assert (again.files, again.doubts) == (source.files, ())
    assert kept.read_bytes() == content
    index = TarIndex.read(shards / "members.npz")
    index.digests[0] ^= 1
    index.write(shards / "members.npz")
    values = json.loads((shards / "shards.json").read_text())
    values["members"] = sha256(shards / "members.npz")
    (shards / "shards.json").write_text(json.dumps(values))
    changed = open_source(server.url(), cache=few)
    assert changed.doubts == (
        f"{server.url('members.npz')} has changed on the server since it was read last",
    )
    assert open_source(server.url(), cache=few).doubts == ()


def test_an_index_of_nothing_or_of_a_shard_twice_is_damaged(
    shards: Path, server: ShardServer, tmp_path: Path
) -> None:
    values = json.loads((shards / "shards.json").read_text())
    for found in ([], [*values["shards"][:-1], values["shards"][0]]):
        (shards / "shards.json").write_text(json.dumps(values | {"shards": found}))
        for root in (server.url(), shards):
            with pytest.raises(InputError, match="no shards, or one twice"):
                open_source(root, cache=cache(tmp_path, shards))
    (shards / "shards.json").unlink()
    (shards / "nothing.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"nothing.tar' \(empty file\)"):
        open_source(server.url("nothing.tar"), cache=cache(tmp_path, shards))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_names_are_those_of_the_server(host: str, shards: Path, tmp_path: Path) -> None:
    if ":" in host and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    few, files = cache(tmp_path, shards), open_source(shards).files
    with serving(shards, host) as server:
        for name in ("", "/", "{,/}shard-{000000..000011}.tar"):  # // is part of a name on S3
            if name[:1] == "{":
                files = files + tuple(f"/{file}" for file in files)
            source = open_source(server.url(name), cache=few)
            place = server.url("/" if name == "/" else "")[:-1]
            assert (source.files, source.place) == (files, place)
            assert source.read(0) == open_source(shards).read(0)


def test_a_run_killed_and_resumed_and_no_credential_anywhere(
    shards: Path, server: ShardServer, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    root = server.url("", USER) + SECRET
    window = ("DATA.SHUFFLE_WINDOW", "5", "SOLVER.EPOCHS", "2")
    room = 10 * largest(shards) / (1 << 30)
    streamed = (
        *("DATA.ROOT", root, "DATA.SHARD_CACHE", str(tmp_path / "cache")),
        *("DATA.SHARD_CACHE_GIB", repr(room), "DATA.NUM_WORKERS", "1"),
    )
    whole = Job(shards, tmp_path / "whole", window, world=1)
    assert whole.finish() == [0]
    job = Job(shards, tmp_path / "run", (*window, *streamed), world=1)
    processes = job.start()
    wait_for_step(processes, job.output, 6)
    kill(processes)
    for path in (tmp_path / "cache").glob("*-shard-*"):  # another machine goes on
        path.unlink(missing_ok=True)  # a process that fetches ahead lives on for a second
    assert job.finish() == [0], job.log(0)
    assert differences(job.output, whole.output) == []
    assert len(metrics(job.output)) == 12
    for path in (*job.output.rglob("*"), *tmp_path.glob("run.*.log")):
        assert path.is_dir() or b"hidden" not in path.read_bytes(), path
    assert "hidden" not in "".join(capfd.readouterr())
    assert f"12 shards, {server.url()[:-1]}" not in job.log(0)
    assert f"{server.url()[:-1]}: 12 shards" in job.log(0)


def test_a_forged_index_reads_nothing_outside_its_shard(shards: Path) -> None:
    index = ShardIndex.read(shards)
    assert index is not None
    whole = TarIndex.read(shards / "members.npz")
    index.parts(whole)
    for field, value in {"offsets": -1, "sizes": 1 << 40}.items():
        array = getattr(whole, field).copy()
        array[7] = value
        with pytest.raises(ValueError, match="outside its shard"):
            index.parts(replace(whole, **{field: array}))
    with pytest.raises(ValueError, match="47 images, not 48"):
        index.parts(whole.part(0, 47))
