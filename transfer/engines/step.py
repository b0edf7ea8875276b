"""One training step: the passes in parts and in mixed precision, and the stop before NaN."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.distributed import bare, mean_over_ranks

SMALLEST_SCALE = 2.0**-16  # after 32 overflows in a row, from GradScaler's 65536


class Step:
    """Forward and backward passes of a batch, and the update.

    For a whole batch in float32 this is Detectron2's ``SimpleTrainer.run_step``; with ``amp_dtype``
    its ``AMPTrainer.run_step``, on a CPU as well. float16 needs scaled losses (``GradScaler``),
    bfloat16 does not.

    With ``parts`` N, each process's batch is cut into N consecutive parts of equal size whose
    passes follow each other: less memory, more time. The step is taken with the mean of the parts'
    gradients, and the mean of their losses is reported. That equals the whole batch where the loss
    of a batch is the mean over its images. It is not equal bit for bit, and for a detector only
    nearly so: batch norms see one part at a time (and update their statistics N times), and the
    box, mask and keypoint losses are divided by the regions sampled in a part, so that images with
    few regions weigh more. The random draws are those of the whole batch, image by image.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        amp_dtype: torch.dtype | None = None,
        parts: int = 1,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.amp_dtype, self.parts = amp_dtype, parts
        self.device = next(model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(self.device, enabled=amp_dtype is torch.float16)

    def backward(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        """Leave the gradients in the parameters; return the losses (float scalars, detached)."""
        self.optimizer.zero_grad()
        size = len(batch) // self.parts
        every = []
        for part in range(self.parts):
            with self._synchronised(last=part == self.parts - 1):
                with torch.autocast(self.device, self.amp_dtype, self.amp_dtype is not None):
                    losses = self.model(batch[part * size : (part + 1) * size])
                    total = sum(losses.values())
                self.scaler.scale(total / self.parts).backward()
            every.append({name: loss.detach() for name, loss in losses.items()})
        return {name: sum(part[name] for part in every) / self.parts for name in every[0]}

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once a step."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def check(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """The losses as means over the processes.

        Raises FloatingPointError, in all processes together, where a loss or a gradient is not
        finite. Under float16 gradients may overflow: the step is left out and the scale halved.
        """
        means = mean_over_ranks(torch.stack([x.detach().double() for x in losses.values()]))
        values = dict(zip(losses, means.tolist(), strict=True))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if not all(map(math.isfinite, values.values())):
            raise FloatingPointError(f"a loss is not finite ({shown})")
        if self.scaler.is_enabled():
            if self.scaler.get_scale() < SMALLEST_SCALE:
                raise FloatingPointError(f"gradients overflow float16 at every scale ({shown})")
        elif name := self._overflowing():
            raise FloatingPointError(f"the gradient of {name} is not finite ({shown})")
        return values

    def _overflowing(self) -> str | None:
        """The first parameter whose gradient is not finite; the same in all processes."""
        parameters = bare(self.model).named_parameters()
        named = {name: p.grad for name, p in parameters if p.grad is not None}
        if nn.utils.get_total_norm(named.values(), math.inf).isfinite():
            return None
        return next(n for n, gradient in named.items() if not gradient.isfinite().all())

    def update(self) -> None:
        """Change the parameters."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """In the layout of Detectron2's trainers."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.amp_dtype is not None:
            state["grad_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of the same recipe."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.amp_dtype is not None:
            self.scaler.load_state_dict(state["grad_scaler"])


@contextlib.contextmanager
def naming_iteration(iteration: int) -> Iterator[None]:
    """Say where a FloatingPointError has stopped the training, and what helps."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(
            f"training has diverged at iteration {iteration}: {str(error).rstrip('.')}; lower "
            "SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or enable SOLVER.CLIP_GRADIENTS"
        ) from error
