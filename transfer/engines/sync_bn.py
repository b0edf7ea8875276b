"""SyncBN over several CPU processes, which torch's own layer and its DDP refuse."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from runtime.distributed import sum_over_ranks, world_size

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
        count = sum_over_ranks(torch.tensor(float(x.numel() // x.shape[1]), dtype=torch.float64))
        positions = count.clamp(min=1)
        # Two sums rather than the mean square less the squared mean, which cancels digits.
        mean = sum_over_ranks(x.sum(DIMS, dtype=torch.float64)) / positions
        centred = x - _per_channel(mean.to(x.dtype))
        var = sum_over_ranks(centred.square().sum(DIMS, dtype=torch.float64)) / positions
        inverse = (var + eps).rsqrt().to(x.dtype)
        mean, var, positions = (value.to(x.dtype) for value in (mean, var, positions))
        ctx.save_for_backward(x, weight, mean, inverse, positions)
        y = F.batch_norm(x, mean, var, weight, bias, eps=eps) if len(x) else torch.empty_like(x)
        outputs = y, mean, var, count.to(x.dtype)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The sums run over all processes; the parameters' gradients are this process's part."""
        x, weight, mean, inverse, positions = ctx.saved_tensors
        normal = (x - _per_channel(mean)) * _per_channel(inverse)
        d_bias = dy.sum(DIMS)
        d_weight = (dy * normal).sum(DIMS)
        sums = sum_over_ranks(torch.stack([d_bias, d_weight])) / positions
        dx = dy - _per_channel(sums[0]) - normal * _per_channel(sums[1])
        return dx * _per_channel(weight * inverse), d_weight, d_bias, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(vector: Tensor) -> Tensor:
    return vector.reshape(1, -1, 1, 1)
