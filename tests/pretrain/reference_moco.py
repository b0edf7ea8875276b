"""MoCo written once more, slowly and in one place, to compare the project's own with.

One process, explicit loops over BN groups, no classes of the project. Running statistics of BN are
not tracked: training does not depend on them.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn


class GroupNormalised(nn.Module):
    """BatchNorm in training mode by hand: statistics of each ``group`` consecutive samples."""

    def __init__(self, norm: nn.BatchNorm2d, group: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.group = norm.weight, norm.bias, norm.eps, group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = []
        for start in range(0, len(x), self.group):
            part = x[start : start + self.group]
            mean = part.mean(dim=(0, 2, 3), keepdim=True)
            var = ((part - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
            scaled = (part - mean) / torch.sqrt(var + self.eps)
            out.append(scaled * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1))
        return torch.cat(out)


def with_groups(encoder: nn.Module, group: int) -> nn.Module:
    """A copy of ``encoder`` with every BatchNorm2d done by hand."""
    encoder = copy.deepcopy(encoder)
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, GroupNormalised(child, group))
    return encoder


def train_reference(
    encoder_q: nn.Module,
    queue: torch.Tensor,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    permutations: list[torch.Tensor],
    group: int,
    momentum: float,
    temperature: float,
    lr: float,
) -> tuple[list[float], nn.Module, nn.Module, torch.Tensor, int]:
    """Algorithm 1 of the paper over global ``batches``; SGD with momentum 0.9, decay 1e-4."""
    query = with_groups(encoder_q, group)
    key = copy.deepcopy(query)
    velocity = [torch.zeros_like(p) for p in query.parameters()]
    queue, pointer, losses = queue.clone(), 0, []
    for (im_q, im_k), order in zip(batches, permutations, strict=True):
        with torch.no_grad():
            for pk, pq in zip(key.parameters(), query.parameters(), strict=True):
                pk.copy_(momentum * pk + (1 - momentum) * pq)
            shuffled = F.normalize(key(im_k[order]), dim=1)
            keys = torch.empty_like(shuffled)
            for place, index in enumerate(order.tolist()):
                keys[index] = shuffled[place]
        q = F.normalize(query(im_q), dim=1)
        total = 0.0
        for i in range(len(q)):  # InfoNCE of each query by its definition
            positive = torch.exp(q[i] @ keys[i] / temperature)
            negatives = torch.exp(q[i] @ queue / temperature).sum()
            total = total - torch.log(positive / (positive + negatives))
        loss = total / len(q)
        gradients = torch.autograd.grad(loss, list(query.parameters()))
        with torch.no_grad():
            for p, v, g in zip(query.parameters(), velocity, gradients, strict=True):
                v.copy_(0.9 * v + g + 1e-4 * p)
                p -= lr * v
        for row in keys:
            queue[:, pointer] = row
            pointer = (pointer + 1) % queue.shape[1]
        losses.append(loss.item())
    return losses, query, key, queue, pointer
