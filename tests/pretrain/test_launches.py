"""Runs of several processes as users start them: torchrun's restarts, and two machines."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_trainer import CONFIG, run, tiny

from runtime.launch import _first_host

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TOOL = ["tools/pretrain.py", "--config", CONFIG]


def finish(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoint_final.pth", weights_only=True)["state_dict"]


def test_killed_process_is_restarted_and_the_run_continues(
    image_folder: Path, tmp_path: Path
) -> None:
    """Rank 1 dies in the third epoch; both are started anew, and no step is lost or repeated."""
    whole = finish([*TORCHRUN, *TOOL, *tiny(image_folder, tmp_path / "whole")])
    assert whole.returncode == 0, whole.stderr
    command = [*TORCHRUN, "--max-restarts=1", "tests/pretrain/killed_once.py", *TOOL[1:]]
    killed = finish([*command, *tiny(image_folder, tmp_path / "killed")], KILLED_AT="7")
    assert killed.returncode == 0, killed.stderr
    log = (tmp_path / "killed" / "log.txt").read_text()
    assert re.findall(r"resuming from \S*checkpoint_0001.pth at step (\d+) of 9", log) == ["6"]
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


def test_refused_run_is_not_continued_by_a_restart(image_folder: Path, tmp_path: Path) -> None:
    """The folder holds an unfinished run; without --resume a restart must leave it alone, too."""
    folder = tmp_path / "run"
    run(image_folder, folder)
    (folder / "checkpoint_final.pth").unlink()
    (folder / "last_checkpoint").write_text("checkpoint_0001.pth")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = finish([*TORCHRUN, "--max-restarts=2", *TOOL, *tiny(image_folder, folder)])
    assert done.returncode != 0
    assert done.stderr.count("error: not tried again: OUTPUT_DIR") == 4  # two processes, twice
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_two_machines_train_like_one(image_folder: Path, tmp_path: Path) -> None:
    """Two launches with --num-machines 2, each a process group of its own on this machine."""
    run(image_folder, tmp_path / "one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, *TOOL, *tiny(image_folder, tmp_path / "two")]
    command += ["--num-machines", "2", "--dist-url", url]
    machines = [
        subprocess.Popen(
            [*command, "--machine-rank", str(rank)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    outputs = [machine.communicate(timeout=400)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "on 2 process(es)" in outputs[0]
    one, two = (
        json.loads((tmp_path / n / "metrics.json").open().readline()) for n in ("one", "two")
    )
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name in ("module.queue_ptr", "module.encoder_q.bn1.num_batches_tracked"):
        assert torch.equal(weights(tmp_path / "one")[name], weights(tmp_path / "two")[name])


@pytest.mark.parametrize("rank", ["2", "-1"])
def test_machine_rank_out_of_range(rank: str, image_folder: Path, tmp_path: Path) -> None:
    options = ["--num-machines", "2", f"--machine-rank={rank}", "--dist-url", "tcp://127.0.0.1:1"]
    done = finish([sys.executable, *TOOL, *tiny(image_folder, tmp_path / "run"), *options])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"--machine-rank {rank} of --num-machines 2: it counts from 0 to 1" in done.stderr


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("gpu[007-009,012],cpu1", "gpu007"),
        ("a-b3,a-b4", "a-b3"),
        ("rack[2,5]", "rack2"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert _first_host(nodes) == first
