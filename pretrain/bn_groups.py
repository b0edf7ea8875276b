"""Batch normalisation in groups: one device normalises like the several GPUs of the paper.

Official MoCo leaves BN unsynchronised, so its statistics are those of one GPU's 32 images. That
number decides the result, so here the recipe names it (``MODEL.BN_GROUP_SIZE``) and the machine
only decides how many groups a process holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from runtime.distributed import broadcast_, mean_over_ranks

RUNNING_STATS = ("mean", "first")


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` that normalises each ``group_size`` consecutive samples by themselves.

    Input N x C x H x W with N a multiple of ``group_size`` in training (ValueError otherwise); in
    evaluation any N. The running statistics move once a call, or once for all calls within
    :func:`calls_as_one`: by the mean over the groups (``running_stats`` "mean") or by the first
    group ("first", as the official code keeps those of rank 0's GPU).
    """

    def __init__(
        self, num_features: int, group_size: int, running_stats: str = "mean", **kwargs: object
    ) -> None:
        super().__init__(num_features, **kwargs)  # type: ignore[arg-type]
        self.group_size = group_size
        self.running_stats = running_stats
        self.collecting = False
        self._moved: list[tuple[torch.Tensor, torch.Tensor]] = []  # running statistics, by group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x``; same shape and dtype come out."""
        if not self.training or (len(x) == self.group_size and not self.collecting):
            return super().forward(x)
        if len(x) % self.group_size:
            raise ValueError(
                f"a batch of {len(x)} does not divide into BN groups of {self.group_size}"
            )
        out = [self._normalise(group) for group in x.split(self.group_size)]
        if not self.collecting:
            self.settle()
        return out[0] if len(out) == 1 else torch.cat(out)

    def _normalise(self, group: torch.Tensor) -> torch.Tensor:
        """One group; what it makes of the running statistics is put aside."""
        assert self.momentum is not None  # no caller asks for a cumulative average
        mean = var = None
        if self.running_stats == "mean" or not self._moved:
            mean, var = self.running_mean.clone(), self.running_var.clone()  # type: ignore[union-attr]
            self._moved.append((mean, var))
        return F.batch_norm(group, mean, var, self.weight, self.bias, True, self.momentum, self.eps)

    @torch.no_grad()
    def settle(self) -> None:
        """Move the running statistics by what the groups since the last call made of them."""
        if not self._moved:
            return
        means, variances = zip(*self._moved, strict=True)
        self.running_mean.copy_(torch.stack(means).mean(0))  # type: ignore[union-attr]
        self.running_var.copy_(torch.stack(variances).mean(0))  # type: ignore[union-attr]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        self._moved.clear()


def grouped_norm(
    group_size: int | None, running_stats: str = "mean"
) -> Callable[[int], nn.BatchNorm2d]:
    """What builds an encoder's norm layers: in groups, or ordinary BN for ``group_size`` None."""
    if group_size is None:
        return nn.BatchNorm2d
    return partial(GroupedBatchNorm2d, group_size=group_size, running_stats=running_stats)


@contextmanager
def calls_as_one(model: nn.Module) -> Iterator[None]:
    """Within the block, BN sees the batches of all calls as one.

    So a step in parts moves the running statistics as the whole batch would, bit for bit.
    """
    norms = [module for module in model.modules() if isinstance(module, GroupedBatchNorm2d)]
    for norm in norms:
        norm.collecting = True
    try:
        yield
    finally:
        for norm in norms:
            norm.settle()
            norm.collecting = False


def share_running_statistics_(model: nn.Module) -> None:
    """Make the running BN statistics those of the global batch on all ranks, in place.

    Each rank tracks its own groups. The moving average is linear, so averaging over the ranks only
    when the statistics are read (before a checkpoint) equals averaging after every step. Where the
    first group counts, it is rank 0's.
    """
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        for running in (module.running_mean, module.running_var):
            assert running is not None
            if getattr(module, "running_stats", "mean") == "first":
                broadcast_(running)
            else:
                running.copy_(mean_over_ranks(running))
