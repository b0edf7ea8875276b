"""Systems other than Linux: the same data there, or one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from as_on_macos import checksum
from conftest import ROOT


def test_what_only_linux_has_is_not_needed(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here, there = str(tmp_path / "linux"), str(tmp_path / "macos")
    done = subprocess.run(
        [sys.executable, "tests/pretrain/as_on_macos.py", image_folder, there],
        cwd=ROOT,
        env={**os.environ, "AS_ON_MACOS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = done.stdout.splitlines()[-1]
    assert found == f"spawn {checksum(str(image_folder), here)}"
    for name in ("shard-000000.tar", "shard-000001.tar", "shards.json"):
        assert Path(here, name).read_bytes() == Path(there, name).read_bytes()


@pytest.mark.parametrize("package", ["pretrain.loading.loader", "transfer", "convert"])
def test_windows_is_refused_in_one_line(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.name = 'nt'; import {package}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: this needs Linux or macOS; on Windows use WSL 2\n"
