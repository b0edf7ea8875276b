"""PreciseBN (Wu & Johnson 2021, section 3) with the same statistics on every process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor, nn

from runtime.distributed import sum_over_ranks, world_size
from transfer.engines.sync_bn import SyncBatchNorm


def precise_bn(model: nn.Module, batches: Iterable[Any], iterations: int) -> None:
    """Set the running statistics of all training batch norms to those of ``iterations`` batches.

    fvcore's ``update_bn_stats`` for one process. With several, its result would be each process's
    own: there the batches of all processes are one population, weighted by their positions.
    """
    if world_size() == 1:
        update_bn_stats(model, batches, iterations)
    else:
        _Population(model).measure(model, batches, iterations)


@torch.no_grad()
def share_statistics(model: nn.Module) -> None:
    """Give every process the buffers of the main one, so that what is saved is what is evaluated.

    Training reads no buffer; batch norms that are not synchronised keep one for each process.
    """
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class _Population:
    """Moments of the inputs of batch-norm layers over batches and processes."""

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[Any] = get_bn_modules(model)
        device = next(model.parameters()).device
        self.positions = torch.zeros(len(self.layers), device=device).double()  # of this batch
        self.totals = torch.zeros_like(self.positions)
        self.sums = [self.totals.new_zeros(2, layer.num_features) for layer in self.layers]

    @torch.no_grad()
    def measure(self, model: nn.Module, batches: Iterable[Any], iterations: int) -> None:
        """Run the model and leave the moments in the layers."""
        momenta = [layer.momentum for layer in self.layers]
        handles = []
        for index, layer in enumerate(self.layers):
            layer.momentum = 1.0  # the running statistics become those of the batch
            handles.append(layer.register_forward_pre_hook(self._counter(index)))
        for batch in itertools.islice(batches, iterations):
            self.positions.zero_()
            model(batch)
            self._add_batch()
        for layer, momentum, handle in zip(self.layers, momenta, handles, strict=True):
            layer.momentum = momentum
            handle.remove()
        self._set_statistics()

    def _counter(self, index: int) -> Any:
        def count(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.positions[index] = inputs[0].numel() // inputs[0].shape[1]

        return count

    def _add_batch(self) -> None:
        everywhere = sum_over_ranks(self.positions)
        for index, layer in enumerate(self.layers):
            count = float(self.positions[index])
            if count == 0:  # not used, or no region on this process
                continue
            # running_var has Bessel's correction for what the layer has normalised over
            shared = isinstance(layer, nn.SyncBatchNorm | SyncBatchNorm)
            seen = float(everywhere[index]) if shared else count
            mean, var = layer.running_mean.double(), layer.running_var.double()
            square = mean.square() + var * ((seen - 1) / seen)
            self.sums[index] += count * torch.stack([mean, square])
            self.totals[index] += count

    def _set_statistics(self) -> None:
        totals = sum_over_ranks(self.totals)
        for layer, sums, total in zip(self.layers, self.sums, totals, strict=True):
            mean, square = sum_over_ranks(sums) / total.clamp(min=1)
            if total > 0:
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(square - mean.square())
