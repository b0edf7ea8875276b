"""A set of shards, and a server that has it; fixtures for tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_images
from fault_runs import IMAGES
from shard_server import ShardServer, serving

from pretrain.sharding.content import Options
from pretrain.sharding.make_shards import make_shards
from pretrain.source import remote
from pretrain.source.shard_cache import ShardCache


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of shards by make_shards."""
    kind = getattr(request, "param", "jpeg")
    folder = tmp_path_factory.mktemp(kind)
    write_images(folder / "images" / "a", IMAGES // 2, seed=1)
    write_images(folder / "images" / "b", IMAGES // 2, seed=2)
    options = Options(kind, shard_size=4)
    make_shards(str(folder / "images"), str(folder / "set"), options, workers=1)
    return folder / "set"


@pytest.fixture
def shards(made: Path, tmp_path: Path, _own_cache: None) -> Path:
    """A copy of the set that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "set"))


@pytest.fixture
def server(shards: Path) -> Iterator[ShardServer]:
    with serving(shards) as running:
        yield running


def cache(tmp_path: Path, shards: Path, room: float = 1000) -> ShardCache:
    """One that holds ``room`` of the set's shards."""
    return ShardCache(tmp_path / "cache", int(room * largest(shards)))


def largest(shards: Path) -> int:
    return max(path.stat().st_size for path in shards.iterdir())
