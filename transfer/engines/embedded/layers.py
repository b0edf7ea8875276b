"""A convolution that carries its norm and activation, as Detectron2 names them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from transfer.engines.embedded.norms import get_norm


class Conv2d(nn.Conv2d):
    """Convolution, then norm, then ReLU; the norm's parameters are called ``norm.*``.

    Padding keeps the size (for stride 1). ``bias`` None means: a bias exactly where no norm is.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        norm: str = "",
        bias: bool | None = None,
        relu: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=not norm if bias is None else bias,
        )
        self.norm = get_norm(norm, out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to N x out_channels x H' x W'."""
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu_(x) if self.relu else x  # no layer before it needs its output
