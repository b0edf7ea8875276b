"""Sources of images: what each reads, that all give the same, and what they refuse."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sources_synthetic import KINDS, as_source, write_tar
from test_trainer import run

from pretrain.loading.batches import Batch, EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.source import raw
from pretrain.source.images import ImageFolder
from pretrain.source.open_source import open_source
from pretrain.source.shards import expand
from pretrain.views import ViewRecipe
from runtime.errors import InputError

STEPS = 6  # two epochs of 24 images in batches of 8


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("kind", KINDS)
def test_all_sources_hold_the_same_images_and_classes(kind: str, image_folder: Path) -> None:
    source = open_source(as_source(kind, image_folder))
    folder = ImageFolder.scan(image_folder)
    assert len(source.files) == 24
    assert [source.read(i) for i in range(24)] == [folder.read(i) for i in range(24)]
    assert source.load(3).tobytes() == folder.load(3).tobytes()
    assert source.classes() == (("0", "1") if kind == "shards" else ("a", "b"))
    assert source.labels() == [0] * 12 + [1] * 12


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


def test_missing_shards_are_named(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        write_tar(tmp_path / f"x-{number:02d}.tar", [("a.jpg", b"1")])
    with pytest.raises(InputError, match=r"but not 2"):
        open_source(tmp_path)
    with pytest.raises(InputError, match=r"2 of 5 shards are not there, the first is .*x-02.tar"):
        open_source(tmp_path / "x-{00..04}.tar")
    source = open_source(tmp_path / "x-{00..01,03}.tar")
    assert source.files == ("x-00.tar/a.jpg", "x-01.tar/a.jpg", "x-03.tar/a.jpg")


def test_shards_may_have_suffixes_in_capitals(tmp_path: Path) -> None:
    """They were left out without a word, and what macOS puts beside them was not."""
    for name in ("x-00.tar", "x-01.TAR"):
        write_tar(tmp_path / name, [("a.jpg", b"1")])
    (tmp_path / "._x-00.tar").write_bytes(b"no tar file")
    assert open_source(tmp_path).files == ("x-00.tar/a.jpg", "x-01.TAR/a.jpg")
    assert open_source(tmp_path / "x-01.TAR").files == ("x-01.TAR/a.jpg",)


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
    (tmp_path / "list").write_text(f"\ufeffsub/a b.jpg\r\n\n{tmp_path}/é.jpg")
    source = open_source(tmp_path / "list")
    assert source.files == ("sub/a b.jpg", f"{tmp_path}/é.jpg")
    assert source.load(1).size == (8, 8)
    with pytest.raises(InputError, match="has no class"):
        source.labels()


WRONG_LISTS = {
    "missing": (b"x.jpg\nnowhere.jpg\n", "line 2: cannot read .*nowhere.jpg"),
    "twice": (b"x.jpg\n\nx.jpg\n", "line 3 repeats line 1"),
    "folder": (b"x.jpg\n.\n", "line 2: .* is no file"),
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
    (tmp_path / "sets" / "train").mkdir(parents=True)
    write_tar(tmp_path / "sets" / "train" / "0.tar", [("a.jpg", b"1")])
    for root, message in {
        f"{tmp_path}/sets": "no images: looked for .*; shards lie in '.*/sets/train': name it",
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
