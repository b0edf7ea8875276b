"""How the pixels must look for a set of weights, and how the network applies them.

The most common silent mistake is to feed weights with other conventions than they were trained
with. So the conventions are stored with the weights, and applied from there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from convert.architecture import Architecture
from runtime.errors import InputError


@dataclass(frozen=True)
class Conventions:
    """What Detectron2 must be told about a backbone.

    Attributes:
        channel_order: "RGB" or "BGR".
        pixel_mean, pixel_std: per channel, in that order, on the scale 0 to 255.
        stride_in_1x1: stride of a bottleneck in its first 1x1 convolution (MSRA) or its 3x3.
        depth, stem_channels, planes: the architecture, as in :class:`Architecture`.
        source_format: toolkit that wrote the checkpoint.
        branch: which of several encoders was taken, or "".
        source_sha256: of the checkpoint file.
        pretraining: what is known of the pretraining recipe.
    """

    channel_order: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    stride_in_1x1: bool
    depth: int
    stem_channels: int
    planes: int
    source_format: str
    branch: str
    source_sha256: str
    pretraining: dict[str, Any] = field(default_factory=dict)

    def detectron2_keys(self) -> dict[str, Any]:
        """The configuration keys that these weights need, with their values."""
        architecture = Architecture(self.depth, self.stem_channels, self.planes)
        return {
            "INPUT.FORMAT": self.channel_order,
            "MODEL.PIXEL_MEAN": list(self.pixel_mean),
            "MODEL.PIXEL_STD": list(self.pixel_std),
            "MODEL.RESNETS.STRIDE_IN_1X1": self.stride_in_1x1,
            "MODEL.RESNETS.DEPTH": self.depth,
            "MODEL.RESNETS.STEM_OUT_CHANNELS": self.stem_channels,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": self.planes * (4 if architecture.bottleneck else 1),
            # Detectron2 reads the next key for bottlenecks only; its default must stay otherwise.
            "MODEL.RESNETS.WIDTH_PER_GROUP": self.planes if architecture.bottleneck else 64,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the ``conventions`` entry of a ``backbone.pkl`` and for JSON."""
        return asdict(self) | {
            "pixel_mean": list(self.pixel_mean),
            "pixel_std": list(self.pixel_std),
        }

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Conventions:
        """The inverse of :meth:`to_dict`. InputError where an entry is missing."""
        names = [f.name for f in fields(cls)]
        if not isinstance(values, dict) or any(name not in values for name in names):
            raise InputError(f"{source} carries incomplete conventions: convert it again")
        known = {name: values[name] for name in names}
        for name in ("pixel_mean", "pixel_std"):
            known[name] = tuple(float(x) for x in known[name])
        return cls(**known)


# Mean and standard deviation of ImageNet as every torchvision-style recipe states them, times 255.
IMAGENET_RGB: dict[str, Any] = {
    "channel_order": "RGB",
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
    "stride_in_1x1": False,
}
