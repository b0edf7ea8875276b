"""Jobs for Slurm: what is submitted, and that a stopped job is queued again and continued.

There is no Slurm here. Its job file is read; requeueing is submitit's own local executor.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from runtime.errors import InputError
from runtime.slurm import parse, submit, without_option

pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")

TOOL = """
tools/pretrain.py --config configs/moco_v2_R50_200ep.yaml MODEL.ARCH resnet18w0.125x MODEL.DIM 8
MODEL.QUEUE_SIZE 12 MODEL.BN_GROUP_SIZE 4 VIEWS.CROP_SIZE 32 DATA.NUM_WORKERS 0 DEVICE cpu
LOG_PERIOD 1 SOLVER.BATCH_SIZE 8
""".split()


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``srun`` and ``sbatch`` on the path; the latter keeps the job file, returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    job = tmp_path / "job.sh"
    for name, text in (("srun", ""), ("sbatch", f"cp $1 {job}\necho Submitted batch job 4242")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in ("PYTHONPATH", "SUBMITIT_PREEMPT_SIGNAL"):  # submit() sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return job


def test_one_command_submits(fake_slurm: Path, image_folder: Path, tmp_path: Path) -> None:
    paths = ["DATA.ROOT", str(image_folder), "OUTPUT_DIR", str(tmp_path / "run")]
    command = [sys.executable, *TOOL, *paths, "--slurm", "nodes=2,gpus=8,hours=72,partition=long"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"Slurm job 4242: its output goes to {tmp_path / 'run' / 'slurm'}" in done.stdout
    flags = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", fake_slurm.read_text()))
    expected = {"nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "8"}
    expected |= {"time": "4320", "partition": "long", "signal": "USR1@180", "open-mode": "append"}
    assert expected.items() <= flags.items()
    assert re.search(r"^srun .*submitit.core._submit", fake_slurm.read_text(), re.MULTILINE)


def test_a_wrong_recipe_is_refused_before_it_waits(fake_slurm: Path, tmp_path: Path) -> None:
    command = [sys.executable, *TOOL, "OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.EPOCHS", "0"]
    done = subprocess.run(
        [*command, "--slurm=nodes=1"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (2, "error: SOLVER.EPOCHS 0 must be at least 1\n")
    assert not fake_slurm.exists()
    assert not (tmp_path / "run").exists()


def test_options(fake_slurm: Path, tmp_path: Path) -> None:
    assert parse("") == {"nodes": 1, "gpus": 1, "cpus": 8, "hours": 24.0}
    assert parse("gpus=0,hours=1.5,qos=low")["qos"] == "low"
    for wrong in ("nodes", "nodes=", "nodes=two", "gpus=-1"):
        with pytest.raises(InputError, match=f"--slurm '{wrong}' is not KEY=VALUE"):
            parse(wrong)
    with pytest.raises(InputError, match=r"--slurm nodez=3: .*nodez"):
        submit("nodez=3", ["x.py"], tmp_path / "logs")
    argv = ["t.py", "--slurm", "nodes=1", "A", "1", "--slurm=x", "--batch", "8"]
    assert without_option(argv, "--slurm") == ["t.py", "A", "1", "--batch", "8"]


def test_what_sbatch_refuses_is_one_line(fake_slurm: Path, tmp_path: Path) -> None:
    refusal = "#!/bin/sh\necho sbatch: no such partition >&2; exit 1"
    (tmp_path / "bin" / "sbatch").write_text(refusal)
    with pytest.raises(InputError, match="--slurm partition=x: sbatch: no such partition"):
        submit("partition=x", ["tool.py"], tmp_path / "logs")


def test_a_stopped_job_is_queued_again_and_continues(image_folder: Path, tmp_path: Path) -> None:
    """SIGUSR1 as Slurm sends it before it takes a machine back."""
    run, epochs = tmp_path / "run", 30
    tool = [str(ROOT / TOOL[0]), TOOL[1], str(ROOT / TOOL[2]), *TOOL[3:]]
    paths = ["DATA.ROOT", str(image_folder), "OUTPUT_DIR", str(run)]
    number = submit("gpus=0", [*tool, *paths, "SOLVER.EPOCHS", str(epochs)], run / "slurm", "local")
    wait_until(lambda: (run / "metrics.json").exists() and lines(run / "metrics.json") >= 3)
    children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGUSR1)
    wait_until((run / "checkpoint_final.pth").exists)
    log = (run / "log.txt").read_text()
    done = [int(step) for step in re.findall(r"resuming from \S+ at step (\d+) of 90", log)]
    assert len(done) == 1
    assert done[0] >= 3
    assert lines(run / "metrics.json") == 3 * epochs
    assert "this job is preempted" in next((run / "slurm").glob("*.err")).read_text()


def lines(path: Path) -> int:
    return path.read_text().count("\n")


def wait_until(condition: object, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)
