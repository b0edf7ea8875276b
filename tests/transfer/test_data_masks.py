"""Masks: every real one is read unchanged, none that crashes pycocotools reaches it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from runtime.errors import InputError
from transfer.data.dataset import Findings
from transfer.data.masks import read_polygons, read_rle


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_real_run_length_mask_is_accepted_unchanged(height, width, seed):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray(rng.random((height, width)) < rng.random(), dtype=np.uint8)
    rle = mask_util.encode(mask)
    rle["counts"] = rle["counts"].decode()
    rle["size"] = list(rle["size"])
    assert read_rle(rle, height, width) == rle
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    listed = {"size": [height, width], "counts": [0] * int(flat[0]) + runs}
    assert np.array_equal(mask_util.decode(read_rle(listed, height, width)), mask)


def test_a_mask_of_many_large_runs_is_accepted():
    height, width = 1 << 10, 1 << 12
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[:, 2000:3000] = 1
    mask[5, 5] = mask[-1, -1] = 1
    rle = mask_util.encode(mask)
    rle["counts"] = rle["counts"].decode()
    assert read_rle({**rle, "size": [height, width]}, height, width)


@pytest.mark.parametrize(
    "counts",
    [
        [0, 0, 4294967295, 4294967295] * 500,  # heap corruption in pycocotools
        [2],  # uninitialised memory
        [],
        [0] * 5 + [4],
        [-1, 5],
        [4.0],
        "P",  # reads past its end
        "4P",
        "",
        "\x10",
        "é",
        "TPPPPPP0",  # 4, in more digits than the library can hold
        None,
        5,
    ],
)
def test_masks_that_crash_the_library_are_refused(counts):
    with pytest.raises(InputError, match="mask"):
        read_rle({"size": [2, 2], "counts": counts}, 2, 2)


@pytest.mark.parametrize("size", [[2147483647, 1073741824], [0, 4], [2], None, [2, 3], "22"])
def test_masks_must_have_the_size_of_their_image(size):
    with pytest.raises(InputError, match="is not the image's"):
        read_rle({"size": size, "counts": [4]}, 2, 2)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.floats() | st.integers() | st.text(max_size=1), max_size=9)))
def test_polygons_that_pass_can_be_rasterised(polygons):
    try:
        valid = read_polygons(polygons, 20, 30, Findings())
    except InputError:
        return
    assert all(len(p) >= 6 and len(p) % 2 == 0 and np.isfinite(p).all() for p in valid)
    if valid:
        mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(valid, 20, 30)))
        assert mask.shape == (20, 30)
