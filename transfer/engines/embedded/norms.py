"""Normalisation layers by their Detectron2 names, and freezing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine transform are constants.

    All four vectors are buffers, so that no optimizer sees them. A frozen copy of a trained batch
    norm keeps ``num_batches_tracked`` in its state dict, as in Detectron2.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)
        self.register_buffer("num_batches_tracked", None)

    @classmethod
    def frozen(cls, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm2d:
        """The constant layer that does what ``norm`` does in evaluation mode."""
        result = cls(norm.num_features, norm.eps)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(result, name, getattr(norm, name).detach().clone())
        return result

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same shape."""
        if not x.requires_grad:
            # One fused call. The other branch differs from it in the last bits, so the choice
            # between the two has to be Detectron2's as well.
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return (x * _per_channel(scale).to(x.dtype)).add_(_per_channel(shift).to(x.dtype))


class NaiveSyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over all processes that averages the processes' moments (MoCo's choice).

    With ``by_images`` False every process weighs the same, whatever its batch (Detectron2's
    ``naiveSyncBN``); with True it weighs by its number of images (``naiveSyncBN_N``). Unlike
    ``nn.SyncBatchNorm``, ``running_var`` follows the biased variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, by_images: bool = False) -> None:
        super().__init__(channels)
        self.by_images = by_images

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same shape; one process or evaluation mode is plain batch norm."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        half = x.dtype == torch.float16
        x = x.float() if half else x
        mean, square, momentum = self._moments(x)
        var = square - mean * mean
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        with torch.no_grad():
            self.running_mean += momentum * (mean - self.running_mean)
            self.running_var += momentum * (var - self.running_var)
        y = x * _per_channel(scale) + _per_channel(shift)
        return y.half() if half else y

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """Mean and mean square over the processes, and the momentum of this step."""
        images, channels = x.shape[:2]
        momentum = 0.1 if self.momentum is None else self.momentum
        if images == 0:
            if not self.by_images:
                raise ValueError(
                    "naiveSyncBN: a process has no input, for instance no region; use "
                    "naiveSyncBN_N or SyncBN, which weigh the processes by what they have"
                )
            local = x.new_zeros(2 * channels + 1) + x.sum()  # keeps the graph connected
        else:
            moments = [x.mean(dim=[0, 2, 3]), (x * x).mean(dim=[0, 2, 3])]
            local = torch.cat([*moments, x.new_ones(1)] if self.by_images else moments)
        if not self.by_images:
            total = differentiable_all_reduce(local) * (1.0 / dist.get_world_size())
            mean, square = total.split(channels)
            return mean, square, momentum
        total = differentiable_all_reduce(local * images)
        count = total[-1].detach()
        mean, square, _ = (total / count.clamp(min=1)).split(channels)
        return mean, square, count.clamp(max=1) * momentum  # nothing seen, nothing updated


class LayerNorm2d(nn.Module):
    """Normalises the channels of each place by themselves (Detectron2's ``LN``, from ConvNeXt).

    Not an ``nn.LayerNorm``, so WEIGHT_DECAY_NORM does not apply: nor does it in Detectron2.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same shape."""
        mean = x.mean(dim=1, keepdim=True)
        variance = (x - mean).pow(2).mean(dim=1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)  # a second difference: gradients' order
        return self.weight[:, None, None] * x + self.bias[:, None, None]


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm2d,
    "naiveSyncBN": NaiveSyncBatchNorm2d,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm2d(channels, by_images=True),
}


def get_norm(name: str, channels: int) -> nn.Module | None:
    """The layer that Detectron2 builds for ``name``; the empty name is no layer."""
    return NORMS[name](channels) if name else None


def freeze(module: nn.Module) -> None:
    """Stop training of ``module``: no gradients, and its batch norms become constants."""
    for parameter in module.parameters():
        parameter.requires_grad = False
    _freeze_norms(module)


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
            setattr(module, name, FrozenBatchNorm2d.frozen(child))
        else:
            _freeze_norms(child)


def _per_channel(vector: Tensor) -> Tensor:
    return vector.reshape(1, -1, 1, 1)
