"""Sets of shards: made again after a kill or damage to the same bytes, or refused."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, write_images
from disk_faults import before_each_call, failing_at
from sources_synthetic import write_tar
from test_make_shards import PLAIN, RAW, by_original, files

from pretrain.sharding.content import Content, Options
from pretrain.sharding.make_shards import make_shards
from pretrain.source.open_source import open_source
from pretrain.source.shard_index import verify
from runtime.errors import InputError
from runtime.image_files import images_below

pytestmark = pytest.mark.usefixtures("own_cache")


def tool(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tools/make_shards.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 300, size=200)
    arguments = [tmp_path / "images", tmp_path / "out", "--shard-size", "30", "--short-side", "190"]
    make_shards(*map(str, (tmp_path / "images", tmp_path / "whole")), Options("jpeg", 190, 90, 30))
    command = [sys.executable, "tools/make_shards.py", *map(str, arguments), "--workers", "2"]
    kills, journal = 0, tmp_path / "out" / "unfinished.jsonl"
    for at_least in (2, 6):  # shards
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") > at_least:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
        if journal.exists():
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


class Crash(BaseException):
    pass


def test_an_end_at_any_write_leaves_what_can_be_finished(
    image_folder: Path, tmp_path: Path
) -> None:
    """First of a new set, then of one that is made whole again."""
    make_shards(str(image_folder), str(tmp_path / "whole"), PLAIN)
    wanted = files(tmp_path / "whole")
    ends: list[str] = []
    main = os.getpid()
    for damaged in (False, True):
        for last in range(1, 100):
            out = tmp_path / f"{damaged}{last}"
            if damaged:
                shutil.copytree(tmp_path / "whole", out)
                (out / "shard-000001.tar").unlink()

            def end(number: int, name: str, last: int = last) -> None:
                if number >= last and os.getpid() == main:
                    ends.append(name)
                    raise Crash

            try:
                with before_each_call(end):
                    make_shards(str(image_folder), str(out), PLAIN, workers=1)
            except Crash:
                if files(out) != wanted:
                    with pytest.raises(InputError):
                        open_source(out)
                make_shards(str(image_folder), str(out), PLAIN, workers=1)
                assert files(out) == wanted, (damaged, last)
            else:
                assert files(out) == wanted
                break
        assert last > 10
    assert {"replace shards.json", "unlink shards.json", "unlink unfinished.jsonl"} <= set(ends)


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
    assert files(out).keys() == {"shard-000000.tar", "shards.json", "members.npz"}


@pytest.mark.parametrize("line", ["5", "{", "[1]"])
def test_a_damaged_journal_is_named(line: str, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unfinished.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"unfinished.jsonl' is damaged: remove its folder"):
        make_shards(str(image_folder), str(tmp_path / "out"), Options())


def test_a_failure_of_any_write_is_one_line_and_can_be_finished(
    image_folder: Path, tmp_path: Path
) -> None:
    """Of the small files, too; in this process and in the worker that it forks."""
    (image_folder / "a" / "003.jpg").write_bytes(b"damaged")  # so that a list is written
    make_shards(str(image_folder), str(tmp_path / "whole"), PLAIN, skip=True)
    wanted, reasons = files(tmp_path / "whole"), list[str]()
    for number in range(1, 100):
        out = tmp_path / str(number)
        make = partial(make_shards, str(image_folder), str(out), PLAIN, skip=True, workers=1)
        before = len(reasons)
        try:
            with before_each_call(failing_at(number, errno.ENOSPC)):
                make()
        except InputError as error:
            reasons.append(str(error))
        if len(reasons) == before:
            break
        assert not list(out.glob(".*.tmp"))
        make()
        assert files(out) == wanted, number
    assert number > 20
    assert all("': No space left on device" in reason for reason in reasons)
    beginnings = {reason.split(" '")[0] for reason in reasons}
    assert beginnings == {"cannot write", "cannot finish the shards in"}


def test_a_folder_that_cannot_be_written_to(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".lock").mkdir(parents=True)  # also in the way of root
    with pytest.raises(InputError, match=r"cannot write to the folder .*: Is a directory"):
        make_shards(str(image_folder), str(tmp_path / "out"), PLAIN)


def test_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As a user reads them: for one image, for a flat folder, and with classes."""

    def lines(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["make_shards.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools/make_shards.py"), run_name="__main__")
        assert stop.value.code == 0
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "flat", 1)
    source, finished = lines("flat", "one")
    assert source == (
        "flat: 1 image, no classes, which only supervised training needs: 'flat/000.jpg' lies in "
        "no class folder"
    )
    assert re.fullmatch(r"one: finished, 1 shard with 1 image, 0.\d MB", finished)
    write_images(tmp_path / "classes" / "a", 1)
    write_images(tmp_path / "classes" / "b", 1, seed=1)
    source, finished = lines("classes", "two", "--shard-size", "1")
    assert source == "classes: 2 images, 2 classes"
    assert finished.startswith("two: finished, 2 shards with 2 images, 0.0 MB")


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
    assert "verified, 3 shards with 24 images" in done.stdout


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
    assert "2 unreadable images left out" in done.stdout
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
