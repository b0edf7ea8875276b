"""Where the images of a tar file lie: as tarfile finds them; what is unsafe or damaged."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sources_synthetic import as_source, write_tar

from pretrain.source import tar_index
from pretrain.source.open_source import open_source
from runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_members_are_found_where_tarfile_finds_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = [("deep/" * 40 + "long.jpg", rng.bytes(700)), ("é/x.PNG", rng.bytes(512))]
    members += [("notes.txt", b"no image"), ("._x.jpg", b"left by macOS"), ("empty.webp", b"")]
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=form) as tar:
            tar.addfile(_typed("folder.jpg", tarfile.DIRTYPE)) if number else None
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        index = tar_index.index_tar(tmp_path / f"{number}.tar")
        assert index.names == (members[0][0], members[1][0], "empty.webp")
        data = (tmp_path / f"{number}.tar").read_bytes()
        for name, offset, size in zip(index.names, index.offsets, index.sizes, strict=True):
            assert data[offset : offset + size] == dict(members)[name]


def test_index_is_kept_and_made_anew_for_another_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "0.tar"
    write_tar(path, [("a.jpg", b"1"), ("a.cls", b"12"), ("b.jpg", b"22")])
    first = tar_index.index_tar(path)
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "scan_tar", None)  # cannot be called
        again = tar_index.index_tar(path)
    assert (again.names, again.classes.tolist()) == (first.names, [12, -1])
    assert np.array_equal(again.offsets, first.offsets)
    kept.write_bytes(kept.read_bytes()[:50])  # damaged: as if it were not there
    assert tar_index.index_tar(path).names == first.names
    write_tar(path, [("c.jpg", b"1"), ("a.cls", b"12"), ("b.jpg", b"22")])
    os.utime(path, ns=(1, 1))
    assert tar_index.index_tar(path).names == ("c.jpg", "b.jpg")


def _typed(name: str, kind: bytes, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, "/etc/passwd"
    return member


def _tar_of(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def _sparse() -> bytes:
    """A GNU sparse header of 512 bytes whose file is said to have a tebibyte."""
    header = bytearray(_typed("x.jpg", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = tarfile.itn(1 << 40, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def _whole() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 600
            tar.addfile(member, io.BytesIO(bytes(600)))
    return out.getvalue()


def _damaged_header() -> bytes:
    data = bytearray(_whole())
    data[1536 + 20] ^= 1  # in the second header: tarfile alone would end there in silence
    return bytes(data)


UNSAFE = {
    "symbolic link": (_tar_of(_typed("x.jpg", tarfile.SYMTYPE)), "no regular file"),
    "hard link": (_tar_of(_typed("x.jpg", tarfile.LNKTYPE)), "no regular file"),
    "device": (_tar_of(_typed("x.jpg", tarfile.CHRTYPE)), "no regular file"),
    "sparse": (_sparse(), "no regular file"),
    "huge": (_tar_of(_typed("x.jpg", tarfile.REGTYPE, 1 << 40)), "cannot read|at most"),
    "cut short": (_whole()[: 1536 + 512 + 100], "cut short|cannot read"),
    "damaged header": (_damaged_header(), "damaged at byte 1536"),
    "two in one": (_whole() + _whole(), "damaged at byte"),
    "compressed": (b"\x1f\x8b\x08" + bytes(600), "not compressed"),
    "no images": (_tar_of(_typed("x.txt", tarfile.REGTYPE)), "holds no images"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_or_damaged_tar_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = UNSAFE[name]
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        open_source(tmp_path)
    assert "0.tar" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), RuntimeError("no home")])
def test_an_index_that_cannot_be_kept_is_made_each_time(
    failure: Exception, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure

    if isinstance(failure, OSError):
        monkeypatch.setattr(tar_index.TarIndex, "write", fail)
    else:
        monkeypatch.setattr(tar_index, "_cache_file", fail)
    shards = as_source("shards", image_folder)
    for _ in range(2):
        assert len(open_source(shards).files) == 24


def test_a_shard_that_cannot_be_read_is_named(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tar_index, "_members", fail)
    with pytest.raises(InputError, match=r"cannot read .*000.tar': Permission denied"):
        open_source(as_source("shards", image_folder))


def test_images_that_share_a_sample_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Photo and mask are both images by their suffix; nobody shall train on masks unnoticed."""
    for shard, names in (
        ("plain", ("a.jpg", "b.png", "d/a.jpg")),
        ("masks", ("a.jpg", "a.mask.png", "b.mask.png", "b.jpg")),
    ):
        write_tar(tmp_path / f"{shard}.tar", [(name, b"pixels") for name in names])
    open_source(tmp_path / "plain.tar").describe()
    assert not caplog.messages
    open_source(tmp_path / "masks.tar").describe()
    (said,) = caplog.messages
    assert said.startswith("2 image(s) share a sample with the one before, the first two are")
    assert "'masks.tar/a.jpg' and 'masks.tar/a.mask.png'" in said
