"""What a run is told that waits for its images, and how often."""

from __future__ import annotations

import logging

import pytest

from pretrain.loading import data_wait
from pretrain.loading.data_wait import WaitingNoted, advice


@pytest.mark.parametrize(
    ("wait", "pipeline", "gpu", "workers", "cores", "helps"),
    [
        (0.1, "reference", True, 1, 16, ""),
        (0.11, "reference", True, 1, 16, "DATA.PIPELINE fast"),
        (0.11, "reference", False, 0, 2, "DATA.PIPELINE fast"),
        (0.5, "fast", True, 8, 12, "DATA.NUM_WORKERS 11 would use 3 more core(s)"),
        (0.5, "split", True, 1, 2.5, "make_shards.py --short-side 256 (another recipe"),
        (0.5, "fast", True, 11, 12, "DATA.PIPELINE split"),
        (0.5, "fast", True, 16, 12, "DATA.PIPELINE split"),
        (0.5, "split", True, 11, 12, "make_shards.py --short-side 256 (another recipe"),
        (0.5, "fast", False, 0, 4, "DATA.NUM_WORKERS 3"),
        (0.5, "fast", False, 2, 4, "make_shards.py --short-side 256 (another recipe"),
        (0.5, "fast", False, 0, 1, "make_shards.py --short-side 256 (another recipe"),
    ],
)
def test_advice(
    wait: float, pipeline: str, gpu: bool, workers: int, cores: float, helps: str
) -> None:
    text = advice(wait, pipeline, gpu, workers, cores)
    assert helps in text
    assert bool(helps) == bool(text)


def test_one_line_once_in_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(data_wait.time, "monotonic", lambda: now[0])
    noted = WaitingNoted("reference", True, 8, 16)
    with caplog.at_level(logging.WARNING, "moco"):
        for wait, minutes, lines in (
            (0.9, 1, 0),
            (0.05, 2, 0),
            (0.3, 3, 1),
            (0.4, 62, 1),
            (0.2, 63, 2),
        ):
            now[0] = 60.0 * minutes
            noted.report(wait)
            assert len(caplog.messages) == lines, minutes
    assert caplog.messages[0].startswith("30 % of the time went on waiting for images: DATA.PIPE")
