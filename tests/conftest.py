"""Shared by all tests: the checkout on the path, one thread, no deadlines, small images."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

torch.set_num_threads(1)
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no failure
settings.load_profile("untimed")


def write_images(folder: Path, count: int, size: int = 24, seed: int = 0) -> None:
    """Write ``count`` different JPEGs: smooth colour noise, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size, size)).save(folder / f"{i:03d}.jpg", quality=95)


def trained(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Different values everywhere, so that a swapped tensor shows; none overflows."""
    torch.manual_seed(0)
    return {name: _value(name, value) for name, value in state.items()}


def _value(name: str, value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value + 7
    if name.endswith("running_var"):
        return torch.rand_like(value) + 0.5
    return torch.randn_like(value) / max(1, value[:1].numel()) ** 0.5


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A nested folder of 24 images in two class folders."""
    write_images(tmp_path / "images" / "a", 12, seed=1)
    write_images(tmp_path / "images" / "b", 12, seed=2)
    return tmp_path / "images"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache is ``tmp_path / "cache"``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write docs/parity.md after a run of the parity tests (PARITY_PAGE names the file).

    Here and not in tests/transfer: test modules import from ``conftest``, and there is one.
    """
    target, page = os.environ.get("PARITY_PAGE"), sys.modules.get("parity_page")
    if not target or page is None or not page.PAGE.tables:
        return
    counts = {
        what: len(terminalreporter.stats.get(what, ())) for what in ("passed", "failed", "skipped")
    }
    outcome = ", ".join(f"{count} tests {what}" for what, count in counts.items() if count)
    Path(target).write_text(page.PAGE.markdown(f"{outcome}."), encoding="utf-8")
    terminalreporter.write_line(f"wrote {target}")
