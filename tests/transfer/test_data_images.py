"""From Pillow's pixels to the planes of a tensor."""

from __future__ import annotations

import numpy as np
import pytest

from transfer.data.images import colour_planes


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1, 3)])
def test_colour_planes(shape, reverse):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = np.atleast_3d(pixels).transpose(2, 0, 1)
    planes = colour_planes(pixels, reverse).numpy()
    assert np.array_equal(planes, expected[::-1] if reverse else expected)
