"""Checkpoint files under a failing disk, kills, flipped bits and rotation."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disk_faults import before_each_call, calls_of, failing_at, in_child, killed_at

from convert.reading import read_checkpoint
from runtime import checkpoints, rundir
from runtime.checkpoints import BackgroundWriter, newest, write
from runtime.errors import InputError
from runtime.files import remove_leftovers

THOROUGH = "FAULTS_KILLS" in os.environ
DAMAGES = 2000 if THOROUGH else 50


def state(number: int) -> dict[str, Any]:
    """Two tensors, larger than a buffer of the file."""
    weights = {"w": torch.full((4000,), float(number)), "b": torch.arange(5) + number}
    return {"state_dict": weights, "step": number}


def oldest_goes(names: list[str]) -> list[str]:
    return names[:-2]


def two(folder: Path) -> Path:
    """A folder with the checkpoints 1 and 2; the path of the third."""
    folder.mkdir(exist_ok=True)
    for number in (1, 2):
        write(folder / f"{number}.pth", state(number), oldest_goes)
    return folder / "3.pth"


def taken(folder: Path) -> int:
    """The number of the checkpoint that is taken, whose whole content is checked."""
    found = newest(folder, read_checkpoint)
    assert found is not None
    path, content = found
    number = content["step"]
    assert path == folder / f"{number}.pth"
    expected = state(number)["state_dict"]
    assert all(torch.equal(content["state_dict"][name], expected[name]) for name in expected)
    return number


def test_sums_are_those_of_sha256sum_and_old_ones_go(tmp_path: Path) -> None:
    path = two(tmp_path)
    write(path, state(3), oldest_goes)
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == ["2.pth", "3.pth"]
    command = ["sha256sum", "--check", "--strict", checkpoints.SUMS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2.pth: OK\n3.pth: OK\n")


def test_the_order_of_a_save(tmp_path: Path) -> None:
    """Sum, checkpoint, pointer, deletion, each on the disk before the next one."""
    path = two(tmp_path)
    calls = calls_of(lambda: write(path, state(3), oldest_goes))
    order = [name for name in calls if not name.startswith(("open", "write"))]
    assert order == [
        *("fsync checkpoints.sha256", "replace checkpoints.sha256", "fsync folder"),
        *("fsync 3.pth", "replace 3.pth", "fsync folder"),
        *("fsync last_checkpoint", "replace last_checkpoint", "fsync folder"),
        "unlink 1.pth",
        *("fsync checkpoints.sha256", "replace checkpoints.sha256", "fsync folder"),
    ]
    assert calls.count("write 3.pth") > 2  # so that a kill can come in the middle of the file


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_call_of_a_save_may_fail(tmp_path: Path, code: int) -> None:
    first, seen = two(tmp_path / "0"), []
    for n in range(1, len(calls_of(lambda: write(first, state(3), oldest_goes))) + 1):
        path = two(tmp_path / str(n))
        with before_each_call(failing_at(n, code)), pytest.raises(InputError) as error:
            write(path, state(3), oldest_goes)
        seen.append(taken(path.parent))
        assert str(error.value) == (
            f"cannot write the checkpoint {str(path)!r} ({os.strerror(code)}): the last checkpoint "
            f"is '{seen[-1]}.pth'; repair the disk or make room, then continue with --resume"
        )
        assert not list(path.parent.glob(".*"))
        write(path, state(3), oldest_goes)
        assert taken(path.parent) == 3
    assert seen == sorted(seen)
    assert set(seen) == {2, 3}


def test_killed_at_any_call_of_a_save(tmp_path: Path) -> None:
    first, seen = two(tmp_path / "0"), []
    for n in range(1, len(calls_of(lambda: write(first, state(3), oldest_goes))) + 1):
        path = two(tmp_path / str(n))

        def killed(path: Path = path, n: int = n) -> None:
            with before_each_call(killed_at(n)):
                write(path, state(3), oldest_goes)

        assert in_child(killed) == -9
        seen.append(taken(path.parent))
        remove_leftovers(path.parent)
        assert not list(path.parent.glob(".*"))
        write(path, state(3), oldest_goes)
        assert taken(path.parent) == 3
        assert sorted(p.name for p in path.parent.glob("*.pth")) == ["2.pth", "3.pth"]
    assert seen == sorted(seen)
    assert set(seen) == {2, 3}


def killed_save(path: Path, n: int) -> None:
    def work() -> None:
        with before_each_call(killed_at(n)):
            write(path, state(1))

    assert in_child(work) == -9


def failed_save(path: Path, n: int) -> None:
    with before_each_call(failing_at(n, errno.ENOSPC)), pytest.raises(InputError):
        write(path, state(1))


@pytest.mark.parametrize("cut_off", [killed_save, failed_save])
def test_the_first_save_of_all_cut_off_anywhere(
    tmp_path: Path, cut_off: Callable[[Path, int], None]
) -> None:
    """Before its file is there a run starts at the beginning; its next save may have any name."""
    seen: list[int | None] = []
    for n in range(1, len(calls_of(lambda: write(tmp_path / "1.pth", state(1)))) + 1):
        path = tmp_path / str(n) / "1.pth"
        path.parent.mkdir()
        cut_off(path, n)
        seen.append(taken(path.parent) if newest(path.parent, read_checkpoint) else None)
        remove_leftovers(path.parent)
        write(path.with_name("3.pth"), state(3), lambda names: names[:-1])
        assert taken(path.parent) == 3
        assert [p.name for p in path.parent.glob("*.pth")] == ["3.pth"]
        assert (path.parent / checkpoints.SUMS).read_text().endswith("  3.pth\n")
        assert (path.parent / checkpoints.SUMS).read_text().count("\n") == 1
    assert seen == sorted(seen, key=bool)
    assert set(seen) == {None, 1}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(content)))
    if rng.random() < 0.2:
        return content[:place]
    flipped = bytearray(content)
    flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


def test_every_flipped_bit_and_every_missing_byte_is_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = two(tmp_path).with_name("2.pth")
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(DAMAGES):
        rundir.set_last_checkpoint(path)
        path.write_bytes(damaged(content, rng))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert taken(tmp_path) == 1
        (line,) = caplog.messages
        assert line.startswith(f"skipping a checkpoint: {str(path)!r} is damaged")
        assert (tmp_path / "last_checkpoint").read_text() == "1.pth"


@pytest.mark.parametrize("name", [checkpoints.SUMS, "last_checkpoint"])
def test_damaged_lists_never_lead_to_a_wrong_checkpoint(tmp_path: Path, name: str) -> None:
    two(tmp_path)
    sound = {file: (tmp_path / file).read_bytes() for file in (checkpoints.SUMS, "last_checkpoint")}
    rng = np.random.default_rng(0)
    for _ in range(DAMAGES):
        for file, content in sound.items():
            (tmp_path / file).write_bytes(content)
        (tmp_path / name).write_bytes(damaged(sound[name], rng))
        assert taken(tmp_path) in (1, 2)


def test_none_is_sound(tmp_path: Path) -> None:
    two(tmp_path)
    for number in (1, 2):
        (tmp_path / f"{number}.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint in .* is sound \(2\.pth, 1\.pth\)"):
        newest(tmp_path, read_checkpoint)
    (tmp_path / "empty").mkdir()
    assert newest(tmp_path / "empty", read_checkpoint) is None


def test_a_checkpoint_without_sum_is_read_by_its_crc(tmp_path: Path) -> None:
    """One that was there before the list of sums, or that was copied alone."""
    two(tmp_path)
    (tmp_path / checkpoints.SUMS).unlink()
    assert taken(tmp_path) == 2
    content = bytearray((tmp_path / "2.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "2.pth").write_bytes(content)
    with pytest.raises(InputError, match="no checkpoint"):
        newest(tmp_path, read_checkpoint)


def test_what_came_after_a_damaged_checkpoint_is_forgotten(tmp_path: Path) -> None:
    path = two(tmp_path)
    (tmp_path / "2.pth").write_bytes(b"")
    assert taken(tmp_path) == 1
    write(path, state(3), oldest_goes)
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == ["1.pth", "3.pth"]
    path.write_bytes(b"")
    assert taken(tmp_path) == 1


def test_the_background_writes_what_was_then(tmp_path: Path, monkeypatch: Any) -> None:
    """Although the tensors change before the thread comes to them (pytorch issue 144657)."""
    may_write = threading.Event()
    monkeypatch.setattr(checkpoints, "write", lambda *a: (may_write.wait(), write(*a)))
    now = state(1)
    with BackgroundWriter() as writer:
        writer.write(tmp_path / "1.pth", now, oldest_goes)
        for tensor in now["state_dict"].values():
            tensor.fill_(-1)
        assert not (tmp_path / "1.pth").exists()
        may_write.set()
    assert taken(tmp_path) == 1


def test_an_error_in_the_background_comes_up(tmp_path: Path) -> None:
    with BackgroundWriter() as writer:
        writer.write(tmp_path / "absent" / "1.pth", state(1), oldest_goes)
        with contextlib.suppress(InputError):
            for _ in range(1000):
                writer.check()  # does not wait
                time.sleep(0.01)
            pytest.fail("no error")
        writer.write(tmp_path / "absent" / "1.pth", state(1), oldest_goes)
        with pytest.raises(InputError, match="No such file or directory"):
            writer.wait()
