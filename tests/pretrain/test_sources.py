"""Sources of images: what each reads, that all give the same, and what they refuse."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sources_synthetic import KINDS, as_source, write_tar
from test_trainer import run

from pretrain.loading.batches import Batch, EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.source import raw, tar_index
from pretrain.source.images import ImageFolder
from pretrain.source.open_source import open_source
from pretrain.source.shards import expand
from pretrain.views import ViewRecipe
from runtime.errors import InputError

STEPS = 6  # two epochs of 24 images in batches of 8


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_all_sources_hold_the_same_images_and_classes(kind: str, image_folder: Path) -> None:
    source = open_source(as_source(kind, image_folder))
    folder = ImageFolder.scan(image_folder)
    assert len(source.files) == 24
    assert [source.read(i) for i in range(24)] == [folder.read(i) for i in range(24)]
    assert source.load(3).tobytes() == folder.load(3).tobytes()
    assert source.classes() == (("0", "1") if kind == "shards" else ("a", "b"))
    assert source.labels() == [0] * 12 + [1] * 12


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


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_moves_with_the_data_and_not_with_the_place(
    kind: str, image_folder: Path
) -> None:
    root = as_source(kind, image_folder)
    before = open_source(root).fingerprint()
    here = image_folder.parent
    moved = here / "moved" / root.name
    shutil.copytree(here, here / "moved", ignore=shutil.ignore_patterns("moved"))
    assert open_source(moved).fingerprint() == before
    if kind == "shards":
        write_tar(moved / "002.tar", [("x.jpg", b"other")])
    else:
        file = here / "moved" / "images" / "a" / "000.jpg"
        file.write_bytes(file.read_bytes() + b"\0")
    assert open_source(moved).fingerprint() != before


def test_fingerprint_of_raw_shards_moves_with_the_pixels(tmp_path: Path) -> None:
    for name, grey in (("a", 0), ("b", 0), ("c", 1)):
        pixels = [raw.to_bytes(np.full((4, 4, 3), grey + i, np.uint8)) for i in range(3)]
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", [(f"{i}.npy", p) for i, p in enumerate(pixels)])
    a, b, c = (open_source(tmp_path / name).fingerprint() for name in "abc")
    assert a == b != c


def loaded(root: Path, workers: int, world: int, start: int = 0) -> list[list[Batch]]:
    """The batches of each step from ``start`` on, of all ranks in their order."""
    source = open_source(root)
    dataset = ViewDataset(source, ViewRecipe(8, blur_prob=0.5), 2, 7, source.labels())
    ranks = [
        list(Loader(dataset, EpochBatches(24, 8, STEPS, 7, start, rank, world), workers))
        for rank in range(world)
    ]
    return [list(step) for step in zip(*ranks, strict=True)]


def joined(step: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, set]:
    return (
        torch.cat([torch.stack(batch.views, 1) for batch in step]),
        torch.cat([batch.labels for batch in step]),
        torch.cat([batch.indices for batch in step]),
        {image for batch in step for image in batch.flaws},
    )


def equal(left: tuple, right: tuple) -> bool:
    return all(map(torch.equal, left[:3], right[:3])) and left[3] == right[3]


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_order_views_and_labels_for_any_ranks_workers_and_restart(
    kind: str, damaged: bool, image_folder: Path
) -> None:
    if damaged:
        for name in ("a/003.jpg", "a/007.jpg", "b/001.jpg"):
            (image_folder / name).write_bytes((image_folder / name).read_bytes()[:300])
    root = as_source(kind, image_folder)
    alone = [joined(step) for step in loaded(root, workers=0, world=1)]
    assert len(alone) == STEPS
    assert len(set().union(*(step[3] for step in alone))) == (3 if damaged else 0)
    for start in range(STEPS):
        workers, world = start % 3, (1, 2, 4)[(start + start // 3) % 3]
        others = loaded(root, workers, world, start)
        assert len(others) == STEPS - start
        for one, other in zip(alone[start:], others, strict=True):
            assert equal(one, joined(other)), (kind, workers, world, start)
    views = torch.cat([step[0] for step in alone]).flatten(0, 1)
    assert len({view.numpy().tobytes() for view in views}) == 2 * 8 * STEPS


def test_all_sources_give_the_same_batches(image_folder: Path) -> None:
    first, *others = [loaded(as_source(kind, image_folder), 0, 1) for kind in KINDS]
    for other in others:
        assert all(equal(joined(a), joined(b)) for a, b in zip(first, other, strict=True))


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


def test_missing_shards_are_named(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        write_tar(tmp_path / f"x-{number:02d}.tar", [("a.jpg", b"1")])
    with pytest.raises(InputError, match=r"but not 2"):
        open_source(tmp_path)
    with pytest.raises(InputError, match=r"2 of 5 shards are not there, the first is .*x-02.tar"):
        open_source(tmp_path / "x-{00..04}.tar")
    source = open_source(tmp_path / "x-{00..01,03}.tar")
    assert source.files == ("x-00.tar/a.jpg", "x-01.tar/a.jpg", "x-03.tar/a.jpg")


def test_patterns_expand_as_in_bash() -> None:
    assert expand("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand("{x,y}-{0..1}") == ["x-0", "x-1", "y-0", "y-1"]
    for wrong in ("{0..2", "{3..1}", "{{0..1}}", "{a,a}", "{0..99999}{0..99999}"):
        with pytest.raises(InputError):
            expand(wrong)


def _jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    return out.getvalue()


def test_list_takes_relative_and_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a b.jpg").write_bytes(_jpeg())
    (tmp_path / "é.jpg").write_bytes(_jpeg())
    (tmp_path / "list").write_text(f"sub/a b.jpg\r\n\n{tmp_path}/é.jpg")
    source = open_source(tmp_path / "list")
    assert source.files == ("sub/a b.jpg", f"{tmp_path}/é.jpg")
    assert source.load(1).size == (8, 8)
    with pytest.raises(InputError, match="has no class"):
        source.labels()


WRONG_LISTS = {
    "missing": (b"x.jpg\nnowhere.jpg\n", "line 2: cannot read .*nowhere.jpg"),
    "twice": (b"x.jpg\n\nx.jpg\n", "line 3 repeats line 1"),
    "empty": (b"\n", "lists no images"),
    "binary": (b"\0\1\2", "is no text"),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_wrong_lists_are_refused(name: str, tmp_path: Path) -> None:
    content, message = WRONG_LISTS[name]
    (tmp_path / "x.jpg").write_bytes(_jpeg())
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "list")


def test_other_roots_are_refused(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"")
    for root, message in {
        "": "is not set",
        "file:///x.tar": "name the path itself",
        "s3://bucket/x": "name a .tar file, a pattern",
        "pipe:cat x.tar": "is not a folder or file",
        f"{tmp_path}/nowhere": "is not a folder or file",
        f"{tmp_path}/x.tar.gz": "an image or an archive",
        f"{image_folder}/a/000.jpg": "an image or an archive",
    }.items():
        with pytest.raises(InputError, match=message):
            open_source(root)


def test_output_among_the_images_is_refused(image_folder: Path) -> None:
    """views.png would be an image of the resumed run."""
    for output in (image_folder, image_folder / "a" / "run"):
        with pytest.raises(InputError, match=r"lies in DATA\.ROOT"):
            run(image_folder, output)
    assert not list(image_folder.rglob("*.png"))


def test_a_run_is_the_same_from_any_source_and_resumes(image_folder: Path, tmp_path: Path) -> None:
    whole = run(image_folder, tmp_path / "folder")["state_dict"]
    shards = as_source("shards", image_folder)
    again = run(shards, tmp_path / "run", "CHECKPOINT_PERIOD", "1")["state_dict"]
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    (tmp_path / "run" / "checkpoint_final.pth").unlink()  # as if killed in the third epoch
    (tmp_path / "run" / "last_checkpoint").write_text("checkpoint_0001.pth")
    moved = shards.rename(tmp_path / "elsewhere")
    resumed = run(moved, tmp_path / "run", "DATA.NUM_WORKERS", "1", resume=True)["state_dict"]
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    (tmp_path / "run" / "last_checkpoint").write_text("checkpoint_0001.pth")
    write_tar(moved / "002.tar", [(f"{i}.jpg", bytes([i])) for i in range(8)])
    with pytest.raises(InputError, match="are not those"):
        run(moved, tmp_path / "run", resume=True)
