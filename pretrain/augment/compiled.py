"""How numba compiles the kernels: single-threaded, float32, kept on disk.

Each kernel lies in one file together with its helpers: numba's cache looks at the age of that file
only, so that a changed helper elsewhere would go unnoticed. In the kernels everything is float32:
numba makes 64-bit integers of products of smaller ones, which do not vectorise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit, types

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
PIXELS = types.Array(types.uint8, 3, "C", readonly=True)  # H x W x 3
IMAGES = types.Array(types.uint8, 3, "C")

exact = njit(**OPTIONS)  # each product and sum rounded, as in C without fused operations
helper = njit(fastmath={"contract"}, **OPTIONS)
integers = njit(fastmath={"reassoc"}, **OPTIONS)  # sums of whole numbers, exact in any order


def entry(*arguments: Any) -> Callable[[Callable], Callable]:
    """Compile for these argument types now; keep it on disk where there is a place to write."""

    def compiled(function: Callable) -> Callable:
        signature = types.void(*arguments)
        try:
            return njit(signature, cache=True, **OPTIONS)(function)
        except (OSError, RuntimeError):  # no folder for the cache, or a full disk
            return njit(signature, **OPTIONS)(function)

    return compiled
