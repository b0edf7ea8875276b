"""Every system call that writes a file can be made to fail, or be the last one of a process."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from unittest import mock

Act = Callable[[int, str], None]


@contextlib.contextmanager
def before_each_call(act: Act) -> Iterator[None]:
    """``act(n, name)`` runs before the n-th call, counted from 1; the name is e.g. ``fsync a.pth``.

    Watched are those of ``runtime.files`` and of rotation: open, write, fsync, replace, unlink.
    """
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace")}
    real_unlink, names, count = pathlib.Path.unlink, {}, 0

    def call(what: str, path: Any) -> None:
        nonlocal count
        count += 1
        act(count, f"{what} {_final_name(path)}")

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            call("write", names[self.fileno()])
            return super().write(data)

    def open_(path: Any, flags: int, *mode: int, **options: Any) -> int:
        if flags & os.O_CREAT:
            call("open", path)
        handle = real["open"](path, flags, *mode, **options)
        names[handle] = path
        return handle

    def fsync(handle: int) -> None:
        call("fsync", names.get(handle, "folder"))
        real["fsync"](handle)

    def replace(source: Any, target: Any) -> None:
        call("replace", target)
        real["replace"](source, target)

    def unlink(path: pathlib.Path, missing_ok: bool = False) -> None:
        call("unlink", path)
        real_unlink(path, missing_ok)

    with (
        mock.patch("os.open", open_),
        mock.patch("os.fdopen", lambda handle, mode: io.BufferedWriter(Raw(handle, mode))),
        mock.patch("os.fsync", fsync),
        mock.patch("os.replace", replace),
        mock.patch("pathlib.Path.unlink", unlink),
    ):
        yield


def _final_name(path: Any) -> str:
    """``a.pth`` of ``.a.pth.0123abcd.tmp``; ``folder`` of a folder."""
    if os.path.isdir(path):
        return "folder"
    name = os.path.basename(path)
    return name[1:-13] if name.endswith(".tmp") else name


def calls_of(work: Callable[[], object]) -> list[str]:
    """The names of all calls of ``work``."""
    seen: list[str] = []
    with before_each_call(lambda n, name: seen.append(name)):
        work()
    return seen


def failing_at(number: int, code: int) -> Act:
    """Raise OSError ``code`` at that call."""

    def act(n: int, _name: str) -> None:
        if n == number:
            raise OSError(code, os.strerror(code))

    return act


def killed_at(number: int) -> Act:
    """SIGKILL this process at that call."""

    def act(n: int, _name: str) -> None:
        if n == number:
            kill_this_process()

    return act


def kill_this_process() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a fork; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
