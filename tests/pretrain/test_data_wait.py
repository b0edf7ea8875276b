"""What a run is told that waits for its images, and how often."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources_synthetic import write_tar

from pretrain.loading import data_wait
from pretrain.loading.data_wait import Images, WaitingNoted, advice, look_at
from pretrain.source import raw
from pretrain.source.images import ImageFolder
from pretrain.source.open_source import open_source

LARGE = Images(375, False)


@pytest.mark.parametrize(
    ("wait", "pipeline", "gpu", "workers", "cores", "images", "helps"),
    [
        (0.1, "reference", True, 1, 16, LARGE, ""),
        (0.11, "reference", True, 1, 16, LARGE, "DATA.PIPELINE fast"),
        (0.11, "reference", False, 0, 2, LARGE, "DATA.PIPELINE fast"),
        (0.5, "fast", True, 8, 12, LARGE, "DATA.NUM_WORKERS 11 would use 3 more core(s)"),
        (0.5, "split", True, 1, 2.5, LARGE, "make_shards.py --short-side 256 (another recipe"),
        (0.5, "fast", True, 11, 12, LARGE, "DATA.PIPELINE split"),
        (0.5, "fast", True, 16, 12, LARGE, "DATA.PIPELINE split"),
        (0.5, "split", True, 11, 12, LARGE, "make_shards.py --short-side 256 (another recipe"),
        (0.5, "fast", False, 0, 4, LARGE, "DATA.NUM_WORKERS 3"),
        (0.5, "fast", False, 2, 4, LARGE, "make_shards.py --short-side 256 (another recipe"),
        (0.5, "fast", False, 0, 1, LARGE, "make_shards.py --short-side 256 (another recipe"),
        (0.5, "fast", False, 1, 2, Images(256, False), "make_shards.py --format raw"),
        (0.5, "fast", True, 1, 2, Images(256, False), "GPU; or shards of pixels"),
        (0.5, "split", False, 1, 2, Images(257, True), "--short-side 256"),
        (0.5, "split", False, 1, 2, Images(256, True), "all cores are busy"),
    ],
)
def test_advice(
    wait: float,
    pipeline: str,
    gpu: bool,
    workers: int,
    cores: float,
    images: Images,
    helps: str,
) -> None:
    text = advice(wait, pipeline, gpu, workers, cores, lambda: images)
    assert helps in text
    assert bool(helps) == bool(text)


def test_what_the_images_are(tmp_path: Path) -> None:
    for number, side in enumerate((30, 40, 300, 50, 60)):
        Image.new("RGB", (400, side)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "5.jpg").write_bytes(b"")
    assert look_at(ImageFolder.scan(tmp_path)) == Images(50, False)
    pixels = raw.to_bytes(np.zeros((20, 30, 3), np.uint8))
    write_tar(tmp_path / "raw.tar", [("a.npy", pixels), ("b.npy", pixels)])
    assert look_at(open_source(tmp_path / "raw.tar")) == Images(20, True)


def test_one_line_once_in_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(data_wait.time, "monotonic", lambda: now[0])
    noted = WaitingNoted(ImageFolder(Path(), ()), "reference", True, 8, 16)
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
