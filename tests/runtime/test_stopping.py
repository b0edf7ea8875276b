"""Signals become requests, once, and the handlers of before come back."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import time
from multiprocessing.synchronize import Event

import pytest

from runtime import stopping
from runtime.errors import Stopped, exit_code


def test_the_first_signal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    clock = [0.0]
    monkeypatch.setattr("runtime.stopping.time.monotonic", lambda: clock[0])
    with stopping.stoppable() as request:
        assert request.signal() == 0
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the same event, passed on by a launcher
        signal.raise_signal(signal.SIGTERM)
        assert request.signal() == signal.SIGTERM
        clock[0] = 2.0
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def load(ready: Event) -> None:
    stopping.leave_to_main()
    ready.set()
    time.sleep(60)


def test_a_worker_obeys_its_parent_only() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=load, args=(ready,), daemon=True)
    worker.start()
    ready.wait()
    for number in stopping.SIGNALS:  # as a scheduler sends them to every process of a job
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_a_worker_ends_with_its_parent_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "sigtimedwait")
    monkeypatch.setattr(stopping, "PARENT_CHECKED", 0.05)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=load, args=(ready,), daemon=True)
    worker.start()
    ready.wait()
    worker.join(0.2)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_exit_code_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise stopping.stopped(signal.SIGTERM, 41)

    assert exit_code(stop) == 143
    assert capsys.readouterr().err == (
        "stopped by SIGTERM after iteration 41; continue with --resume\n"
    )
    assert not issubclass(Stopped, Exception)  # no handler of errors swallows it
