"""Is every tensor of a backbone there, in its shape, finite and trained? Nothing stays random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from convert.architecture import COUNTER, Architecture
from runtime.errors import InputError

MISSING = "missing"
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Findings:
    """What is not as it should be, in torchvision's names.

    Attributes:
        wrong: sentences about unknown, misshapen, not finite or impossible tensors.
        missing: tensors that are not there.
        untrained: norm layers (``layer1.0.bn1``) whose statistics have their initial values.
        norms: number of norm layers that could be judged.
    """

    wrong: tuple[str, ...]
    missing: tuple[str, ...]
    untrained: tuple[str, ...]
    norms: int

    def sentences(self, allow_missing: bool = False) -> list[str]:
        """All of them, or only those that ``--allow-missing`` does not excuse."""
        if allow_missing:
            return list(self.wrong)
        if self.untrained and len(self.untrained) == self.norms:
            untrained = [
                f"untrained: all {self.norms} norm layers have their initial values (mean 0, "
                "variance 1), as in files where BN was folded into scale and shift"
            ]
        else:
            untrained = [f"untrained {name}" for name in self.untrained]
        return [*(f"missing {name}" for name in self.missing), *self.wrong, *untrained]

    def incomplete(self) -> dict[str, str]:
        """Name → "missing" or "untrained", of what ``--allow-missing`` excuses."""
        return dict.fromkeys(self.missing, MISSING) | dict.fromkeys(self.untrained, UNTRAINED)


def examine(
    state: Mapping[str, torch.Tensor], architecture: Architecture, folded: bool = False
) -> Findings:
    """Compare a state dict in torchvision's names with what ``architecture`` needs.

    Training changes the running statistics of a norm layer at the first step, so a layer that
    still has its initial ones was never trained, or has lost them: an average of the weights
    without the buffers, Caffe's folded BN in torchvision's names. Where BN is known to be
    ``folded`` into weight and bias, these must have been trained. A convolution that still has its
    random initial weights cannot be told from a trained one; a constant one can.
    Batch counters may be absent, all of them: nothing is computed from them.
    """
    expected = architecture.shapes()
    counted = any(name.endswith(COUNTER) for name in state)
    needed = (name for name in expected if counted or not name.endswith(COUNTER))
    missing = tuple(name for name in needed if name not in state)
    wrong = [f"unknown {name}" for name in state if name not in expected]
    for name, shape in expected.items():
        if name in state:
            wrong += _wrong(name, state[name], shape)
    norms = [name.removesuffix(".running_var") for name in state if name.endswith(".running_var")]
    untrained = tuple(name for name in norms if _initial(state, name, folded))
    return Findings(tuple(wrong), missing, untrained, len(norms))


def check_complete(
    state: Mapping[str, torch.Tensor],
    architecture: Architecture,
    source: str,
    allow_missing: bool = False,
    folded: bool = False,
) -> dict[str, str]:
    """Demand every backbone tensor in name and shape, finite and trained (:func:`examine`).

    With ``allow_missing`` missing and untrained ones are returned, by name, instead of refused.
    Raises InputError that lists what is wrong.
    """
    findings = examine(state, architecture, folded)
    problems = findings.sentences(allow_missing)
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise InputError(
            f"{source} is not a complete {architecture.name}: {len(problems)} problem(s): {shown}"
        )
    return findings.incomplete()


def _wrong(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> Iterator[str]:
    if tuple(value.shape) != shape:
        yield f"{name} is {tuple(value.shape)} instead of {shape}"
    elif not value.is_floating_point() and not name.endswith(COUNTER):
        yield f"{name} is of {str(value.dtype)[6:]}, not of floating-point numbers"
    elif not torch.isfinite(value).all():
        yield f"{name} has values that are not finite"
    elif name.endswith(".running_var") and (value < 0).any():
        yield f"{name} has negative variances"
    elif value.ndim == 4 and (value == value.flatten()[0]).all():
        yield f"{name} is {float(value.flatten()[0]):g} everywhere"


def _initial(state: Mapping[str, torch.Tensor], name: str, folded: bool) -> bool:
    def is_all(part: str, *values: float) -> bool:
        tensor = state.get(f"{name}.{part}")
        return tensor is not None and any(bool(tensor.eq(v).all()) for v in values)

    if folded:  # residual branches may begin with weight 0
        return is_all("weight", 1.0, 0.0) and is_all("bias", 0.0)
    return is_all("running_mean", 0.0) and is_all("running_var", 1.0)
