"""Batch normalisation in groups: one device normalises like the several GPUs of the paper.

Official MoCo leaves BN unsynchronised, so its statistics are those of one GPU's 32 images. That
number decides the result, so here the recipe names it (``MODEL.BN_GROUP_SIZE``) and the machine
only decides how many groups a process holds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from runtime.distributed import mean_over_ranks


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` that normalises each ``group_size`` consecutive samples by themselves.

    Input N x C x H x W with N a multiple of ``group_size`` in training (ValueError otherwise); in
    evaluation any N. The running statistics move by the mean over the groups, once a step.
    """

    def __init__(self, num_features: int, group_size: int, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)  # type: ignore[arg-type]
        self.group_size = group_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x``; same shape and dtype come out."""
        if not self.training or len(x) == self.group_size:
            return super().forward(x)
        if len(x) % self.group_size:
            raise ValueError(
                f"a batch of {len(x)} does not divide into BN groups of {self.group_size}"
            )
        assert self.momentum is not None  # no caller asks for a cumulative average
        groups = x.split(self.group_size)
        running = [(self.running_mean.clone(), self.running_var.clone()) for _ in groups]  # type: ignore[union-attr]
        out = [
            F.batch_norm(group, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
            for group, (mean, var) in zip(groups, running, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(torch.stack([mean for mean, _ in running]).mean(0))  # type: ignore[union-attr]
            self.running_var.copy_(torch.stack([var for _, var in running]).mean(0))  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return torch.cat(out)


def average_running_statistics_(model: nn.Module) -> None:
    """Average the running BN statistics over all ranks, in place.

    Each rank tracks the mean of its own groups. The moving average is linear, so averaging only
    when the statistics are read (before a checkpoint) equals averaging after every step.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(mean_over_ranks(module.running_mean))  # type: ignore[union-attr, arg-type]
            module.running_var.copy_(mean_over_ranks(module.running_var))  # type: ignore[union-attr, arg-type]
