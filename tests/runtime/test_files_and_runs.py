"""Files complete or absent, one run a folder, exit codes, and processes that are really started."""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from runtime import rundir
from runtime.errors import InputError, exit_code
from runtime.files import atomic_write, sha256, write_text
from runtime.launch import launch
from runtime.metrics import MetricsWriter, Progress, eta, rewind_metrics


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(target) as stream:  # noqa: PT012
        stream.write(b"new")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_during_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "old")
    code = (
        "import os, signal, sys; from runtime.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as stream:\n"
        "    stream.write(b'new' * 100000); stream.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT)
    assert done.returncode == -9
    assert target.read_text() == "old"


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_sha256_is_the_tools(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert sha256(tmp_path / "file") == known


def test_a_full_disk_is_one_line_that_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "x") as stream:
            stream.write(b"x" * 2**20)  # that much is not buffered

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, before[1]))
    try:
        assert exit_code(write) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = f"error: File too large ({tmp_path / 'x'}): make room and run it again, a training "
    assert capsys.readouterr().err == line + "with --resume\n"
    assert list(tmp_path.iterdir()) == []


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise InputError("one\nline")

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_code(lambda: None) == 0
    assert exit_code(wrong) == 2
    assert capsys.readouterr().err == "error: one line\n"
    assert exit_code(interrupted) == 130
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0)


def test_one_run_a_folder(tmp_path: Path) -> None:
    folder = rundir.prepare(tmp_path / "run", resume=False)
    with rundir.locked(folder):
        code = (
            "import sys; from pathlib import Path; from runtime import rundir\n"
            "with rundir.locked(Path(sys.argv[1])): pass"
        )
        command = [sys.executable, "-c", code, str(folder)]
        other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "another run is using" in other.stderr
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "x")
    write_text(tmp_path / rundir.METRICS, "{}\n")
    for output, message in (
        ("", "OUTPUT_DIR is not set"),
        (tmp_path / "file", "is a file"),
        (tmp_path, "already holds a run"),
        (tmp_path / "file" / "below", "cannot make OUTPUT_DIR"),
    ):
        with pytest.raises(InputError, match=message):
            rundir.prepare(output, resume=False)


def test_metrics_are_rewound_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for iteration in range(4):
            writer.write(iteration, {"loss": iteration / 2})
    with open(tmp_path / rundir.METRICS, "a") as stream:
        stream.write('{"iteration": 4, "lo')
    rewind_metrics(tmp_path, 2)
    assert rundir.read_metrics(tmp_path) == [
        {"iteration": 0, "loss": 0.0},
        {"iteration": 1, "loss": 0.5},
    ]


@pytest.mark.parametrize("second", [0, 2])
def test_tensorboard_forgets_what_a_resumed_run_does_again(
    tmp_path: Path, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # Files of one second and process are read in the order of this number as text: 9 after 10.
    writer_module = importlib.import_module("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writer_module, "_global_uid", writer_module.AtomicCounter(0))
    for start, end in ((0, 4), (second, 3)):
        rewind_metrics(tmp_path, start)
        with MetricsWriter(tmp_path) as writer:
            for iteration in range(start, end):
                writer.write(iteration, {"loss": float(iteration + end)})
    accumulator = events.EventAccumulator(str(tmp_path)).Reload()
    seen = [(event.step, event.value) for event in accumulator.Scalars("loss")]
    assert seen == [(i, i + (4.0 if i < second else 3.0)) for i in range(3)]


def test_last_checkpoint(tmp_path: Path) -> None:
    assert rundir.last_checkpoint(tmp_path) is None
    (tmp_path / "a.pth").write_bytes(b"")
    rundir.set_last_checkpoint(tmp_path / "a.pth")
    assert rundir.last_checkpoint(tmp_path) == tmp_path / "a.pth"
    (tmp_path / "a.pth").unlink()
    with pytest.raises(InputError, match=r"names 'a\.pth', which is not there"):
        rundir.last_checkpoint(tmp_path)


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("runtime.metrics.time.perf_counter", lambda: clock[0])
    progress = Progress(start=10, total=50)
    progress.waited(2.0)
    clock[0] += 8.0
    assert progress.report(14) == {"time": 2.0, "data_wait": 0.25, "eta_seconds": 72.0}
    assert eta(3725) == "1:02:05"


def test_more_gpus_than_there_are_is_refused() -> None:
    options = argparse.Namespace(num_gpus=99, num_machines=1, machine_rank=0, dist_url="auto")
    with pytest.raises(InputError, match="--num-gpus 99, but this machine has"):
        launch(lambda args: None, options)


def test_processes_of_two_machines_meet(tmp_path: Path) -> None:
    """--num-machines 2 on one machine: two launchers, a real process each, on Gloo."""
    code = (
        "import argparse, sys, torch\n"
        "from runtime.launch import launch\n"
        "from runtime.distributed import all_gather, mean_over_ranks, rank, world_size\n"
        "def main(args):\n"
        "    mine = torch.full((1, 2), float(rank()))\n"
        "    assert all_gather(mine).tolist() == [[0, 0], [1, 1]], all_gather(mine)\n"
        "    assert mean_over_ranks(mine).tolist() == [[0.5, 0.5]]\n"
        "    open(f'{args.out}/{rank()}of{world_size()}', 'w').close()\n"
        "if __name__ == '__main__':\n"
        "    r, url, out = sys.argv[1:]\n"
        "    launch(main, argparse.Namespace(num_gpus=0, num_machines=2, machine_rank=int(r),\n"
        "                                    dist_url=url, out=out))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, str(script), str(r), url, str(tmp_path)], env=environment)
        for r in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert (tmp_path / "0of2").exists()
    assert (tmp_path / "1of2").exists()
