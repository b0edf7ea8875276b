"""Shards on a server are fetched before they are read, and what disturbs that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_runs import IMAGES
from served_shards import cache, largest
from shard_server import ShardServer

from pretrain.loading.batches import EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.loading.order import Window, permutation, window_of
from pretrain.loading.prefetch import _Fetching, at_once, check_cache, uses
from pretrain.source.open_source import open_source
from pretrain.source.shard_cache import ShardCache
from pretrain.views import ViewRecipe
from runtime.errors import InputError

pytest.importorskip("aiohttp")
pytest_plugins = ("served_shards",)  # its fixtures


def test_what_does_not_fit_the_cache_is_refused(
    shards: Path, server: ShardServer, tmp_path: Path
) -> None:
    source = open_source(server.url(), cache=cache(tmp_path, shards, 6))
    with pytest.raises(
        InputError, match=r"0, a full shuffle, .* or shuffle in a window, e.g. DATA"
    ):
        check_cache(source, 0, 8)
    with pytest.raises(InputError, match=r"DATA.SHUFFLE_WINDOW 40 reads from 12 shards at a time"):
        check_cache(source, 40, 8)
    with pytest.raises(InputError, match=r"SOURCE reads all 12 shards .* fewer shards"):
        source.check_any_order("SOURCE", "name fewer shards")
    assert source.at_hand() < IMAGES
    check_cache(open_source(server.url(), cache=cache(tmp_path, shards)), 0, 8)


@pytest.mark.parametrize("window", [0, 1, 7, 30])
def test_the_plan_is_what_an_epoch_reads(window: int) -> None:
    sizes = np.random.default_rng(window).integers(1, 9, 11)
    shard = np.repeat(np.arange(11), sizes)
    count, batch = len(shard), 4
    steps = count // batch
    mixed = Window(window, sizes.tolist()) if window else None
    start, stop = 2, 2 * steps + 3
    read: dict[tuple[int, int], list[int]] = {}
    for step in range(start, stop):
        epoch, place = divmod(step, steps)
        order = permutation(count, 5, epoch, mixed)[place * batch : place * batch + batch]
        for one in shard[order]:
            read.setdefault((epoch, int(one)), []).append(step)
    plan = list(uses(shard, batch, 5, mixed, start, stop))
    assert sorted(plan) == sorted((found[0], found[-1], one) for (_, one), found in read.items())
    assert [use.first for use in plan] == sorted(use.first for use in plan)
    most = max(len({u.shard for u in plan if u.first <= s <= u.last}) for s in range(start, stop))
    assert most <= at_once(sizes.tolist(), (window or count) + 2 * batch)


def test_fetched_before_it_is_read(shards: Path, server: ShardServer, tmp_path: Path) -> None:
    """With the trainer at a standstill, as many shards come as the cache may hold."""
    source = open_source(server.url(), cache=cache(tmp_path, shards, 9))
    dataset = ViewDataset(source, ViewRecipe(8), 1, 7, None)
    batches = EpochBatches(IMAGES, 8, 6, 7, window=window_of(source, 1))
    made = iter(Loader(dataset, batches, 1))
    next(made)
    deadline = time.monotonic() + 20
    while sum(path.exists() for path in source.shards) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    there = {path for path in source.shards if path.exists()}
    assert len(there) in (8, 9)  # 9 only if small ones are among them
    made.close()
    first = [use.shard for use in uses(source.shard, 8, 7, batches.window, 0, 6)]
    assert there == {source.shards[shard] for shard in first[: len(there)]}


def test_a_killed_prefetch_is_told_and_changes_nothing(
    shards: Path, server: ShardServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local = open_source(shards)
    source = open_source(server.url(), cache=cache(tmp_path, shards))
    batches = EpochBatches(IMAGES, 8, 12, 7)
    loader = Loader(ViewDataset(source, ViewRecipe(8), 1, 7, local.labels()), batches, 0)
    server.latency = 0.05  # not all is there before the kill
    made = iter(loader)
    seen = [next(made).indices.clone()]
    (prefetch,) = multiprocessing.active_children()
    os.kill(prefetch.pid, signal.SIGKILL)
    prefetch.join()
    seen += [batch.indices.clone() for batch in made]
    wanted = Loader(ViewDataset(local, ViewRecipe(8), 1, 7, local.labels()), batches, 0)
    assert torch.equal(torch.cat(seen), torch.cat([b.indices.clone() for b in wanted]))
    assert [r.getMessage()[:70] for r in caplog.records if "fetches shards" in r.message] == [
        "the process that fetches shards ahead has ended with exit code -9: fro"
    ]


def test_shards_that_others_remove_are_fetched_again_and_told(
    shards: Path,
    server: ShardServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Never in silence, and always to the same bytes."""
    local = open_source(shards)
    source = open_source(server.url(), cache=cache(tmp_path, shards))
    fetching = _Fetching(source)
    for use in uses(source.shard, 8, 7, None, 0, 6):
        while not fetching.begun(use, 0):
            fetching.wait()
    while not all(path.exists() for path in source.shards):
        fetching.wait()
    assert [source.read(i) for i in range(IMAGES)] == [local.read(i) for i in range(IMAGES)]
    one = ShardCache(source.cache.folder, largest(shards))  # of another run, with less room
    source.shards[4].unlink()
    one.fetch(source.remote[4])
    monkeypatch.setattr(fetching, "_look", 0)
    with caplog.at_level("WARNING", "moco"):
        fetching.wait()
    assert "11 shards are no longer in DATA.SHARD_CACHE" in caplog.text
    assert [source.read(i) for i in range(IMAGES)] == [local.read(i) for i in range(IMAGES)]
