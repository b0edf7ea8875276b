"""What an engine is: the model and the loop. Everything else is shared.

Both engines are given the same records, loaders, draws, initial weights and evaluation, so that
nothing that decides a comparison exists twice.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from fvcore.common.config import CfgNode
from torch import nn

from runtime.distributed import rank, world_size
from runtime.randomness import generator

Batch = list[dict[str, Any]]  # mapped samples
Detections = list[dict[str, torch.Tensor]]  # one an image
Metrics = dict[str, dict[str, float]]  # {"bbox": {"AP": ...}}
Predictor = Callable[[Batch], Detections]

LOG_PERIOD = 20  # iterations; also the window of the medians that are reported, as in Detectron2


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
        evaluation_due: whether the run was ended before the evaluation that iteration ``start - 1``
            asks for.
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
    evaluation_due: bool = False
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

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """One pass of a model in training mode: its losses by name, scalars with a gradient."""

    def predictor(self, model: nn.Module) -> Predictor:
        """Batches of samples → detections, in evaluation mode, without gradient."""

    def train(self, training: Training) -> None:
        """Train and leave ``model_final.pth`` in the run folder; evaluate at its end."""


def asks_for_evaluation(cfg: CfgNode, done: int) -> bool:
    """Whether the model is evaluated after ``done`` iterations: each EVAL_PERIOD and at the end."""
    period = cfg.TEST.EVAL_PERIOD
    return done == cfg.SOLVER.MAX_ITER or (period > 0 and done % period == 0)


def flatten(metrics: Metrics) -> dict[str, float]:
    """``{"bbox/AP": ...}``, as in Detectron2's ``metrics.json``."""
    return {f"{task}/{name}": v for task, values in metrics.items() for name, v in values.items()}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients for a while; the mode is restored."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


class Draws:
    """The detector's own draws (which anchors and regions are sampled), a function of the image.

    Detectors draw from torch's global generator. Here it is seeded anew for each image, by the
    run's seed, the iteration and the image's position in the global batch. So a resumed run draws
    what the unbroken one would have drawn, both engines draw the same, and the number of
    processes changes nothing.
    """

    def __init__(
        self, seed: int, *, anchors: tuple[nn.Module, str], regions: tuple[nn.Module, str]
    ) -> None:
        """``anchors`` and ``regions``: module and name of the method that samples one image's."""
        self._seed = seed
        self._iteration = 0
        self._seen: Counter[str] = Counter()
        self._seed_each_call(*anchors, "anchors")
        self._seed_each_call(*regions, "regions")

    def begin(self, iteration: int) -> None:
        """Start an iteration: its first images come next, and draws that no image has."""
        self._iteration = iteration
        self._seen.clear()
        self._seed_generator("training iteration", rank())

    def _seed_each_call(self, module: nn.Module, method: str, purpose: str) -> None:
        sample = getattr(module, method)

        def seeded(*args: Any) -> Any:
            # Process r of W holds the images r, r + W, ... of the batch (transfer.data.order);
            # PreciseBN's batches come after it and count on.
            position = self._seen[purpose] * world_size() + rank()
            self._seen[purpose] += 1
            self._seed_generator(purpose, position)
            return sample(*args)

        setattr(module, method, seeded)

    def _seed_generator(self, purpose: str, position: int) -> None:
        numbers = generator(self._seed, purpose, self._iteration, position)
        torch.manual_seed(int(numbers.integers(2**63)))
