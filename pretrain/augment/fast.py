"""The fast way on the CPU: numba's kernels, or OpenCV and torch where numba is missing.

Both take the same draws and stay within rounding of ``reference``.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import numpy as np

from pretrain.views import View, ViewRecipe

log = logging.getLogger("moco")


def warm_up() -> None:
    """Compile the kernels, or load them from numba's cache, and say which ones run.

    To be called before worker processes are forked: they all share what is compiled then.
    """
    _kernels()


def make_view(recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
    """Write ``view`` of ``pixels`` (uint8 H x W x 3, RGB) to ``out`` (uint8 3 x S x S).

    Both arrays are C-contiguous.
    """
    _kernels().make_view(recipe, pixels, view, out)


def crop_view(recipe: ViewRecipe, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
    """Write the crop of ``view``, resized and not flipped, to ``out`` (uint8 3 x S x S).

    Both arrays are C-contiguous.
    """
    _kernels().crop_view(recipe, pixels, view, out)


@cache
def _kernels() -> ModuleType:
    try:
        import numba

        log.info(
            "views: fused kernels, compiled by numba %s (the first time on a machine: a minute)",
            numba.__version__,
        )
        from pretrain.augment import fused
    except ImportError as error:
        from pretrain.augment import fallback

        log.info("views: OpenCV and torch, a third as fast as with numba (%s)", error)
        return fallback
    return fused
