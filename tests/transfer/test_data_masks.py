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


@settings(max_examples=200)
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


@pytest.mark.parametrize(
    "size", [[2147483647, 1073741824], [0, 4], [2], None, [2, 3], "22", [2.0, 2]]
)
def test_masks_must_have_the_size_of_their_image(size):
    with pytest.raises(InputError, match="is not the image's"):
        read_rle({"size": size, "counts": [4]}, 2, 2)


def zigzag(points, reach, centre=0.0):
    """A polygon from one far corner to the other and back, again and again."""
    return [centre + (reach if i // 2 % 2 else -reach) for i in range(2 * points)]


def test_polygons_that_crash_the_library_by_their_length_are_refused():
    # 100000 points within ten image sizes: pycocotools takes 50 GB without a look at what it got
    with pytest.raises(InputError, match="outline of more than 2000000 pixels"):
        read_polygons([zigzag(100_000, 6400)], 480, 640, Findings())
    with pytest.raises(InputError, match="within 10 image sizes"):
        read_polygons([zigzag(3, 1 << 29)], 1, 1 << 28, Findings())
    long = [zigzag(100_000, 9.9, centre=99.0), zigzag(300, 3300)]  # just within
    assert read_polygons(long, 480, 640, Findings()) == long
    assert mask_util.decode(mask_util.frPyObjects(long, 480, 640)).shape == (480, 640, 2)


def test_a_detailed_polygon_of_a_large_image_is_accepted():
    angles = np.linspace(0, 2 * np.pi, 50_000, endpoint=False)
    radius = 2900 + 10 * np.sin(900 * angles)
    points = np.stack([3000 + radius * np.cos(angles), 3000 + radius * np.sin(angles)], axis=1)
    polygon = points.flatten().tolist()
    assert read_polygons([polygon], 6000, 6000, Findings()) == [polygon]


COUNTS = (
    st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12)
    | st.lists(st.integers(-1, 40) | st.sampled_from([2**31, 2**32 - 1, 2**63, 1.0]), max_size=9)
)  # fmt: skip


@st.composite
def damaged_masks(draw):
    """A real mask of 5 x 6 pixels with one change, or anything."""
    bits = draw(st.lists(st.booleans(), min_size=30, max_size=30))
    rle = mask_util.encode(np.array(bits, dtype=np.uint8).reshape(5, 6, order="F"))
    text = rle["counts"].decode()
    place = draw(st.integers(0, len(text)))
    changed = text[:place] + draw(st.text("0123OPQpo?@", max_size=2)) + text[place + 1 :]
    counts = draw(st.sampled_from([text, changed, changed + changed]) | COUNTS)
    return {"size": [5, 6], "counts": counts}


@settings(max_examples=500)
@given(damaged_masks())
def test_run_length_masks_that_pass_do_not_harm_the_library(rle):
    try:
        valid = read_rle(rle, 5, 6)
    except InputError:
        return
    mask = mask_util.decode(valid)
    assert mask.shape == (5, 6)
    assert set(np.unique(mask)) <= {0, 1}
    assert mask_util.area(valid) == mask.sum()
    assert mask_util.iou([valid], [valid], [0])[0, 0] == bool(mask.any())
    assert mask_util.area(mask_util.merge([valid, valid])) == mask.sum()
    assert len(mask_util.toBbox(valid)) == 4


@settings(max_examples=300)
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
