"""SyncBN over several CPU processes, which torch's own layer and its DDP refuse."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from runtime.distributed import all_gather, sum_over_ranks, world_size

DIMS = (0, 2, 3)  # what a channel's statistics are taken over


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the inputs of all processes, each position weighing the same.

    The exact moments of the global batch, however unequal the processes' shares are; a process
    may have no input at all (a C4 head without regions). One process is plain batch norm, as for
    ``nn.SyncBatchNorm``, whose parameters, buffers and names it has.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same shape and dtype."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        self.num_batches_tracked += 1
        y, mean, var, count = _Normalise.apply(
            _at_least_float32(x), self.weight, self.bias, self.eps
        )
        if count > 0:
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_mean += momentum * (mean - self.running_mean)
            self.running_var += momentum * (unbiased - self.running_var)
        return y.to(x.dtype)


def synchronise_on_cpu(model: nn.Module) -> nn.Module:
    """``model`` with torch's SyncBatchNorm layers on CPUs turned into ours, in place.

    The same parameters, names and place. On GPUs torch's stay.
    """
    for layer in model.modules():
        if type(layer) is nn.SyncBatchNorm and layer.weight.is_cpu:
            layer.__class__ = SyncBatchNorm  # type: ignore[assignment]
    return model


class _Normalise(torch.autograd.Function):
    """Normalisation by the moments of all processes, and its gradient (Ioffe & Szegedy 2015)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised N x C x H x W, mean and biased variance (C), number of positions."""
        mean, var, count = _global_moments(x)
        inverse = (var + eps).rsqrt().to(x.dtype)
        mean, var, count = mean.to(x.dtype), var.to(x.dtype), count.to(x.dtype)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        y = F.batch_norm(x, mean, var, weight, bias, eps=eps) if len(x) else torch.empty_like(x)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The sums run over all processes; the parameters' gradients are this process's part."""
        x, weight, mean, inverse, count = ctx.saved_tensors
        normal = (x - _per_channel(mean)) * _per_channel(inverse)
        d_bias = dy.sum(DIMS)
        d_weight = (dy * normal).sum(DIMS)
        sums = sum_over_ranks(torch.stack([d_bias, d_weight])) / count.clamp(min=1)
        dx = dy - _per_channel(sums[0]) - normal * _per_channel(sums[1])
        return dx * _per_channel(weight * inverse), d_weight, d_bias, None


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance (float64 C) and number of positions over all processes.

    Each process gives its own moments, which are joined as in Chan, Golub & LeVeque (1979): one
    exchange, and no digits cancel as in the mean square less the squared mean.
    """
    channels = x.shape[1]
    count = torch.full((1,), x.numel() // channels, dtype=torch.float64)
    mean = x.sum(DIMS, dtype=torch.float64) / count.clamp(min=1)
    spread = (x - _per_channel(mean.to(x.dtype))).square().sum(DIMS, dtype=torch.float64)
    moments = all_gather(torch.cat([count, mean, spread])[None])
    counts, means, spreads = moments.split([1, channels, channels], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total.clamp(min=1)
    spread = (spreads + counts * (means - mean).square()).sum(0)
    return mean, spread / total.clamp(min=1), total


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(vector: Tensor) -> Tensor:
    return vector.reshape(1, -1, 1, 1)
