"""The grid of a comparison, arms x seeds: which runs are there, and which are still to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.files import sha256, write_text
from transfer.compare.arms import Arm
from transfer.compare.runs import Results, read_results, run_folder, weights_sha256

_IDENTITY = {
    "arm": "arm",
    "seed": "seed",
    "engine": "engine",
    "recipe_hash": "recipe hash",
    "weights_sha256": "weights sha256",
}
Identity = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of the grid. ``identity`` is what makes it this run and no other."""

    arm: Arm
    seed: int
    folder: Path
    identity: Identity


def make_plan(
    output: Path,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    recipe: str,
    recipe_hash: str,
    engine: str,
) -> tuple[Cell, ...]:
    """Lay out the grid in the order of running: seed 1 of every arm, then seed 2, and so on.

    Seeds are interleaved over arms so that an interrupted comparison is balanced. Weights files
    are hashed here, once.
    """
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError(f"seeds {list(seeds)}: give at least one, none twice and none below 0")
    hashes = {arm.name: sha256(arm.weights) if arm.weights else None for arm in arms}
    return tuple(
        Cell(
            arm,
            seed,
            run_folder(output, arm.name, seed),
            {
                "arm": arm.name,
                "seed": seed,
                "engine": engine,
                "recipe": recipe,
                "recipe_hash": recipe_hash,
                "weights_path": str(arm.weights) if arm.weights else None,
                "weights_sha256": hashes[arm.name],
            },
        )
        for seed in seeds
        for arm in arms
    )


def finished(cell: Cell) -> Results | None:
    """Results of a run that is done; ``None`` if it is not.

    Raises :class:`InputError` if the folder belongs to another run, finished or not: continuing
    it would silently ignore this cell's weights or recipe.
    """
    started = _started_file(cell)
    if (cell.folder / "results.json").exists():
        results = read_results(cell.folder / "results.json")
        _demand_same(cell, _identity_of(results))
        return results
    if started.exists():
        _demand_same(cell, _read_started(started))
    elif cell.folder.exists() and any(cell.folder.iterdir()):
        raise InputError(
            f"{cell.folder} holds files of a run that this comparison did not start: "
            "give another output folder, or remove this one"
        )
    return None


def run_missing(plan: Sequence[Cell], run_one: Callable[[Arm, int, Path], object]) -> list[Results]:
    """Run what is not yet done and return the results of the whole grid, in plan order.

    ``run_one(arm, seed, folder)`` makes one run, creates ``folder``, and leaves ``results.json``
    in it. It is given the same folder again after an interruption, and may continue there. The
    whole grid is checked before the first run starts.
    """
    done = [finished(cell) for cell in plan]
    return [
        _run(cell, run_one) if results is None else results
        for cell, results in zip(plan, done, strict=True)
    ]


def _run(cell: Cell, run_one: Callable[[Arm, int, Path], object]) -> Results:
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    write_text(_started_file(cell), json.dumps(cell.identity, indent=1) + "\n")
    run_one(cell.arm, cell.seed, cell.folder)
    results = finished(cell)
    if results is None:
        raise RuntimeError(f"the run in {cell.folder} ended without writing results.json")
    return results


def _started_file(cell: Cell) -> Path:
    """Beside the run folder, not in it: what lies in a run folder is the run's business."""
    return cell.folder.with_name(cell.folder.name + ".started.json")


def _read_started(path: Path) -> Identity:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: remove it and the folder") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not describe a run: remove it and the folder")
    return content


def _identity_of(results: Results) -> Identity:
    return {
        **{key: results[key] for key in ("arm", "seed", "engine", "recipe", "recipe_hash")},
        "weights_path": (results["weights"] or {}).get("path"),
        "weights_sha256": weights_sha256(results),
    }


def _demand_same(cell: Cell, there: Identity) -> None:
    differing = [
        f"{label} {_named(there, key)} there and {_named(cell.identity, key)} here"
        for key, label in _IDENTITY.items()
        if there.get(key) != cell.identity[key]
    ]
    if differing:
        raise InputError(
            f"{cell.folder} belongs to another run ({'; '.join(differing)}): "
            "give another output folder, or remove this one to run it again"
        )


def _named(identity: Identity, key: str) -> str:
    value = identity.get(key)
    if key == "recipe_hash":
        return f"{str(value)[:12]} ({identity.get('recipe')})"
    if key == "weights_sha256":
        return f"{value[:12]} ({identity.get('weights_path')})" if value else "none (random)"
    return repr(value)
