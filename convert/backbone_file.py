"""``backbone.pkl``: the file that Detectron2 reads, plus the conventions of its weights.

``{"model": {name: array}, "__author__": ..., "matching_heuristics": True, "conventions": ...,
"verification": ..., "incomplete": ..., "seen_images": ...}``; the last two where there are any.
Names are those of Detectron2's ResNet (``stem.conv1.weight``, ``res2.0.conv1.norm.bias``, ...);
Detectron2 matches them by their longest suffix, so that ``res5`` finds the box head of a C4 model
and the backbone of an FPN. It ignores entries that it does not know.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert import safe_pickle
from convert.conventions import Conventions
from convert.reading import read_checkpoint
from convert.seen_images import SeenImages
from runtime.errors import InputError
from runtime.files import atomic_write

AUTHOR = "MoCo transfer toolkit"
DETECTOR = ("backbone.", "proposal_generator.", "roi_heads.")  # parts of a detector


@dataclass(frozen=True)
class Backbone:
    """Weights with all that belongs to them.

    Attributes:
        arrays: by Detectron2's names; float32, ``num_batches_tracked`` int64.
        conventions: of these weights.
        seen_images: that they were pretrained on, where the checkpoint says so.
        incomplete: name → "missing" or "untrained", what ``--allow-missing`` let pass.
        verification: differences from the checkpoint's features (``Verification.to_dict``).
    """

    arrays: dict[str, np.ndarray]
    conventions: Conventions
    seen_images: SeenImages | None = None
    incomplete: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] | None = None

    def doubts(self) -> Iterator[str]:
        """Why a comparison with these weights may not be what it seems: each a line for a log."""
        names = [f"{name} {why}" for name, why in self.incomplete.items()]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        if names:
            yield f"converted with --allow-missing, {len(names)} incomplete: {shown}"
        if detector := self.conventions.detector:
            yield f"the backbone of a trained detector (its file held {detector})"


def write_backbone(
    path: str | Path, backbone: Backbone, check: Callable[[Backbone], object] | None = None
) -> None:
    """Write ``backbone`` to ``path`` atomically; the name must end in ``.pkl``.

    The temporary file is read back and given to ``check``, which may raise, before it gets its
    name.
    """
    check_name(path)
    content = {
        "model": backbone.arrays,
        "__author__": AUTHOR,
        "matching_heuristics": True,
        "conventions": backbone.conventions.to_dict(),
    }
    if backbone.verification is not None:
        content["verification"] = dict(backbone.verification)
    if backbone.incomplete:
        content["incomplete"] = dict(backbone.incomplete)
    if backbone.seen_images is not None:
        content["seen_images"] = backbone.seen_images.to_dict()
    with atomic_write(path, "w+b") as stream:
        pickle.dump(content, stream, protocol=4)
        if check is not None:
            stream.seek(0)
            check(parse(safe_pickle.load(stream, str(path)), path))


def check_name(path: str | Path) -> None:
    """Detectron2 reads other names as torch files: refuse them."""
    if Path(path).suffix != ".pkl":
        raise InputError(f"{str(path)!r} must end in .pkl: Detectron2 goes by the name")


def read_backbone(path: str | Path) -> Backbone:
    """Read a ``backbone.pkl`` safely.

    Raises InputError where the file is unsafe, empty, or carries no conventions.
    """
    return parse(read_checkpoint(path), path)


def parse(content: Any, path: str | Path) -> Backbone:
    """The backbone in the content of the file ``path``; InputError as in :func:`read_backbone`."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path} is no backbone file: make one with tools/convert_to_d2.py")
    trained = [name for name in content["model"] if str(name).startswith(DETECTOR)]
    if trained:
        raise InputError(
            f"{path} is a trained detector (it has {trained[0]}): a comparison starts from a "
            "backbone; to evaluate the detector use --eval-only"
        )
    if "conventions" not in content:
        raise InputError(
            f"{path} does not say its conventions (channel order, mean, stride): convert the "
            "original checkpoint with tools/convert_to_d2.py"
        )
    arrays = {name: np.asarray(array) for name, array in content["model"].items()}
    if not arrays:
        raise InputError(f"{path} holds no weights: convert the original checkpoint again")
    conventions = Conventions.from_dict(content["conventions"], str(path))
    seen = SeenImages.from_dict(content.get("seen_images"), str(path))
    incomplete = content.get("incomplete", {})
    verification = content.get("verification")
    if not isinstance(incomplete, dict) or not isinstance(verification, dict | None):
        raise InputError(f"{path} has damaged entries: convert the original checkpoint again")
    return Backbone(arrays, conventions, seen, incomplete, verification)
