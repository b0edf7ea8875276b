"""Collects the differences that parity tests measure, for docs/parity.md.

``make test-detectron2`` sets PARITY_PAGE to the page's path; the hook is in ``tests/conftest.py``.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

INTRODUCTION = """# Parity

What `make test-detectron2` measured when it last ran; it writes this page. Each cell is the largest
absolute difference, and in brackets how many values or tensors were compared. Everything ran on a
CPU with one thread and from one seed.

Pretraining is compared with the official MoCo code, run as it is in two processes from the same
weights, batches and permutations. The sums are the same, their order is not: tests demand 1e-5 of
the losses of ten steps in float64. In float32, BN over a few values magnifies the last bit to 0.01
and 0.1 within ten steps of this tiny encoder; the first two losses must agree to 1e-5.

All other tables compare Detectron2 and the embedded engine, in float32 unless named otherwise. The
tests demand 0: the same bits.
"""


@dataclass
class Page:
    """Tables of measured differences: table → row → column → (largest difference, compared)."""

    tables: dict[str, dict[str, dict[str, tuple[float, int]]]] = field(default_factory=dict)

    def note(self, table: str, row: str, column: str, ours: Any, reference: Any) -> float:
        """Measure, record and return the largest difference between two equal structures."""
        pairs = list(_pairs(ours, reference, f"{row}, {column}"))
        assert pairs, f"nothing to compare: {row}, {column}"
        largest = max(_difference(a, b) for a, b in pairs)
        cells = self.tables.setdefault(table, {}).setdefault(row, {})
        before = cells.get(column, (0.0, 0))
        cells[column] = (max(before[0], largest), before[1] + len(pairs))
        return largest

    def markdown(self, outcome: str) -> str:
        """The page. ``outcome`` is the line that counts the tests."""
        lines = [INTRODUCTION, f"{outcome} {_versions()}"]
        for table, rows in self.tables.items():
            columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
            lines += ["", f"## {table}", "", "| | " + " | ".join(columns) + " |"]
            lines.append("|---" * (len(columns) + 1) + "|")
            for row, cells in rows.items():
                shown = [_cell(cells.get(column)) for column in columns]
                lines.append(f"| {row} | " + " | ".join(shown) + " |")
        return "\n".join(lines) + "\n"


PAGE = Page()


def _pairs(ours: Any, reference: Any, where: str) -> Iterable[tuple[Any, Any]]:
    """Leaves of two nested structures; they must have the same names in the same order."""
    if isinstance(ours, Mapping):
        assert list(ours) == list(reference), f"{where}: different names"
        for key in ours:
            yield from _pairs(ours[key], reference[key], f"{where}, {key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(reference), f"{where}: {len(ours)} against {len(reference)}"
        for a, b in zip(ours, reference, strict=True):
            yield from _pairs(a, b, where)
    else:
        yield ours, reference


def _difference(ours: Any, reference: Any) -> float:
    """Largest absolute difference; infinite where kinds, shapes or texts differ."""
    if isinstance(ours, str) or ours is None:
        return 0.0 if ours == reference else float("inf")
    a, b = torch.as_tensor(ours), torch.as_tensor(reference)
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if torch.equal(a, b) or not a.numel():
        return 0.0
    if not a.dtype.is_floating_point:
        return float((a.long() - b.long()).abs().max())
    same = (a == b) | (a.isnan() & b.isnan())
    gap: Tensor = (a.double() - b.double()).abs().masked_fill(same, 0)
    return float(gap.nan_to_num(nan=float("inf")).max())


def _cell(measured: tuple[float, int] | None) -> str:
    return "" if measured is None else f"{measured[0]:.3g} ({measured[1]})"


def _versions() -> str:
    import detectron2
    import torchvision

    try:
        import detectron2._C

        built = "compiled"
    except ImportError:
        built = "uncompiled"
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, Detectron2 {detectron2.__version__} ({built})."
    )
