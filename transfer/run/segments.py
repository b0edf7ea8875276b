"""A run that was continued elsewhere: by which engine and how many processes, from where on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from runtime.distributed import world_size
from runtime.errors import InputError

log = logging.getLogger("moco")

Segments = list[dict[str, Any]]  # "from_iteration", "engine", "processes", oldest first


def continued(before: Segments, start: int, engine: str) -> Segments:
    """The segments with the one that begins at iteration ``start`` now."""
    kept = [segment for segment in before if segment["from_iteration"] < start]
    now = {"from_iteration": start, "engine": engine, "processes": world_size()}
    if kept and all(kept[-1][key] == now[key] for key in ("engine", "processes")):
        return kept
    segments = [*kept, now]
    for line in changes(segments):
        log.info("deviates from an unbroken run: %s", line)
    return segments


def changes(segments: Segments) -> list[str]:
    """One line for each change of engine or processes."""
    return [
        f"{key}: {before[key]!r} -> {after[key]!r} from iteration {after['from_iteration']} on"
        for before, after in itertools.pairwise(segments)
        for key in ("engine", "processes")
        if before[key] != after[key]
    ]


def check_processes(segments: Segments, cfg: CfgNode, records: Sequence[dict[str, Any]]) -> None:
    """Refuse another number of processes where it would change the images of the batches.

    A global batch is the same for every number of processes, except with ASPECT_RATIO_GROUPING of
    wide and high images, which each process does by itself.
    """
    before = segments[-1]["processes"] if segments else world_size()
    if before == world_size() or not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        return
    if len({record["width"] > record["height"] for record in records}) > 1:
        raise InputError(
            f"the run was begun with {before} processes, now there are {world_size()}: with "
            "DATALOADER.ASPECT_RATIO_GROUPING its batches would be others; start as many"
        )


def is_evaluation(row: dict[str, Any]) -> bool:
    """Whether a line of ``metrics.json`` holds an evaluation."""
    return any(name.endswith("/AP") for name in row)
