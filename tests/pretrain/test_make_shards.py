"""tools/make_shards.py: what is in the shards, that a kill changes nothing, what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_images
from PIL import Image
from sources_synthetic import write_tar
from test_trainer import run

from convert.seen_images import SeenImages
from pretrain import raw
from pretrain.images import ImageFolder
from pretrain.linear.config import default_cfg as linear_cfg
from pretrain.linear.config import seen_test_images
from pretrain.make_shards import make_shards
from pretrain.shard_content import Content, Options
from pretrain.shard_index import verify
from pretrain.sources import open_source
from runtime.errors import InputError
from runtime.image_files import images_below

RAW = Options(format="raw", shard_size=10)
SMALL = Options(short_side=16, quality=90, shard_size=10)
PLAIN = Options(shard_size=10)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tool(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tools/make_shards.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def files(folder: Path) -> dict[str, bytes]:
    """Of a finished set: but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def by_original(source: object) -> dict[bytes, int]:
    return {source.sha256(i): i for i in range(len(source.files))}


def test_files_go_in_unchanged_with_their_classes(image_folder: Path, tmp_path: Path) -> None:
    index = make_shards(str(image_folder), str(tmp_path / "out"), PLAIN)
    assert [shard.images for shard in index.shards] == [10, 10, 4]
    folder, shards = ImageFolder.scan(image_folder), open_source(tmp_path / "out")
    places = by_original(shards)
    order = [places[folder.sha256(i)] for i in range(24)]
    assert sorted(order) == list(range(24))
    assert order != list(range(24))  # shuffled
    assert [shards.read(i) for i in order] == [folder.read(i) for i in range(24)]
    assert [shards.class_names()[i] for i in order] == folder.class_names()
    assert [shards.labels()[i] for i in order] == folder.labels()
    names = [f"{i:02d}_{i % 12:03d}.jpg" for i in range(24)]
    assert [shards.files[i].split("/")[1] for i in order] == names
    make_shards(str(image_folder), str(tmp_path / "same"), Options(shard_size=10, seed=None))
    unshuffled = open_source(tmp_path / "same")
    assert [unshuffled.read(i) for i in range(24)] == [folder.read(i) for i in range(24)]


def test_the_bytes_depend_on_images_and_options_alone(image_folder: Path, tmp_path: Path) -> None:
    make_shards(str(image_folder), str(tmp_path / "one"), SMALL, workers=1)
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    for path in moved.rglob("*.jpg"):
        os.utime(path, (1, 1))
    make_shards(str(moved), str(tmp_path / "two"), SMALL, workers=3)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for number, other in enumerate((PLAIN, RAW, Options(short_side=16, quality=91, shard_size=10))):
        make_shards(str(image_folder), str(tmp_path / f"{number}"), other)
        assert files(tmp_path / "one").keys() == files(tmp_path / f"{number}").keys()
        assert files(tmp_path / "one") != files(tmp_path / f"{number}")
    with tarfile.open(tmp_path / "one" / "shard-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname) == ("", "")


def odd_images(folder: Path) -> None:
    """Every mode that a camera or a scanner leaves; what is not square shows a wrong turn."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 9, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((90, 50), Image.Resampling.BILINEAR)
    folder.mkdir()
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("RGBA").save(folder / "rgba.png")
    photo.convert("P").save(folder / "palette.png")
    deep = (np.asarray(photo.convert("L")).astype(np.uint16) << 8) + 77
    Image.fromarray(deep).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo.save(folder / "turned.jpg", exif=exif)
    photo.save(folder / "photo.webp")
    photo.resize((12, 20)).save(folder / "small.bmp")


def reference_pixels(path: Path, short_side: int) -> np.ndarray:
    from PIL import ImageOps

    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    image = image.convert("RGB")
    if short_side and min(image.size) > short_side:
        scale = short_side / min(image.size)
        size = [int(round(side * scale, 6)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)


@pytest.mark.parametrize("short_side", [0, 20])
@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_images_of_all_kinds(form: str, short_side: int, tmp_path: Path) -> None:
    odd_images(tmp_path / "odd")
    quality = 95 if form == "jpeg" and short_side else 0
    make_shards(str(tmp_path / "odd"), str(tmp_path / "out"), Options(form, short_side, quality))
    folder, shards = ImageFolder.scan(tmp_path / "odd"), open_source(tmp_path / "out")
    places = by_original(shards)
    for i, name in enumerate(folder.files):
        wanted = reference_pixels(tmp_path / "odd" / name, short_side)
        place = places[folder.sha256(i)]
        found = shards.pixels(place)
        assert (found.shape, found.dtype) == (wanted.shape, np.uint8), name
        if form == "raw" or not short_side or name == "small.bmp":
            assert np.array_equal(found, wanted), name
            assert np.array_equal(np.asarray(shards.load(place)), wanted), name
        else:
            assert np.abs(found.astype(int) - wanted).mean() < 6, name
    if form == "jpeg":  # what is small enough already stays as it is
        small = places[folder.sha256(folder.files.index("small.bmp"))]
        assert shards.read(small) == (tmp_path / "odd" / "small.bmp").read_bytes()


@pytest.mark.parametrize("options", [PLAIN, RAW, SMALL])
def test_pretraining_images_are_recognised_in_any_shards(
    options: Options, image_folder: Path, tmp_path: Path
) -> None:
    """No test image is pretrained on unnoticed: not one that was made smaller either, or twice."""
    make_shards(str(image_folder), str(tmp_path / "once"), options)
    make_shards(str(tmp_path / "once"), str(tmp_path / "twice"), Options(shard_size=7))
    folder = ImageFolder.scan(image_folder)
    for name in ("once", "twice"):
        shards = open_source(tmp_path / name)
        seen = SeenImages.of(24, shards.sha256)
        assert seen.among(folder.files, folder.sha256) == list(folder.files)
        assert len(seen.among(shards.files, shards.sha256)) == 24  # as a test set
    write_images(tmp_path / "others", 3, seed=9)
    others = ImageFolder.scan(tmp_path / "others")
    assert not seen.among(others.files, others.sha256)


def test_a_test_image_is_refused_though_shards_held_it_smaller(
    image_folder: Path, tmp_path: Path
) -> None:
    make_shards(str(image_folder), str(tmp_path / "out"), SMALL)
    state = run(tmp_path / "out", tmp_path / "run", "SOLVER.EPOCHS", "1")
    seen = SeenImages.from_dict(state["seen_images"], "checkpoint")
    with pytest.raises(InputError, match="24 of 24 test images were among the images of pretrain"):
        seen_test_images(linear_cfg(), ImageFolder.scan(image_folder), seen)


def test_odd_names(tmp_path: Path) -> None:
    write_images(tmp_path / "plain", 8)
    photos = [path.read_bytes() for path in sorted((tmp_path / "plain").iterdir())]
    names = ["a.jpg", "a.png", "a.b.c.JPG", "x/a.jpg", "y.z/a.jpg", "é 雪.jpeg", "n" * 180 + ".jpg"]
    names.append(os.fsdecode(b"\xff.jpg"))  # no UTF-8
    for name, photo in zip(names, photos, strict=True):
        (tmp_path / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "odd" / name).write_bytes(photo)
    make_shards(str(tmp_path / "odd"), str(tmp_path / "out"), PLAIN)
    shards = open_source(tmp_path / "out")
    assert sorted(shards.read(i) for i in range(8)) == sorted(photos)
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        members = tar.getnames()
    assert len({name.split(".")[0] for name in members}) == 8
    assert all(name.isascii() and name.count(".") == 1 for name in members)
    listed = [tmp_path / "list" / "0", tmp_path / "list" / "1"]  # no suffix, as lists may have it
    (tmp_path / "list").mkdir()
    listed[0].write_bytes(photos[0])
    Image.open(io.BytesIO(photos[1])).save(listed[1], "PNG")
    (tmp_path / "list" / "names").write_text("0\tx\n1\ty\n")
    make_shards(str(tmp_path / "list" / "names"), str(tmp_path / "two"), Options(seed=None))
    shards = open_source(tmp_path / "two")
    assert [name.rpartition(".")[2] for name in shards.files] == ["jpeg", "png"]
    assert shards.classes() == ("x", "y")


@pytest.mark.skipif(not importlib.util.find_spec("webdataset"), reason="webdataset is absent")
@pytest.mark.parametrize("options", [PLAIN, RAW])
def test_webdataset_reads_them(options: Options, image_folder: Path, tmp_path: Path) -> None:
    import webdataset

    make_shards(str(image_folder), str(tmp_path / "out"), options)
    shards = open_source(tmp_path / "out")
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 24
    for i, sample in enumerate(samples):
        pixels = sample["npy" if options is RAW else "jpg"]
        assert np.array_equal(pixels, shards.pixels(i))
        assert sample["cls"] == shards.labels()[i]


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 300, size=200)
    arguments = [tmp_path / "images", tmp_path / "out", "--shard-size", "30", "--short-side", "190"]
    make_shards(*map(str, (tmp_path / "images", tmp_path / "whole")), Options("jpeg", 190, 90, 30))
    command = [sys.executable, "tools/make_shards.py", *map(str, arguments), "--workers", "2"]
    kills = 0
    for at_least in (2, 6):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "out").glob("*.tar"))) >= at_least:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
        if (tmp_path / "out" / "unfinished.jsonl").exists():
            with pytest.raises(InputError, match="are not finished"):
                open_source(tmp_path / "out")
    assert kills
    victim = tmp_path / "out" / "shard-000000.tar"
    if victim.exists():  # finished, then damaged: it is made again
        victim.write_bytes(victim.read_bytes()[:-512] + bytes([1]) * 512)
    done = tool(*arguments)
    assert done.returncode == 0, done.stderr
    assert "shards are there and whole" in done.stdout
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_full_disk_and_a_killed_worker_leave_nothing_half_written(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        f"ulimit -f 20; {sys.executable} tools/make_shards.py {image_folder} {out} --format raw",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: cannot write .*shard-000000.tar': File too large\n", done.stderr)
    assert files(out).keys() == {"unfinished.jsonl"}
    with monkeypatch.context() as patch:
        patch.setattr(Content, "_key", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(InputError, match="a worker process was killed"):
            make_shards(str(image_folder), str(out), Options(format="raw"))
    assert files(out).keys() == {"unfinished.jsonl"}
    make_shards(str(image_folder), str(out), Options(format="raw"))
    assert files(out).keys() == {"shard-000000.tar", "shards.json"}


def test_a_damaged_or_missing_shard_is_found_and_made_again(
    image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make_shards(str(image_folder), str(out), RAW)
    whole = files(out)
    assert verify(out).images == 24
    victim = out / "shard-000001.tar"
    content = bytearray(victim.read_bytes())
    content[512 + 200] ^= 1  # in the first image
    victim.write_bytes(content)
    open_source(out)  # of the same size: only the checksum tells
    done = tool("--verify", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert "1 of 3 shards" in done.stderr
    assert "'shard-000001.tar'" in done.stderr
    victim.write_bytes(content[:-1])
    with pytest.raises(
        InputError, match=r"shard-000001.tar' has \d+ bytes, \d+ by the shards.json"
    ):
        open_source(out)
    victim.unlink()
    with pytest.raises(InputError, match=r"1 of 3 shards are not there, .*shard-000001.tar"):
        open_source(out)
    make_shards(str(image_folder), str(out), RAW)
    assert files(out) == whole
    done = tool("--verify", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified 3 shards, 24 images" in done.stdout


def test_a_set_with_another_shard_is_refused(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_shards(str(image_folder), str(out), PLAIN)
    part = open_source(out / "shard-{000000..000001}.tar")  # a part, by name, is one's own wish
    assert len(part.files) == 20
    write_tar(out / "zz.tar", [("x.jpg", b"1")])
    with pytest.raises(InputError, match=r"holds 'zz.tar', of which its shards.json knows nothing"):
        open_source(out)
    with pytest.raises(InputError, match=r"not listed in the shards.json"):
        open_source(out / "zz.tar")
    (out / "shards.json").write_text("{}")
    with pytest.raises(InputError, match=r"shards.json' is damaged"):
        open_source(out)


def test_unreadable_images(image_folder: Path, tmp_path: Path) -> None:
    for name in ("a/003.jpg", "b/005.jpg"):
        (image_folder / name).write_bytes((image_folder / name).read_bytes()[:300])
    done = tool(image_folder, tmp_path / "out", "--shard-size", 10)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "00" in done.stderr
    assert "--skip-unreadable" in done.stderr
    assert not list((tmp_path / "out").glob(".*.tmp"))
    done = tool(image_folder, tmp_path / "out", "--shard-size", 10, "--skip-unreadable")
    assert done.returncode == 0, done.stderr
    assert "2 unreadable images were left out" in done.stdout
    listed = (tmp_path / "out" / "unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0][-9:] for line in listed] == ["a/003.jpg", "b/005.jpg"]
    shards = open_source(tmp_path / "out")
    assert len(shards.files) == 22
    good = [image_folder / n for n in images_below(image_folder) if n[:5] not in ("a/003", "b/005")]
    wanted = sorted(hashlib.sha256(path.read_bytes()).digest() for path in good)
    assert sorted(by_original(shards)) == wanted


WRONG = {
    "no source": (["nowhere", "out"], "SOURCE 'nowhere' is not a folder or file"),
    "no images": (["empty", "out"], "holds no images"),
    "other options": (["images", "done", "--format", "raw"], "made with format 'jpeg', not 'raw'"),
    "other seed": (["images", "done", "--seed", "1"], "made with seed 0, not 1"),
    "other images": (["images/a", "done"], "holds shards made with other images"),
    "another folder": (["images", "used"], "holds 'x': name an empty folder"),
    "a file": (["images", "used/x"], "is a file"),
    "among the images": (["images", "images/out"], "lies in the folder of the images"),
    "quality alone": (["images", "out", "--quality", "80"], "--quality is of the JPEGs"),
    "quality": (["images", "out", "--quality", "0", "--short-side", "9"], "must lie in 1"),
    "short side": (["images", "out", "--short-side", "-1"], "--short-side -1 must"),
    "shard size": (["images", "out", "--shard-size", "0"], "--shard-size 0 must"),
    "workers": (["images", "out", "--workers", "0"], "--workers 0 must"),
    "seed": (["images", "out", "--seed", "-1"], "--seed -1 must"),
    "nothing": ([], "name SOURCE and OUT_DIR"),
    "no output": (["images"], "name SOURCE and OUT_DIR"),
    "verify nothing": (["--verify", "nowhere"], "is not a folder"),
    "verify images": (["--verify", "images"], "has no shards.json"),
}


def test_what_is_refused(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    make_shards(str(image_folder), str(tmp_path / "done"), Options())
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "500")
    for arguments, message in WRONG.values():
        monkeypatch.setattr(sys, "argv", ["make_shards.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools/make_shards.py"), run_name="__main__")
        assert stop.value.code == 2, arguments
        assert message in capsys.readouterr().err.splitlines()[-1], arguments
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_raw_members_are_read_as_numpy_writes_them_or_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    content = raw.to_bytes(pixels)
    assert np.array_equal(np.load(io.BytesIO(content)), pixels)
    assert np.array_equal(raw.parse(content), pixels)
    assert not raw.parse(content).flags.writeable
    for other in (
        pixels.astype(np.uint16),
        np.asfortranarray(pixels),
        pixels[..., :1],
        pixels[0],
        pixels[:0],
        pixels.astype(np.int8),
    ):
        out = io.BytesIO()
        np.save(out, other)
        wrong = out.getvalue()
        with pytest.raises(ValueError, match=r"NumPy file|pixels"):
            raw.parse(wrong)
        write_tar(tmp_path / "0.tar", [("x.npy", wrong)])
        with pytest.raises(InputError, match=r"'x.npy' in .*0.tar' is no image"):
            open_source(tmp_path)
    for wrong in (content[:-1], content + b"\0", content[:60], b""):
        with pytest.raises(ValueError, match=r"NumPy file|cut short"):
            raw.parse(wrong)


def test_numpy_files_about_an_image_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    out = io.BytesIO()
    np.save(out, np.zeros(7, dtype=np.float32))
    members = [("a.jpg", (tmp_path / "000.jpg").read_bytes()), ("a.npy", out.getvalue())]
    write_tar(tmp_path / "0.tar", members)
    assert open_source(tmp_path / "0.tar").files == ("0.tar/a.jpg",)
