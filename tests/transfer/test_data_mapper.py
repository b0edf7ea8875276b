"""The mapper against slow references, and its refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_synthetic import SHARED, make_cfg, needs_shared, write_image
from PIL import Image
from pycocotools import mask as mask_util

from runtime.errors import InputError
from transfer.data.geometry import Geometry, shortest_edge_size
from transfer.data.mapper import Mapper, sample_rng


class Draws:
    """A stand-in for the generator, with chosen outcomes."""

    def __init__(self, size: int, flip: float) -> None:
        self.size, self.flip = size, flip

    def choice(self, sizes):
        assert self.size in sizes
        return self.size

    def randint(self, low, high):
        assert low <= self.size < high
        return self.size

    def uniform(self):
        return self.flip


def make_record(path, width, height, annotations=()):
    return {
        "file_name": str(path),
        "image_id": 7,
        "height": height,
        "width": width,
        "annotations": [{"bbox_mode": 0, "iscrowd": 0, **a} for a in annotations],
    }


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),
        (640, 480, (1067, 800)),
        (100, 1000, (133, 1333)),
        (1, 9999, (1, 1333)),
    ],
)
def test_sizes(height, width, expected):
    assert shortest_edge_size(height, width, 800, 1333) == expected


@pytest.mark.parametrize("layout", ["BGR", "RGB", "L"])
@pytest.mark.parametrize("flip", [0.4, 0.6])
def test_pixels_and_boxes(tmp_path, layout, flip):
    write_image(tmp_path / "a.png", 60, 40)
    objects = [
        {"bbox": [10, 4.5, 30, 20], "category_id": 2},
        {"bbox": [-1.0, 30, 70, 39], "category_id": 0},  # clipped
        {"bbox": [59.0, 1, 61, 1 + 1e-6], "category_id": 1},  # too low to count
        {"bbox": [1.0, 1, 9, 9], "category_id": 1, "iscrowd": 1},
    ]
    record = make_record(tmp_path / "a.png", 60, 40, objects)
    mapper = Mapper(make_cfg("INPUT.FORMAT", layout), is_train=True)
    sample = mapper(record, Draws(32, flip))

    image = Image.open(tmp_path / "a.png").convert("L" if layout == "L" else "RGB")
    pixels = np.array(image.resize((48, 32), Image.Resampling.BILINEAR)).reshape(32, 48, -1)
    flipped = flip < 0.5
    expected = torch.empty(pixels.shape[2], 32, 48, dtype=torch.uint8)
    for channel in range(pixels.shape[2]):
        for x in range(48):
            source = pixels[:, 47 - x if flipped else x, channel]
            at = 2 - channel if layout == "BGR" else channel
            expected[at, :, x] = torch.from_numpy(source.copy())
    assert torch.equal(sample["image"], expected)

    boxes = torch.tensor([[8, 3.6, 24, 16], [0, 24, 48, 31.2]])
    if flipped:
        boxes = torch.stack([48 - boxes[:, 2], boxes[:, 1], 48 - boxes[:, 0], boxes[:, 3]], dim=1)
    assert torch.allclose(sample["targets"]["boxes"], boxes, atol=1e-5)
    assert sample["targets"]["classes"].tolist() == [2, 0]
    assert (sample["height"], sample["width"], sample["image_id"]) == (40, 60, 7)
    assert "polygons" not in sample["targets"]


def test_testing_resizes_without_draws_and_has_no_targets(tmp_path):
    write_image(tmp_path / "a.png", 60, 40)
    record = make_record(tmp_path / "a.png", 60, 40, [{"bbox": [1.0, 1, 5, 5], "category_id": 0}])
    sample = Mapper(make_cfg(), is_train=False)(record)
    assert sample["image"].shape == (3, 40, 60)
    assert "targets" not in sample
    kept = Mapper(make_cfg("INPUT.MIN_SIZE_TEST", 0), is_train=False)(record)["image"]
    original = np.array(Image.open(tmp_path / "a.png"))[:, :, ::-1].transpose(2, 0, 1)
    assert torch.equal(kept, torch.from_numpy(original.copy()))


@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
def test_masks_follow_the_image(tmp_path, flip):
    write_image(tmp_path / "a.png", 60, 40)
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[10:20, 5:45] = 1
    polygon = [5, 10.5, 45, 10, 45, 20]
    objects = [
        {"bbox": [5.0, 10, 45, 20], "category_id": 1, "segmentation": [polygon]},
        {
            "bbox": [5.0, 10, 45, 20],
            "category_id": 0,
            "segmentation": [polygon, [0, 0, 9, 0, 9, 9]],
        },
    ]
    record = make_record(tmp_path / "a.png", 60, 40, objects)
    cfg = make_cfg(
        "MODEL.MASK_ON", True, "INPUT.RANDOM_FLIP", flip, "INPUT.MIN_SIZE_TRAIN", (20, 20)
    )
    moved = Mapper(cfg, is_train=True)(record, Draws(20, 0.0))["targets"]["polygons"]
    points = np.array(polygon).reshape(3, 2) / 2
    axis, side = (0, 30) if flip == "horizontal" else (1, 20)
    points[:, axis] = side - points[:, axis]
    assert np.array_equal(moved[0][0], points.reshape(-1))
    assert [len(polygons) for polygons in moved] == [1, 2]

    cfg.INPUT.MASK_FORMAT = "bitmask"
    objects[1]["segmentation"] = mask_util.encode(mask)
    record = make_record(tmp_path / "a.png", 60, 40, objects)
    bitmasks = Mapper(cfg, is_train=True)(record, Draws(20, 0.0))["targets"]["bitmasks"]
    assert bitmasks.shape == (2, 20, 30)
    expected = np.flip(mask[1::2, 1::2], 1 - axis)  # nearest neighbours of a halved image
    assert np.array_equal(bitmasks[1].numpy(), expected.astype(bool))
    rasterised = mask_util.decode(mask_util.frPyObjects([points.reshape(-1)], 20, 30))[..., 0]
    assert np.array_equal(bitmasks[0].numpy(), rasterised.astype(bool))


def test_objects_with_an_empty_mask_are_dropped(tmp_path):
    write_image(tmp_path / "a.png", 60, 40)
    empty = mask_util.encode(np.zeros((40, 60), dtype=np.uint8, order="F"))
    base = {"bbox": [5.0, 10, 45, 20], "category_id": 1}
    cfg = make_cfg("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask")
    mapper = Mapper(cfg, is_train=True)
    record = make_record(tmp_path / "a.png", 60, 40, [{**base, "segmentation": empty}])
    for objects in (record["annotations"], []):
        targets = mapper({**record, "annotations": objects}, Draws(40, 0.6))["targets"]
        assert targets["boxes"].shape == (0, 4)
        assert targets["classes"].dtype == torch.int64
        assert targets["bitmasks"].shape == (0, 40, 60)


def test_integer_annotations_are_truncated_as_detectron2_does():
    geometry = Geometry((10, 10), (15, 15), "none")
    assert geometry.points(np.array([[1, 3]])).tolist() == [[1, 4]]
    assert geometry.points(np.array([[1.0, 3.0]])).tolist() == [[1.5, 4.5]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    # what the camera stores, by definition of the tag: its row 0 and column 0 are these sides
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    cfg = make_cfg("INPUT.MIN_SIZE_TEST", 0, "INPUT.FORMAT", "RGB")
    sample = Mapper(cfg, is_train=False)(make_record(tmp_path / "a.png", 60, 40))
    assert np.array_equal(sample["image"].numpy().transpose(1, 2, 0), upright)


def test_damaged_exif_does_not_lose_the_image(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    sample = Mapper(make_cfg(), is_train=False)(make_record(tmp_path / "a.jpg", 60, 40))
    assert sample["image"].shape == (3, 40, 60)


def test_wrong_images_are_refused_by_name(tmp_path):
    mapper = Mapper(make_cfg(), is_train=False)
    write_image(tmp_path / "a.jpg", 60, 40)
    with pytest.raises(InputError, match=r"a\.jpg is 60 x 40, its annotation says 61 x 40"):
        mapper(make_record(tmp_path / "a.jpg", 61, 40))
    with pytest.raises(InputError, match="its annotation says 40 x 60"):
        mapper(make_record(tmp_path / "a.jpg", 40, 60))
    with pytest.raises(InputError, match=r"cannot read image .*b\.jpg"):
        mapper(make_record(tmp_path / "b.jpg", 60, 40))
    whole = (tmp_path / "a.jpg").read_bytes()
    for name, content in {"cut.jpg": whole[:-200], "no.jpg": b"hello", "none.jpg": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read image .*{name}"):
            mapper(make_record(tmp_path / name, 60, 40))
    Image.fromarray(np.full((40, 60), 60000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="convert it to 8 bits"):
        mapper(make_record(tmp_path / "deep.png", 60, 40))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "YUV-BT.601"),
        ("INPUT.RANDOM_FLIP", "both"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "any"),
        ("INPUT.MASK_FORMAT", "rle"),
    ],
)
def test_settings_that_are_not_implemented_are_refused(key, value):
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        Mapper(make_cfg(key, value), is_train=True)


def test_range_needs_two_sizes_and_uses_both_ends():
    cfg = make_cfg("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range")
    with pytest.raises(InputError, match="two sizes"):
        Mapper(cfg, is_train=True)
    cfg.INPUT.MIN_SIZE_TRAIN = (3, 5)
    mapper = Mapper(cfg, is_train=True)
    drawn = {mapper._draw((50, 50), sample_rng(0, i)).new[0] for i in range(60)}
    assert drawn == {3, 4, 5}


def test_draws_depend_on_seed_and_position_only():
    first = [sample_rng(3, position).uniform() for position in range(2000)]
    again = [sample_rng(3, position).uniform() for position in reversed(range(2000))]
    assert first == again[::-1]
    assert len({*first, *(sample_rng(4, position).uniform() for position in range(2000))}) == 4000
    assert abs(np.mean(np.array(first) < 0.5) - 0.5) < 0.04
    # numbers of this numpy stream, so that a change of it cannot pass unseen
    assert [sample_rng(1, p).randint(1000) for p in range(4)] == EXPECTED_DRAWS


EXPECTED_DRAWS = [735, 549, 777, 441]


@needs_shared
def test_real_odd_images():
    grey = SHARED / "odd/gray_scale/grayscale_int8.png"
    width, height = Image.open(grey).size
    image = Mapper(make_cfg(), is_train=False)(make_record(grey, width, height))["image"]
    assert torch.equal(image[0], image[2])
    deep = SHARED / "odd/test_3_bands_float32.tif"
    with pytest.raises(InputError, match="test_3_bands_float32"):
        Mapper(make_cfg(), is_train=False)(make_record(deep, 10, 10))
