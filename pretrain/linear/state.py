"""What an evaluation has found and its checkpoint: official layout, and what resuming needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn
from torch.optim import Optimizer

from pretrain.linear.config import NOT_PART_OF_THE_RECIPE
from runtime import checkpoints
from runtime.config import dump, leaves, refuse_another_recipe
from runtime.errors import InputError
from runtime.versions import versions

KEPT = 2  # checkpoints
PREFIX = "module."  # official checkpoints are saved from inside DistributedDataParallel


@dataclass
class Found:
    """Accuracies in percent: of the last epoch, the best epoch (what the official code keeps), kNN.

    ``top5`` is None with five classes or fewer, ``knn`` where it was not asked for.
    """

    top1: float = 0.0
    top5: float | None = None
    best_top1: float = 0.0
    best_epoch: int = 0
    knn: float | None = None

    def add(self, epoch: int, top1: float, top5: float | None) -> None:
        """The test after ``epoch`` epochs."""
        self.top1, self.top5 = top1, top5
        if top1 > self.best_top1 or not self.best_epoch:
            self.best_top1, self.best_epoch = top1, epoch

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def save(
    folder: Path,
    cfg: CfgNode,
    model: nn.Module,
    optimizer: Optimizer,
    where: dict[str, Any],
    found: Found,
) -> None:
    """Write a checkpoint atomically, with its SHA-256; keep the last two.

    ``where``: ``epoch`` and ``step`` that are done, ``arch``, and ``identity``, the hashes of
    weights and images.
    """
    content = {
        **where,
        "state_dict": {PREFIX + name: value for name, value in model.state_dict().items()},
        "best_acc1": found.best_top1,
        "optimizer": optimizer.state_dict(),
        "method": cfg.MODE,
        "config": dump(cfg),
        "found": found.to_dict(),
        "versions": versions(),
    }
    path = folder / f"checkpoint_{where['step']:07d}.pth"
    checkpoints.write(path, content, lambda names: names[:-KEPT])


def restore(
    path: Path,
    content: Any,
    cfg: CfgNode,
    model: nn.Module,
    optimizer: Optimizer,
    identity: dict[str, str],
) -> tuple[int, Found]:
    """Take over the state of this very run; return its steps and what it has found.

    Raises InputError where it is none, or belongs to another recipe, other weights or other images.
    """
    try:
        # runs from before the key made their views so
        saved = {"DATA.PIPELINE": "reference"} | dict(leaves(CfgNode.load_cfg(content["config"])))
        step, before = int(content["step"]), dict(content["identity"])
        found = Found(**content["found"])
        tensors = {n.removeprefix(PREFIX): v for n, v in content["state_dict"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is no checkpoint to resume from: {error!r}") from error
    refuse_another_recipe(path.parent.name, saved, cfg, NOT_PART_OF_THE_RECIPE)
    for what, sha in identity.items():
        if before.get(what) != sha:
            name = what if what == "weights" else f"{what} images"
            raise InputError(f"the {name} are not those that {str(path)!r} was begun with")
    model.load_state_dict(tensors)
    optimizer.load_state_dict(content["optimizer"])
    return step, found
