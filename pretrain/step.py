"""One optimiser step: forward and backward passes over the batch, whole or in parts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pretrain.bn_groups import calls_as_one
from pretrain.loading.batches import Batch
from pretrain.methods import Method


class StepResult(NamedTuple):
    """Loss and top-1 accuracy in percent of this rank's batch: scalars without gradient."""

    loss: torch.Tensor
    accuracy: torch.Tensor


class Step:
    """Takes the optimiser steps of a run, each from one global batch.

    With ``parts`` N, this rank's share of the batch passes in N consecutive parts of equal size:
    less memory, the same result. The method's :meth:`Method.begin_step` and
    :meth:`Method.end_step` surround all of them, BN groups lie within a part, BN's running
    statistics move once, and losses and gradients are means over the parts. The host never waits
    for the device.

    ``model`` is ``method.model``, maybe wrapped by DDP.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
        parts: int = 1,
    ) -> None:
        self.method, self.model, self.optimizer = method, model, optimizer
        self.device, self.parts = device, parts

    def __call__(self, batch: Batch) -> StepResult:
        """Train on this rank's share ``batch`` of a global batch."""
        self.optimizer.zero_grad(set_to_none=True)
        with calls_as_one(self.method.model) if self.parts > 1 else nullcontext():
            result = self._backward(batch.to(self.device).finished())
        self.optimizer.step()
        self.method.end_step()
        return result

    def _backward(self, batch: Batch) -> StepResult:
        """Leave the gradients in the parameters."""
        inputs = self.method.begin_step(batch, self.parts)
        losses: list[torch.Tensor] = []
        accuracies: list[torch.Tensor] = []
        for part in zip(*(x.chunk(self.parts) for x in inputs), strict=True):
            last = len(losses) == self.parts - 1
            with self._gradients_exchanged(last):
                logits, targets = self.method.logits(self.model, *part)
                loss = F.cross_entropy(logits, targets)
                (loss / self.parts).backward()
            losses.append(loss.detach())
            accuracies.append(top1(logits.detach(), targets))
        return StepResult(torch.stack(losses).mean(), torch.stack(accuracies).mean())

    def _gradients_exchanged(self, exchanged: bool) -> AbstractContextManager:
        """DDP averages the gradients over the ranks in the last part only."""
        if exchanged or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()


def top1(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Percent of the rows of ``logits``, N x classes, whose target (int64, N) has the highest.

    A tie counts for as much as a random pick among the equal ones would win: the positive stands
    first, and by argmax a collapsed encoder, to which all are equal, would be right always.
    """
    own = logits.gather(1, targets[:, None])
    return ((logits <= own).all(1) / (logits == own).sum(1)).mean() * 100
