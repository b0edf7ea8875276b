"""A read-only list whose items lie pickled in one block, so that worker processes share it.

A list of Python objects is copied into every worker page by page, as reference counts are
touched: with COCO that is gigabytes (pytorch#13246).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np


class PackedList:
    """Holds ``items``; indexing gives a fresh copy of one."""

    def __init__(self, items: Sequence[Any]) -> None:
        packed = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self._bytes = b"".join(packed)
        self._ends = np.cumsum([len(item) for item in packed], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = self._ends[index - 1] if index else 0
        return pickle.loads(memoryview(self._bytes)[start : self._ends[index]])
