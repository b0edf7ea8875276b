"""Shards in S3, as moto serves it: pip install s3fs 'moto[server]' to run this."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_images

from pretrain.sharding.content import Options
from pretrain.sharding.make_shards import make_shards
from pretrain.source import remote
from pretrain.source.open_source import open_source
from pretrain.source.shard_cache import ShardCache
from runtime.errors import InputError

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
KEY = "hidden-key-id"


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    write_images(tmp_path / "images", 24)
    make_shards(str(tmp_path / "images"), str(tmp_path / "set"), Options(shard_size=8), workers=1)
    return tmp_path / "set"


@pytest.fixture
def bucket(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket "photos" with the set in "some/set/"."""
    import botocore.session

    server = moto_server.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": "hidden-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    client = botocore.session.get_session().create_client("s3")
    client.create_bucket(Bucket="photos")
    for path in shards.iterdir():
        client.put_object(Bucket="photos", Key=f"some/set/{path.name}", Body=path.read_bytes())
    yield client
    server.stop()


def test_shards_in_s3(shards: Path, bucket: Any, tmp_path: Path) -> None:
    local, cache = open_source(shards), ShardCache(tmp_path / "cache")
    for name in ("s3://photos/some/set/", "s3://photos/some/set/shard-{000000..000002}.tar"):
        source = open_source(name, cache=cache)
        assert (source.files, source.fingerprint()) == (local.files, local.fingerprint())
        assert [source.read(i) for i in range(24)] == [local.read(i) for i in range(24)]
        assert source.place == "s3://photos/some/set"
    for path in cache.folder.glob("*-shard-*"):
        path.unlink()
    source.open_files.close()
    content = (shards / "shard-000001.tar").read_bytes()
    bucket.put_object(Bucket="photos", Key="some/set/shard-000001.tar", Body=content + bytes(512))
    with pytest.raises(InputError, match=r"'s3://photos/some/set/shard-000001.tar' has changed on"):
        source.read(8)
    bucket.delete_object(Bucket="photos", Key="some/set/shard-000002.tar")
    for name, message in {
        "s3://photos/some/set/": "1 of 3 shards are not there, .*'s3://photos/some/set/shard-000002.tar'",
        "s3://photos/some/": "there is no shards.json",
        "s3://nowhere/x.tar": "cannot read 's3://nowhere/x.tar': .*bucket does not exist",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            open_source(name, cache=cache)
        assert "hidden" not in str(caught.value)
