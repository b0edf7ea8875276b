"""A run that is killed, stopped or continued elsewhere ends as the unbroken one, bit for bit.

The runs are real processes, forked so that each need not import torch anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime import rundir
from runtime.errors import exit_code
from transfer.engines.select import select_engine
from transfer.run.finetune import finetune
from transfer.run.job import Job

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("KILLS", "3"))  # KILLS=10 for the thorough test
ENGINES = ["embedded", pytest.param("detectron2", marks=pytest.mark.detectron2)]
SCHEDULE = {
    "SOLVER": {"MAX_ITER": 40, "STEPS": [30], "CHECKPOINT_PERIOD": 7, "WARMUP_ITERS": 10},
    "TEST": {"EVAL_PERIOD": 15},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a recipe that both engines take: Detectron2 knows no narrower ResNet-18."""
    folder = tmp_path_factory.mktemp("world")
    tiny.write_voc(folder / "voc")
    recipe = yaml.safe_load(tiny.write_recipe(folder / "tiny.yaml", ROOT).read_text())
    for section, values in SCHEDULE.items():
        recipe[section] |= values
    (folder / "embedded.yaml").write_text(yaml.safe_dump(recipe))
    recipe["MODEL"]["RESNETS"] |= {"RES2_OUT_CHANNELS": 64, "STEM_OUT_CHANNELS": 64}
    (folder / "detectron2.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def job(world: Path, output: Path, engine: str) -> Job:
    return Job(
        recipe=str(world / f"{engine}.yaml"),
        weights="random",
        train_data=[f"voc:{world / 'voc'}:train"],
        test_data=[f"voc:{world / 'voc'}:test"],
        engine=engine,
        seed=1,
        output=str(output),
        resume=True,
    )


def start(work: Job) -> BaseProcess:
    select_engine(work.engine)  # imported here once, not in each fork
    process = multiprocessing.get_context("fork").Process(
        target=lambda: sys.exit(exit_code(lambda: finetune(work)))
    )
    process.start()
    return process


def finish(work: Job) -> None:
    process = start(work)
    process.join()
    assert process.exitcode == 0


def final(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def lines(folder: Path) -> Counter[tuple[int, bool]]:
    """How often ``metrics.json`` has losses (False) or an evaluation (True) of an iteration."""
    counted: Counter[tuple[int, bool]] = Counter()
    for row in rundir.read_metrics(folder):
        counted[row["iteration"], any(name.endswith("/AP") for name in row)] += 1
    return counted


def assert_equal_runs(folder: Path, whole: Path) -> None:
    a, b = final(folder), final(whole)
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert lines(folder) == lines(whole)
    metrics = [json.loads((run / "results.json").read_text())["metrics"] for run in (folder, whole)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_random_moments(world: Path, tmp_path: Path, engine: str) -> None:
    whole = tmp_path / "whole"
    began = time.monotonic()
    finish(job(world, whole, engine))
    seconds = time.monotonic() - began
    losses = {(19, False), (39, False)}  # the last of every 20 iterations
    assert lines(whole) == Counter(losses | {(i, True) for i in (14, 29, 39)})
    rng, kills, runs = np.random.default_rng(0), 0, 0
    while kills < KILLS:
        work, runs = job(world, tmp_path / f"run{runs}", engine), runs + 1
        process = start(work)
        while kills < KILLS:
            process.join(seconds * rng.uniform(0, 0.6))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
            last = rundir.last_checkpoint(Path(work.output or ""))
            print(f"{engine}: kill {kills} in run {runs}, last checkpoint {last and last.name}")
            process = start(work)
        process.join()
        assert process.exitcode == 0
        assert_equal_runs(Path(work.output or ""), whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_saves_a_checkpoint(
    world: Path, tmp_path: Path, engine: str, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    work = job(world, tmp_path / "run", engine)
    process = start(work)
    while rundir.last_checkpoint(tmp_path / "run") is None:
        time.sleep(0.01)
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == 128 + number
    last = rundir.last_checkpoint(tmp_path / "run")
    assert last is not None
    iteration = int(last.stem.removeprefix("model_"))
    name = signal.Signals(number).name
    line = f"stopped by {name} after iteration {iteration}; continue with --resume"
    assert line in capfd.readouterr().err.splitlines()
    assert not (tmp_path / "run" / "results.json").exists()
    finish(work)
    finish(replace(work, output=str(tmp_path / "whole")))
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_evaluation_that_was_missed_is_made_up_for(
    world: Path, tmp_path: Path, engine: str
) -> None:
    """Killed within the evaluation after iteration 14, whose checkpoint is complete."""
    work = job(world, tmp_path / "run", engine)
    work = replace(work, overrides=["SOLVER.CHECKPOINT_PERIOD", "15", "SOLVER.MAX_ITER", "16"])
    finish(work)
    for name in ("model_final.pth", "results.json"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000014.pth")
    before = lines(tmp_path / "run")
    rows = [row for row in rundir.read_metrics(tmp_path / "run") if "bbox/AP" not in row]
    (tmp_path / "run" / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    finish(work)
    assert lines(tmp_path / "run") == before
    steps = [event.step for event in EventAccumulator(str(tmp_path / "run")).Reload().Scalars("lr")]
    assert steps == [15]  # once, although the first process wrote it as well
