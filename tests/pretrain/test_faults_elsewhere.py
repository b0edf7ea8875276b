"""A run that is continued on another number of processes ends as it would have, to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_images
from fault_runs import IMAGES, STEPS, THOROUGH, Job, continued_at, metrics

# The trajectory of the reference's pixels stays within the bound below; other draws and pixels may
# amplify the last bit to some per cent more.
EXACT = ("DATA.PIPELINE", "reference")
GROUPS = ("MODEL.BN_GROUP_SIZE", "2", "CHECKPOINT_STEPS", "8", "CHECKPOINT_KEEP", "0")
WORLDS = [(1, 2, 4), (4, 2, 1), (2, 4, 1), (4, 1, 2)] if THOROUGH else [(4, 2, 1)]


@pytest.mark.parametrize("worlds", WORLDS, ids=str)
def test_continued_on_another_number_of_processes(tmp_path: Path, worlds: tuple[int, ...]) -> None:
    """8 steps on each of three numbers of processes, against all steps on the first of them.

    Sums in another order differ in the last bit of float32, and BN over pairs of images amplifies
    that with every step. Equality over many steps is shown in float64 (test_invariance.py).
    """
    write_images(tmp_path / "images", IMAGES)
    whole = before = None
    for part, world in enumerate(worlds):
        job = Job(tmp_path / "images", tmp_path / f"part{part}", (*GROUPS, *EXACT), world)
        if before is not None:
            continued_at(8 * part, before, job.output)
        assert job.finish() == [0] * world
        before, whole = job.output, whole or job.output
    assert before is not None
    assert whole is not None
    losses = [[line["loss"] for line in metrics(folder)] for folder in (before, whole)]
    assert len(losses[0]) == STEPS
    assert losses[0][:10] == pytest.approx(losses[1][:10], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
