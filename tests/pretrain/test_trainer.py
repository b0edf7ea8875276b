"""Whole runs: files, resumption, several processes, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from pretrain.config import load_cfg
from pretrain.loading import memory_check
from pretrain.trainer import pretrain
from runtime.errors import InputError

CONFIG = "configs/moco_v1_R50_200ep.yaml"
TINY = """
MODEL.ARCH resnet18w0.125x MODEL.DIM 8 MODEL.QUEUE_SIZE 12 MODEL.BN_GROUP_SIZE 4
VIEWS.CROP_SIZE 32 SOLVER.BATCH_SIZE 8 SOLVER.EPOCHS 3 SOLVER.SCHEDULE cosine LOG_PERIOD 1
DATA.NUM_WORKERS 0 DEVICE cpu
""".split()


def tiny(folder: Path, output: Path, *more: str) -> list[str]:
    return [*TINY, "DATA.ROOT", str(folder), "OUTPUT_DIR", str(output), *more]


def run(folder: Path, output: Path, *more: str, resume: bool = False) -> dict:
    path = pretrain(load_cfg(ROOT / CONFIG, tiny(folder, output, *more)), resume)
    return torch.load(path, weights_only=True)


def tool(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tools/pretrain.py", "--config", CONFIG, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_run_folder_and_checkpoint_layout(image_folder: Path, tmp_path: Path) -> None:
    state = run(image_folder, tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "metrics.json", "views.png", "last_checkpoint", "log.txt"} <= files
    assert {"checkpoint_0000.pth", "checkpoint_0001.pth", "checkpoint_final.pth"} <= files
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "checkpoint_final.pth"
    assert (state["epoch"], state["step"], state["arch"]) == (3, 9, "resnet18w0.125x")
    assert all(name.startswith("module.") for name in state["state_dict"])
    assert state["state_dict"]["module.queue"].shape == (8, 12)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").open()]
    assert [row["iteration"] for row in rows] == list(range(9))
    assert rows[0]["lr"] == 0.03
    assert rows[3]["lr"] == pytest.approx(0.0225)


def test_too_little_memory_is_told_before_a_run_begins(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_check, "free_memory", lambda: 1000)
    with pytest.raises(InputError, match="of memory are needed and 1e-06 GB are free"):
        run(image_folder, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "log.txt"}


def test_resumed_run_equals_the_unbroken_one(image_folder: Path, tmp_path: Path) -> None:
    whole = run(image_folder, tmp_path / "whole")
    run(image_folder, tmp_path / "broken", "CHECKPOINT_PERIOD", "1")
    folder = tmp_path / "broken"
    (folder / "checkpoint_final.pth").unlink()  # as if killed in the third epoch
    (folder / "last_checkpoint").write_text("checkpoint_0001.pth")
    resumed = run(image_folder, folder, "DATA.NUM_WORKERS", "1", resume=True)
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    rows = [json.loads(line) for line in (folder / "metrics.json").open()]
    assert [row["iteration"] for row in rows] == list(range(9))


def test_supervised_learns_the_class_folders(tmp_path: Path) -> None:
    from PIL import Image

    for name, colour in (("red", (220, 40, 40)), ("blue", (40, 40, 220))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(16):
            Image.new("RGB", (24, 24), colour).save(tmp_path / "images" / name / f"{i}.png")
    state = run(
        tmp_path / "images",
        tmp_path / "run",
        "METHOD",
        "supervised",
        "SOLVER.EPOCHS",
        "6",
        "VIEWS.JITTER_PROB",
        "0.0",
        "VIEWS.GRAYSCALE_PROB",
        "0.0",
    )
    assert state["method"] == "supervised"
    assert state["state_dict"]["module.fc.weight"].shape == (2, 64)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").open()]
    assert rows[-1]["loss"] < 0.1 < rows[0]["loss"]
    assert "2 classes: blue, red\n" in (tmp_path / "run" / "log.txt").read_text()


def test_two_processes_train_like_one(image_folder: Path, tmp_path: Path) -> None:
    """torchrun with two real processes on Gloo, through the command line."""
    one = run(image_folder, tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["tools/pretrain.py", "--config", CONFIG]
    done = subprocess.run(
        command + tiny(image_folder, tmp_path / "two"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "two" / "checkpoint_final.pth", weights_only=True)
    first = json.loads((tmp_path / "one" / "metrics.json").open().readline())
    other = json.loads((tmp_path / "two" / "metrics.json").open().readline())
    assert other["loss"] == pytest.approx(first["loss"], rel=1e-5)
    for name in ("module.queue_ptr", "module.encoder_q.bn1.num_batches_tracked"):
        assert torch.equal(one["state_dict"][name], two["state_dict"][name])


WRONG = {
    "no folder": (["DATA.ROOT", "/nonexistent"], "is not a folder"),
    "queue": (["MODEL.QUEUE_SIZE", "17"], "MODEL.QUEUE_SIZE 17 is too large for 24 images"),
    "batch": (["SOLVER.BATCH_SIZE", "32"], "exceeds the 24 images"),
    "groups": (["MODEL.BN_GROUP_SIZE", "3"], "does not divide into BN groups"),
    "one group": (["MODEL.BN_GROUP_SIZE", "8"], "one BN group holds the whole batch"),
    "parts": (
        ["SOLVER.ACCUMULATE", "4"],
        r"on 1 process\(es\) in SOLVER.ACCUMULATE 4 parts: .* 16",
    ),
    "arch": (["MODEL.ARCH", "vgg16"], "MODEL.ARCH 'vgg16'"),
    "unknown key": (["MODEL.QEUE_SIZE", "8"], "MODEL.QUEUE_SIZE"),
    "type": (["SOLVER.BATCH_SIZE", "many"], "SOLVER.BATCH_SIZE"),
    "odd": (["SOLVER.BATCH_SIZE"], "SOLVER.BATCH_SIZE"),
    "schedule": (["SOLVER.SCHEDULE", "linear"], "must be one of multistep, cosine"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_and_nothing_is_written(
    name: str, image_folder: Path, tmp_path: Path
) -> None:
    change, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        run(image_folder, tmp_path / "run", *change)
    assert not (tmp_path / "run").exists()


def test_command_line_exits_with_2_and_one_line(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = tool(*tiny(tmp_path / "empty", tmp_path / "run"), "--resume", "SEED", "1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "holds no images" in done.stderr
    done = tool("--config", "nowhere.yaml", *tiny(image_folder, tmp_path / "run"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_at_the_start_is_one_line(image_folder: Path, tmp_path: Path) -> None:
    arguments = ["tools/pretrain.py", "--config", CONFIG, *tiny(image_folder, tmp_path / "run")]
    command = shlex.join([sys.executable, *arguments])
    limited = ["sh", "-c", f"ulimit -f 4 && exec {command}"]  # 2 KiB a file, or 4
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=300)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert last.startswith("error: File too large"), last
    assert f"{tmp_path / 'run'}/views.png" in last


def test_a_finished_run_makes_only_what_a_kill_has_prevented(
    image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(image_folder, folder)
    names = ("neighbours.png", "neighbours.txt", "checkpoint_final.pth", "metrics.json")
    first = {name: (folder / name).read_bytes() for name in names}
    for missing in (("neighbours.txt",), ("neighbours.png", "neighbours.txt"), ()):
        for name in missing:
            (folder / name).unlink()
        run(image_folder, folder, resume=True)
        assert {name: (folder / name).read_bytes() for name in names} == first
    last_line = (folder / "log.txt").read_text().splitlines()[-1]
    assert last_line.endswith(f"the run in {folder} has already finished: nothing is left to do")


def test_folder_of_another_run_is_refused(image_folder: Path, tmp_path: Path) -> None:
    run(image_folder, tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run"):
        run(image_folder, tmp_path / "run")
    with pytest.raises(InputError, match=r"SOLVER.BASE_LR is 0.5, but .* begun with 0.03"):
        run(image_folder, tmp_path / "run", "SOLVER.BASE_LR", "0.5", resume=True)
    (image_folder / "a" / "000.jpg").rename(image_folder / "a" / "renamed.jpg")
    with pytest.raises(InputError, match="are not those"):
        run(image_folder, tmp_path / "run", resume=True)
