"""Hostile files: a clear error or harmless data; no code, no crash, no file, bounded memory.

``HOSTILE_MUTANTS=20000`` (make faults) reads so many mutants of pickles, and half as many of torch
files; without it a few hundred.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import hostile_pickles
import hostile_torch
import numpy as np
import pytest
import torch
from conftest import ROOT

from convert import safe_pickle
from convert.reading import read_checkpoint

MUTANTS = int(os.environ.get("HOSTILE_MUTANTS", "400"))


@pytest.mark.parametrize(("kind", "count"), [("pickles", MUTANTS), ("torch", MUTANTS // 2)])
def test_hostile_files(tmp_path: Path, kind: str, count: int) -> None:
    child = [sys.executable, str(Path(__file__).with_name("hostile_child.py")), kind, str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*child, "1"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    current = tmp_path / "current"
    where = current.read_text() if current.exists() else "a crafted file"
    assert done.returncode == 0, f"{where}: exit {done.returncode} {done.stderr[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    print(kind, found["counts"])
    assert found["problems"] == []
    assert found["events"] == []
    counts = found["counts"]
    assert counts["crafted"] >= 40
    assert counts["refused"] + counts["equal"] + counts["other values"] == count
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", hostile_pickles.honest_pickles())
def test_honest_pickles_are_read(name: str) -> None:
    loaded = safe_pickle.load(io.BytesIO(hostile_pickles.honest_pickles()[name]), "x")
    if name == "python 2":
        expected = {"x": np.arange(6, dtype=np.float32)}
    elif name.startswith("large"):
        expected = hostile_pickles.large()
    elif name.startswith("protocol"):
        expected, loaded = hostile_pickles.weights()["model"], loaded["model"]
    else:
        loaded = loaded.get("blobs", loaded.get("model"))
        expected = {"conv1_w": np.ones((2, 3, 7, 7), "f4"), "res_conv1_bn_s": np.ones(2, "f4")}
    assert list(loaded) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(loaded[key], value)
        assert loaded[key].dtype == value.dtype.newbyteorder("=")
        assert loaded[key].flags.writeable
        assert loaded[key].flags.c_contiguous


@pytest.mark.parametrize("name", hostile_torch.honest_torch())
def test_honest_torch_files_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(hostile_torch.honest_torch()[name])
    loaded = read_checkpoint(tmp_path / name)
    loaded = loaded.get("state_dict", loaded)
    assert loaded.keys() == hostile_torch.state().keys()
    for key, value in hostile_torch.state().items():
        assert torch.equal(loaded[key], value), key
