"""What an engine is: the model and the loop. Everything else is shared.

Both engines are given the same records, loaders, draws, initial weights and evaluation, so that
nothing that decides a comparison exists twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from fvcore.common.config import CfgNode
from torch import nn

from runtime.randomness import generator

Batch = list[dict[str, Any]]  # mapped samples
Detections = list[dict[str, torch.Tensor]]  # one an image
Metrics = dict[str, dict[str, float]]  # {"bbox": {"AP": ...}}
Predictor = Callable[[Batch], Detections]


@dataclass(frozen=True)
class Training:
    """What a training is given by the runner.

    Attributes:
        cfg: the final recipe.
        output: the run folder.
        start: iterations done before; 0 for a new run.
        checkpoint: content of the checkpoint to continue from, or None.
        batches: endless batches of this process, from a given iteration on.
        initialise: loads the weights into a new model and reports it, with the rates that the
            optimiser has for each part.
        evaluate: evaluates a predictor on DATASETS.TEST.
        amp_dtype: precision of the passes under SOLVER.AMP.ENABLED; None without.
        accumulate: parts that each process's batch is computed in.
    """

    cfg: CfgNode
    output: Path
    start: int
    checkpoint: dict[str, Any] | None
    batches: Callable[[int], Iterable[Batch]]
    initialise: Callable[[nn.Module, torch.optim.Optimizer], None]
    evaluate: Callable[[Predictor], Metrics]
    amp_dtype: torch.dtype | None = None
    accumulate: int = 1

    def precise_bn_batches(self) -> Iterable[Batch]:
        """The second stream of training batches, which PreciseBN reads on from time to time.

        Begins where the unbroken run would be: each evaluation before ``start`` has read NUM_ITER.
        """
        test = self.cfg.TEST
        evaluations = self.start // test.EVAL_PERIOD if test.EVAL_PERIOD > 0 else 0
        return self.batches(evaluations * test.PRECISE_BN.NUM_ITER)


class Engine(Protocol):
    """Detectron2, or our own model code that equals it."""

    name: str

    def base_cfg(self) -> CfgNode:
        """Every key that this engine reads, with Detectron2's default."""

    def check(self, cfg: CfgNode) -> None:
        """Refuse a recipe that this engine cannot run, naming the key."""

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that this engine adds."""

    def build_model(self, cfg: CfgNode) -> nn.Module:
        """The detector with Detectron2's parameter names, on MODEL.DEVICE, weights random."""

    def predictor(self, model: nn.Module) -> Predictor:
        """Batches of samples → detections, in evaluation mode, without gradient."""

    def train(self, training: Training) -> None:
        """Train and leave ``model_final.pth`` in the run folder; evaluate at its end."""


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients for a while; the mode is restored."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seed torch's global generator for one training iteration, as a pure function.

    The detector draws from it (which anchors and regions are sampled). Seeded like this, a resumed
    run draws what the unbroken one would have drawn, and both engines draw the same.
    """
    torch.manual_seed(int(generator(seed, "training iteration", iteration, rank).integers(2**63)))
