"""What a comparison reads from a finished run folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from runtime.errors import InputError

Results = dict[str, Any]
FORMAT = 1
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "arm": str,
    "seed": int,
    "engine": str,
    "engine_reason": str,
    "recipe": str,
    "recipe_hash": str,
    "weights": (dict, type(None)),
    "deviations": list,
    "schedule": dict,
    "dataset": dict,
    "metric": str,
    "metrics": dict,
    "wall_time_s": (int, float),
    "hardware": dict,
    "versions": dict,
}


def run_folder(output: Path, arm: str, seed: int) -> Path:
    """Where the run of one arm and seed lies."""
    return output / arm / f"seed{seed}"


def read_results(path: Path) -> Results:
    """Read and check one ``results.json``; :class:`InputError` if it cannot be trusted."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not readable JSON ({error}): remove the folder to run it again"
        ) from error
    return check_results(content, str(path))


def check_results(results: Any, where: str) -> Results:
    """Return ``results`` if every entry that a comparison needs is there and of its type."""
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise InputError(f"{where} is not a results.json of format {FORMAT}: run this arm again")
    for key, kind in _REQUIRED.items():
        if key not in results or not isinstance(results[key], kind):
            raise InputError(
                f"{where}: entry {key!r} is missing or of a wrong type: "
                "run this arm again with this version"
            )
    return results


def weights_sha256(results: Results) -> str | None:
    """SHA-256 of the weights file that the run started from; ``None`` for random values."""
    return None if results["weights"] is None else results["weights"].get("sha256")


def read_curves(folder: Path, keys: list[str], notes: list[str]) -> dict[str, dict[int, float]]:
    """Read ``{key: {iteration: value}}`` from ``metrics.json``.

    A continued run writes some iterations twice: the later line counts. A line that a kill has
    torn, or a missing file, is reported in ``notes``. Values that are not finite are left out of
    the curve (a gap), as they have no place on it.
    """
    path = folder / "metrics.json"
    curves: dict[str, dict[int, float]] = {key: {} for key in keys}
    if not path.is_file():
        notes.append(f"{path} is missing: this run has no learning curve.")
        return curves
    torn = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            iteration = int(record["iteration"])
        except (ValueError, KeyError, TypeError):
            torn += bool(line.strip())
            continue
        for key in keys:
            value = record.get(key)
            if isinstance(value, (int, float)) and math.isfinite(value):
                curves[key][iteration] = float(value)
    if torn:
        notes.append(f"{path}: {torn} unreadable line(s) left out of the learning curves.")
    return curves


def read_detections(folder: Path) -> dict[str, list[dict[str, Any]]] | None:
    """Detections by image id (as text), best first; ``None`` where the run saved none."""
    path = folder / "inference" / "coco_instances_results.json"
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        entries.sort(key=lambda entry: -entry["score"])
        by_image: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            by_image.setdefault(str(entry["image_id"]), []).append(entry)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a list of detections ({error!r})") from error
    return by_image
