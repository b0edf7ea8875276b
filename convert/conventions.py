"""How the pixels must look for a set of weights, and how the network applies them.

The most common silent mistake is to feed weights with other conventions than they were trained
with. So the conventions are stored with the weights, and applied from there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from convert.architecture import BLOCKS, Architecture
from convert.foreign import arguments
from convert.hub_config import hub_config, hub_pixels
from runtime.errors import InputError
from runtime.yaml_file import read_recipe


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
        groups, out_channels: the rest of the architecture; 0 stands for the standard width.
        frozen_bn: BN was folded into a scale and a shift: no other norm can take them over.
        assumed: what the file does not say, so that the format's usual value was taken.
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
    groups: int = 1
    out_channels: int = 0
    frozen_bn: bool = False
    assumed: str = ""

    @property
    def architecture(self) -> Architecture:
        """The network that the weights fit."""
        return Architecture(
            self.depth, self.stem_channels, self.planes, self.groups, self.out_channels
        )

    @property
    def detector(self) -> str:
        """A tensor of the trained detector that the backbone was taken from; "" without one."""
        return str(self.pretraining.get("detector", ""))

    def of_detector(self, tensor: str) -> Conventions:
        """The same for a backbone out of a detector that ``tensor`` is another part of."""
        return replace(self, pretraining=self.pretraining | {"detector": tensor})

    def detectron2_keys(self) -> dict[str, Any]:
        """The configuration keys that these weights need, with their values."""
        architecture = self.architecture
        keys = {
            "INPUT.FORMAT": self.channel_order,
            "MODEL.PIXEL_MEAN": list(self.pixel_mean),
            "MODEL.PIXEL_STD": list(self.pixel_std),
            "MODEL.RESNETS.STRIDE_IN_1X1": self.stride_in_1x1,
            "MODEL.RESNETS.DEPTH": self.depth,
            "MODEL.RESNETS.STEM_OUT_CHANNELS": self.stem_channels,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": architecture.out,
            "MODEL.RESNETS.NUM_GROUPS": self.groups,
            # Detectron2 reads the next key for bottlenecks only; its default must stay otherwise.
            "MODEL.RESNETS.WIDTH_PER_GROUP": (
                self.planes // self.groups if architecture.bottleneck else 64
            ),
        }
        return keys | ({"MODEL.RESNETS.NORM": "FrozenBN"} if self.frozen_bn else {})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the ``conventions`` entry of a ``backbone.pkl`` and for JSON."""
        return asdict(self) | {
            "pixel_mean": list(self.pixel_mean),
            "pixel_std": list(self.pixel_std),
        }

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Conventions:
        """The inverse of :meth:`to_dict`. InputError where an entry is missing or impossible."""
        optional = ("groups", "out_channels", "frozen_bn", "assumed")  # older files have none
        names = [f.name for f in fields(cls)]
        if not isinstance(values, dict) or any(
            name not in values for name in names if name not in optional
        ):
            raise InputError(f"{source} carries incomplete conventions: convert it again")
        known = {name: values[name] for name in names if name in values}
        for name, possible in POSSIBLE.items():
            if name in known and not possible(known[name]):
                raise InputError(
                    f"{source} carries impossible conventions, {name} {str(known[name])[:60]!r}: "
                    "convert it again"
                )
        for name in ("pixel_mean", "pixel_std"):
            known[name] = tuple(float(x) for x in known[name])
        return cls(**known)


def _three(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(x, int | float) and math.isfinite(x) for x in values)
    )


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


POSSIBLE: Mapping[str, Callable[[Any], bool]] = {
    "channel_order": lambda value: value in ("RGB", "BGR"),
    "pixel_mean": _three,
    "pixel_std": lambda value: _three(value) and min(value) > 0,
    "depth": lambda value: _count(value) and value in BLOCKS.values(),
    **dict.fromkeys(("stem_channels", "planes", "groups"), _count),
    "out_channels": lambda value: value == 0 or _count(value),
    **dict.fromkeys(("stride_in_1x1", "frozen_bn"), _is_bool),
    **dict.fromkeys(("source_format", "branch", "source_sha256", "assumed"), _is_text),
    "pretraining": lambda value: isinstance(value, dict),
}

# How formats want their input. Mean and standard deviation of ImageNet as every torchvision-style
# recipe states them, times 255.
IMAGENET_RGB: dict[str, Any] = {
    "channel_order": "RGB",
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
    "stride_in_1x1": False,
}
# MSRA's ResNets (Caffe), as Detectron2's default configuration wants them.
MSRA_BGR: dict[str, Any] = {
    "channel_order": "BGR",
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (1.0, 1.0, 1.0),
    "stride_in_1x1": True,
}
# FAIR's ResNeXts (Caffe2): Detectron2's faster_rcnn_X_101_32x8d_FPN_3x.yaml.
FAIR_BGR: dict[str, Any] = {
    "channel_order": "BGR",
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (57.375, 57.12, 58.395),
    "stride_in_1x1": False,
}


ASSUMED = "the pixel mean and std of ImageNet"
CONFIGURATIONS = ("cfg", "config")  # entries of OpenMMLab's ``meta``


def caffe2_conventions(architecture: Architecture, folded: bool) -> dict[str, Any]:
    """Of Caffe2's ImageNet models: MSRA's ResNets and FAIR's ResNeXts.

    With BN folded, both want pixels that are not divided (``detectron2/checkpoint/catalog.py``).
    """
    if architecture.groups == 1:
        return MSRA_BGR
    return FAIR_BGR | ({"pixel_std": (1.0, 1.0, 1.0)} if folded else {})


def said_inside(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Conventions that the checkpoint ``source`` records; empty where it does not.

    lightly-train records mean and std (``normalize_args``), so does timm's ``train.py`` where
    they were given to it (``args``), and timm and transformers beside what they write for the Hub;
    OpenMMLab records its configuration (``meta.cfg``, before MMEngine ``meta.config``).
    """
    entry = content.get("lightly_train")
    values = entry.get("normalize_args") if isinstance(entry, Mapping) else None
    if isinstance(values, Mapping):
        return _normalisation(values, f"normalize_args of {source}")
    args = arguments(content)
    if "arch" in content and args.get("mean") and args.get("std"):
        return _normalisation(args, f"args of {source}")
    hub = hub_config(source)
    timm = hub.get("pretrained_cfg", {})
    if timm.get("mean") and timm.get("std"):
        return _normalisation(timm, f"config.json beside {source}")
    if hub.get("model_type") == "resnet":
        stride = {"stride_in_1x1": bool(hub.get("downsample_in_bottleneck"))}
        pixels = hub_pixels(source)
        where = f"preprocessor_config.json beside {source}"
        return stride | (_normalisation(pixels, where) if pixels else {"assumed": ASSUMED})
    return _in_configuration(configuration(content))


def configuration(content: Mapping[str, Any]) -> str:
    """The text of the configuration that OpenMMLab keeps in its checkpoints; "" without one."""
    meta = content.get("meta")
    texts = [meta.get(key) for key in CONFIGURATIONS] if isinstance(meta, Mapping) else []
    return next((text for text in texts if isinstance(text, str)), "")


def _normalisation(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``mean`` and ``std``, mostly on the scale 0 to 1. InputError where not three numbers each."""
    try:
        mean, std = (tuple(float(x) for x in values[key]) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: mean and std are damaged: {error!r}") from error
    if len(mean) != 3 or len(std) != 3:
        raise InputError(f"{where}: mean and std are not for three channels")
    return _pixels(mean, std, 255 if max(mean) <= 1 else 1)


def _pixels(mean: tuple[float, ...], std: tuple[float, ...], scale: int) -> dict[str, Any]:
    """Rounded, so that 0.485 * 255 is the 123.675 that everybody writes."""
    return {
        "pixel_mean": tuple(round(scale * x, 6) for x in mean),
        "pixel_std": tuple(round(scale * x, 6) for x in std),
    }


def _in_configuration(text: str) -> dict[str, Any]:
    """Of an OpenMMLab configuration, if all that it says of mean, std and channels is one thing."""
    try:
        means, stds = (
            {
                tuple(float(x) for x in numbers.replace(",", " ").split())
                for numbers in re.findall(rf"\b{key}\s*=\s*[\[(]([\d.,\s]+)[\])]", text)
            }
            for key in ("mean", "std")
        )
    except ValueError:
        return {}
    orders = set(re.findall(r"\b(?:bgr_)?to_rgb\s*=\s*(True|False)", text))
    if not len(means) == len(stds) == len(orders) == 1:
        return {}
    mean, std = means.pop(), stds.pop()
    if len(mean) != 3 or len(std) != 3:
        return {}
    order = {"channel_order": "RGB" if orders == {"True"} else "BGR"}
    return order | _pixels(mean, std, 255 if max(mean) <= 1 else 1)


def said_beside(path: str | Path) -> dict[str, Any]:
    """Conventions from the ``config.yaml`` that Detectron2 writes beside its checkpoints.

    InputError where there is none, or it leaves a key out.
    """
    file = Path(path).parent / "config.yaml"
    if not file.is_file():
        raise InputError(
            f"{path} does not say its conventions (channel order, mean, stride): put the "
            "config.yaml of its run beside it, or give --format detectron2-msra, detectron2-fair "
            "or detectron2-torchvision"
        )
    config = read_recipe(file)
    try:
        model = config["MODEL"]
        return {
            "channel_order": config["INPUT"]["FORMAT"],
            "pixel_mean": tuple(float(x) for x in model["PIXEL_MEAN"]),
            "pixel_std": tuple(float(x) for x in model["PIXEL_STD"]),
            "stride_in_1x1": bool(model["RESNETS"]["STRIDE_IN_1X1"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} does not say the conventions of {path}: {error!r}") from error
