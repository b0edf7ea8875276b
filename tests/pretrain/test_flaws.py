"""Damaged images: what is damaged, what takes their place, and when a run stops."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from disk_faults import before_each_call, failing_at
from PIL import Image
from test_trainer import CONFIG, run, tiny

from pretrain.augment.reference import apply
from pretrain.loading.batches import REPLACEMENTS, EpochBatches, ViewDataset
from pretrain.loading.loader import Loader
from pretrain.sharding.content import Options
from pretrain.sharding.make_shards import make_shards
from pretrain.source.decode import decode
from pretrain.source.flaws import Flaw, FlawedImages, allowed
from pretrain.source.images import ImageFolder, UnreadableImageError
from pretrain.source.shard_index import ShardIndex
from pretrain.views import ViewRecipe, draw
from runtime.errors import InputError
from runtime.randomness import generator

RECIPE = ViewRecipe(8, blur_prob=0.5)


def damage(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:300])


def test_what_takes_the_place_is_a_function_of_seed_epoch_and_index(image_folder: Path) -> None:
    broken = [*range(3, 12), 20]  # so many that replacements are damaged, too
    source = ImageFolder.scan(image_folder)
    damage(image_folder, *(source.files[i] for i in broken))
    dataset = ViewDataset(source, RECIPE, 2, seed=5, labels=list(range(100, 124)))
    chains = set()
    for epoch in (0, 1):
        for index in broken:
            rng = generator(5, "replacement", epoch, index)
            tried = [index]
            while tried[-1] in broken:
                tried.append(int(rng.integers(24)))
            sample = dataset[epoch, index]
            assert (sample.image_index, sample.label) == (tried[-1], 100 + tried[-1])
            assert [flaw.name for flaw in sample.flaws] == [source.files[i] for i in tried[:-1]]
            image = source.load(tried[-1])
            for number, view in enumerate(sample.views):
                rng = generator(5, "augmentation", epoch, index, number)
                expected = apply(RECIPE, draw(RECIPE, *image.size, rng), image)
                assert np.array_equal(view.numpy().transpose(1, 2, 0), np.asarray(expected))
            chains.add(tuple(tried))
    assert len(chains) == 2 * len(broken)  # another one each epoch
    assert max(map(len, chains)) > 2


def test_all_damaged_is_one_line_in_place_of_a_batch(image_folder: Path) -> None:
    source = ImageFolder.scan(image_folder)
    damage(image_folder, *source.files)
    dataset = ViewDataset(source, RECIPE, 2, 0, None)
    for workers in (0, 1):
        with pytest.raises(InputError, match=f"nor {REPLACEMENTS} others"):
            next(iter(Loader(dataset, EpochBatches(24, 24, 1, 0), workers)))


def test_failing_storage_stops_the_run(image_folder: Path) -> None:
    source = ImageFolder.scan(image_folder)
    (image_folder / "a" / "000.jpg").unlink()
    with pytest.raises(InputError, match=r"a/000.jpg") as problem:
        ViewDataset(source, RECIPE, 2, 0, None)[0, 0]
    assert not isinstance(problem.value, UnreadableImageError)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
HUGE = Image.new("1", (8000, 7000))
DAMAGED = {
    "cut JPEG": (encoded(NOISE, "JPEG")[:-200], "truncated"),
    "cut PNG": (encoded(NOISE, "PNG")[:-200], "truncated"),
    "cut TIFF": (encoded(NOISE, "TIFF")[:-200], "truncated"),
    "empty": (b"", "not a file of JPEG"),
    "text": (b"<html>404</html>", "not a file of JPEG"),
    "GIF by another name": (encoded(NOISE, "GIF"), "not a file of JPEG"),
    "bomb": (encoded(HUGE, "PNG"), "8000 x 7000 pixels"),
    "floats": (encoded(Image.new("F", (4, 4)), "TIFF"), "no known range"),
    "integers": (encoded(Image.new("I", (4, 4)), "TIFF"), "no known range"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_images_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    content, reason = DAMAGED[name]
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason) as error:
        ImageFolder.scan(tmp_path).load(0)
    assert "0x" not in error.value.reason
    assert str(tmp_path / "x.jpg") in str(error.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_good_images_are_what_pillow_makes_of_them(form: str) -> None:
    content = encoded(NOISE, form)
    assert decode(content).tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def test_sixteen_bits_keep_their_high_byte() -> None:
    grey = np.random.default_rng(1).integers(0, 1 << 16, (5, 7), dtype=np.uint16)
    pixels = np.asarray(decode(encoded(Image.fromarray(grey), "PNG")))
    assert np.array_equal(pixels, np.repeat(grey[..., None] // 256, 3, axis=2))


def test_upright_by_exif_and_good_pixels_with_a_damaged_tag() -> None:
    exif = Image.Exif()
    exif[274] = 6
    assert decode(encoded(NOISE, "JPEG", exif=exif)).size == (40, 60)
    assert decode(encoded(NOISE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")).size == (60, 40)


def test_limit() -> None:
    assert [allowed(0.001, n) for n in (24, 3999, 1_281_167)] == [3, 3, 1281]
    assert allowed(0, 1_281_167) == 0


def test_account_stops_beyond_the_limit_and_survives_a_restart(tmp_path: Path) -> None:
    account = FlawedImages(tmp_path, limit=2, resume=False)
    account.note([Flaw("b\nc.jpg", "cut"), Flaw("a.jpg", "empty")])
    account.gather()
    account.note([Flaw("a.jpg", "empty")])  # met again in the next epoch
    account.gather()
    assert (tmp_path / "unreadable.txt").read_text() == "a.jpg\tempty\nb?c.jpg\tcut\n"
    with open(tmp_path / "unreadable.txt", "ab") as stream:
        stream.write(b"\nno reason \xff\n")  # as users may leave it
    assert len(FlawedImages(tmp_path, limit=3, resume=True)._unreadable.images) == 3
    (tmp_path / "unreadable.txt").write_text("a.jpg\tempty\nb?c.jpg\tcut\n")
    resumed = FlawedImages(tmp_path, limit=2, resume=True)
    resumed.note([Flaw("d.jpg", "cut")])
    with pytest.raises(InputError, match=r"3 images are unreadable.* allows 2: a.jpg \(empty\)"):
        resumed.gather()
    assert (tmp_path / "unreadable.txt").read_text().count("\n") == 3
    FlawedImages(tmp_path, limit=2, resume=False)
    assert not (tmp_path / "unreadable.txt").exists()


def test_a_list_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    account = FlawedImages(tmp_path, limit=2, resume=False)
    account.note([Flaw("a.jpg", "empty")])
    message = "cannot list the flawed images in .*: No space left"
    with before_each_call(failing_at(1, errno.ENOSPC)), pytest.raises(InputError, match=message):
        account.gather()


def half_lost(folder: Path, name: str) -> None:
    """As after a copy that broke off, closed by a tool since: Pillow makes grey of the rest."""
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) * 3 // 4] + b"\xff\xd9")


def test_damaged_images_are_used_as_by_pillow_and_listed(
    image_folder: Path, tmp_path: Path
) -> None:
    half_lost(image_folder, "a/003.jpg")
    source = ImageFolder.scan(image_folder)
    pillows = Image.open(image_folder / "a" / "003.jpg").convert("RGB")
    assert np.array_equal(source.pixels(3), np.asarray(pillows))
    sample = ViewDataset(source, RECIPE, 2, 5, None)[0, 3]
    assert sample.image_index == 3
    reason = "Corrupt JPEG data: premature end of data segment"
    assert sample.flaws == [Flaw("a/003.jpg", reason, used=True)]
    run(image_folder, tmp_path / "run", "SOLVER.EPOCHS", "1", "DATA.MAX_UNREADABLE", "0.0")
    assert (tmp_path / "run" / "damaged.txt").read_text() == f"a/003.jpg\t{reason}\n"
    assert not (tmp_path / "run" / "unreadable.txt").exists()
    assert "1 damaged image(s) so far" in (tmp_path / "run" / "log.txt").read_text()
    make_shards(str(image_folder), str(tmp_path / "out"), Options(format="raw"))
    listed = (tmp_path / "out" / "damaged.txt").read_text()
    assert listed == f"{image_folder / 'a' / '003.jpg'}\t{reason}\n"
    assert ShardIndex.read(tmp_path / "out").images == 24


def test_run_lists_the_images_or_stops(image_folder: Path, tmp_path: Path) -> None:
    damage(image_folder, "a/003.jpg", "b/007.jpg")
    run(image_folder, tmp_path / "run", "SOLVER.EPOCHS", "1")
    lines = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["a/003.jpg", "b/007.jpg"]
    with pytest.raises(InputError, match=r"DATA.MAX_UNREADABLE allows 0: [ab]/00[37].jpg"):
        run(image_folder, tmp_path / "strict", "DATA.MAX_UNREADABLE", "0.0")
    assert (tmp_path / "strict" / "unreadable.txt").exists()
    assert not list((tmp_path / "strict").glob("*.pth"))


def test_two_processes_list_what_one_lists(image_folder: Path, tmp_path: Path) -> None:
    """Real processes on Gloo; each meets some of the damaged images and knows of all."""
    names = ["a/003.jpg", "a/009.jpg", "b/001.jpg", "b/007.jpg"]
    damage(image_folder, *names)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["tools/pretrain.py", "--config", CONFIG, *tiny(image_folder, tmp_path / "two")]
    command += ["SOLVER.EPOCHS", "1", "LOG_PERIOD", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "4 images are unreadable, DATA.MAX_UNREADABLE allows 3" in done.stderr
    assert "Traceback" not in done.stderr.split("torch/distributed")[0]
    listed = (tmp_path / "two" / "unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == names
