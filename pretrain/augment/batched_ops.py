"""Pillow's operations on images of 8 bits, on a batch with a parameter for each image.

Every function takes float32 N x 3 x H x W that holds whole grey levels in [0, 255], works in place
and leaves such whole levels: cut off or rounded where Pillow does so, since what is lost between
two operations belongs to the published recipe. Numbers are float32 throughout: in half precision
whole levels would fit, but not their products. The host never waits for the device.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

# ITU-R 601-2 as Pillow has it: whole numbers over 2^16, so that sums of products are exact
RED, GREEN, BLUE = (weight / 65536 for weight in (19595, 38470, 7471))


def grey(images: torch.Tensor) -> torch.Tensor:
    """Luminance N x 1 x H x W (``Image.convert("L")``)."""
    red, green, blue = images.split(1, dim=1)
    return (red * RED + 0.5).add_(green, alpha=GREEN).add_(blue, alpha=BLUE).floor_()


def to_grey_(images: torch.Tensor) -> None:
    """Give all three channels the luminance."""
    images.copy_(grey(images).expand_as(images))


def blend_(
    images: torch.Tensor, factor: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> None:
    """Brightness, contrast or saturation, each image its own (``ImageEnhance``).

    All three are a step by ``factor`` away from a poorer image: black, its mean grey where
    ``contrast`` is 1, its own grey picture where ``saturation`` is 1. All N x 1 x 1 x 1. A factor
    of 1 changes nothing.
    """
    poorer = grey(images)
    mean = (poorer.mean((2, 3), keepdim=True) + 0.5).floor_()
    poorer.mul_(saturation).add_(mean * contrast)
    torch.lerp(poorer, images, factor, out=images)
    images.clamp_(0, 255).floor_()


def shift_hue_(images: torch.Tensor, shift: torch.Tensor) -> None:
    """Turn hue by ``shift`` (N x 1 x 1, whole 256ths of a circle) in Pillow's HSV of 8 bits.

    The arithmetic of Pillow's ``rgb2hsv`` and ``hsv2rgb``, without their branches.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    turned = torch.where(
        green == value, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    )
    sixths = torch.where(red == value, green - blue, turned).div_(chroma.clamp(min=1))
    hue = sixths.remainder_(6).mul_(255 / 6).floor_().add_(shift).remainder_(256)
    saturation = chroma.div_(value.clamp(min=1)).mul_(255).floor_()
    lowest = (value - value * saturation.div_(255)).unsqueeze(1)
    centre, slope, offset = _tents(images.device)
    share = torch.addcmul(offset, slope, hue.mul_(6 / 255).unsqueeze(1).sub(centre).abs_())
    torch.lerp(lowest, value.unsqueeze(1), share.clamp_(0, 1), out=images)
    images.round_()


@cache
def _tents(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Of pure hue h in [0, 6], red is |h - 3| - 1, green 2 - |h - 2|, blue 2 - |h - 4|, clipped."""
    table = torch.tensor([[3, 2, 4], [1, -1, -1], [-1, 2, 2]], dtype=torch.float32)
    return tuple(row.view(1, 3, 1, 1).to(device) for row in table)


def box_radius(sigma: torch.Tensor) -> torch.Tensor:
    """Radius of the box blur of which three make ``sigma`` (``_gaussian_blur_radius``)."""
    variance = sigma.double() ** 2 / 3
    whole = ((12 * variance + 1).sqrt() / 2 - 0.5).floor()
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + rest / (6 * (variance - (whole + 1) ** 2))


def blur_(images: torch.Tensor, radius: torch.Tensor, reach: int) -> None:
    """Three box blurs of ``radius`` (N x 1, pixels) along the rows, three along the columns.

    ``ImageFilter.GaussianBlur``: each pass rounds, and the edge pixels go on for ever outside.
    ``reach`` is a whole number of pixels, known to the host and above each radius.
    """
    distance = torch.arange(-reach, reach + 1, device=images.device).abs()
    box = (radius + 1 - distance).clamp_(0, 1) / (2 * radius + 1)
    box = box.repeat_interleave(images.shape[1], dim=0)  # each channel of an image is a group
    half = images.new_full((len(box),), 0.5)
    out = images.reshape(1, len(box), *images.shape[2:])
    for weight, padding in (
        (box[:, None, None, :], (reach, reach, 0, 0)),
        (box[:, None, :, None], (0, 0, reach, reach)),
    ):
        for _ in range(3):
            padded = F.pad(out, padding, mode="replicate")
            out = F.conv2d(padded, weight, half, groups=len(box)).floor_()
    images.copy_(out.view_as(images))
