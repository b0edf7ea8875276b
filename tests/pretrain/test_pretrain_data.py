"""Folders, order and batches: what is read, and that it depends on the seed and the place only."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image

from pretrain.augment.reference import apply
from pretrain.loading.batches import EpochBatches, ViewDataset, normalise
from pretrain.loading.loader import Loader
from pretrain.source.images import ImageFolder
from pretrain.views import View, ViewRecipe, draw
from runtime.errors import InputError
from runtime.randomness import generator


def test_scan_is_recursive_sorted_and_ignores_other_files(tmp_path: Path) -> None:
    write_images(tmp_path / "b" / "deep", 1)
    write_images(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b" / "up").symlink_to("..")
    (tmp_path / "c").symlink_to("b/deep")
    assert ImageFolder.scan(tmp_path).files == ("000.jpg", "b/deep/000.jpg", "c/000.jpg")


def test_links_that_lead_to_each_other_are_followed_once(tmp_path: Path) -> None:
    for name, other in ("ab", "ba"):
        write_images(tmp_path / name, 1)
        (tmp_path / name / "link").symlink_to(f"../{other}")
    found = ("a/000.jpg", "a/link/000.jpg", "b/000.jpg", "b/link/000.jpg")
    assert ImageFolder.scan(tmp_path).files == found


def test_hidden_folders_are_no_classes(image_folder: Path) -> None:
    write_images(image_folder / ".ipynb_checkpoints", 2)
    write_images(image_folder / "a" / ".ipynb_checkpoints", 2)
    folder = ImageFolder.scan(image_folder)
    assert (folder.classes(), len(folder.files)) == (("a", "b"), 24)


def test_a_folder_that_cannot_be_listed_is_refused(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(path: str, listed: Callable[[str], object] = os.scandir) -> object:
        if os.path.basename(path) == "b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"cannot list the folder '.*/b': Permission denied"):
        ImageFolder.scan(image_folder)


def test_images_of_other_formats_are_told_of(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ImageFolder.scan(image_folder)
    folder.describe()
    assert not caplog.records
    (image_folder / "a" / "photo.HEIC").write_bytes(b"1")
    (image_folder / "b" / "sign.ppm").write_bytes(b"1")
    more = ImageFolder.scan(image_folder)
    more.describe()
    assert more.files == folder.files
    assert more.fingerprint() == folder.fingerprint()
    assert "2 image(s)" in caplog.text
    assert "a/photo.HEIC for one" in caplog.text


def test_labels_are_the_top_folders(image_folder: Path) -> None:
    folder = ImageFolder.scan(image_folder)
    assert folder.classes() == ("a", "b")
    assert folder.labels() == [0] * 12 + [1] * 12
    write_images(image_folder, 1)
    with pytest.raises(InputError, match="lies in no class folder"):
        ImageFolder.scan(image_folder).classes()


def test_fingerprint_sees_a_changed_file(image_folder: Path) -> None:
    before = ImageFolder.scan(image_folder).fingerprint()
    assert ImageFolder.scan(image_folder).fingerprint() == before
    write_images(image_folder / "a", 1, size=30)
    assert ImageFolder.scan(image_folder).fingerprint() != before


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "x.tif" if mode == "CMYK" else "x.png"
    Image.new("RGB", (8, 6), (200, 10, 10)).convert(mode).save(tmp_path / name)
    image = ImageFolder.scan(tmp_path).load(0)
    assert (image.mode, image.size) == ("RGB", (8, 6))


def collected(folder: Path, workers: int, world: int, start: int = 0) -> list[torch.Tensor]:
    """The global batches of six steps (two epochs), put together from all ranks."""
    dataset = ViewDataset(ImageFolder.scan(folder), ViewRecipe(8, blur_prob=0.5), 2, 7, None)
    ranks = [
        list(Loader(dataset, EpochBatches(24, 8, 6, 7, start, r, world), workers))
        for r in range(world)
    ]
    return [
        torch.cat([torch.stack(batch.views, 1) for batch in step])
        for step in zip(*ranks, strict=True)
    ]


def test_batches_do_not_depend_on_workers_ranks_or_a_restart(image_folder: Path) -> None:
    alone = collected(image_folder, workers=0, world=1)
    assert len(alone) == 6
    for other in (
        collected(image_folder, workers=2, world=1),
        collected(image_folder, workers=1, world=4),
    ):
        assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))
    resumed = collected(image_folder, workers=2, world=2, start=4)
    assert all(torch.equal(a, b) for a, b in zip(alone[4:], resumed, strict=True))


def test_no_two_views_repeat(image_folder: Path) -> None:
    batches = torch.cat(collected(image_folder, workers=0, world=1))
    views = {view.numpy().tobytes() for pair in batches for view in pair}
    assert len(views) == 2 * 48


def test_every_image_once_an_epoch(image_folder: Path) -> None:
    batches = list(EpochBatches(24, 8, 6, seed=0))
    for epoch in (0, 1):
        seen = [index for batch in batches[epoch * 3 : epoch * 3 + 3] for _, index in batch]
        assert sorted(seen) == list(range(24))
        assert {e for batch in batches[epoch * 3 : epoch * 3 + 3] for e, _ in batch} == {epoch}
    assert [i for _, i in batches[0]] != [i for _, i in batches[3]]


@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
def test_ranks_share_each_global_batch_in_its_order(world: int) -> None:
    count, batch = 1000, 192
    alone = list(EpochBatches(count, batch, 12, seed=3))
    for start in (0, 4, 5, 11):
        shares = [EpochBatches(count, batch, 12, 3, start, rank, world) for rank in range(world)]
        steps = [list(chain.from_iterable(step)) for step in zip(*shares, strict=True)]
        assert steps == alone[start:]
    for epoch in (0, 1):
        pairs = list(chain.from_iterable(alone[epoch * 5 : epoch * 5 + 5]))
        assert len(set(pairs)) == 5 * batch
        assert {e for e, _ in pairs} == {epoch}


def test_draws_of_all_views_are_different() -> None:
    """Two views could only be equal where their draws were."""
    places = [(e, i, v) for e in range(3) for i in (*range(300), 10**6, 2**31) for v in (0, 1)]
    draws = {draw(ViewRecipe(), 500, 375, generator(7, "augmentation", *place)) for place in places}
    assert len(draws) == len(places)


def test_order_of_operations_of_v1_and_v2() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    view = View((0, 0, 9, 9), (("saturation", 0.2), ("hue", 0.3)), True, None, False)
    grey_first = apply(ViewRecipe(9, grayscale_first=True), view, image)
    grey_last = apply(ViewRecipe(9, grayscale_first=False), view, image)
    for out in (grey_first, grey_last):
        channels = np.asarray(out).astype(int)
        assert abs(channels - channels[..., :1]).max() == 0
    assert np.asarray(grey_first).tobytes() != np.asarray(grey_last).tobytes()


def test_views_equal_torchvisions_transforms_with_the_same_parameters() -> None:
    from torchvision.transforms import functional as TF

    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    view = draw(ViewRecipe(16), 60, 40, generator(3, "test", 0))
    out = TF.resized_crop(image, *view.crop, size=[16, 16])
    out = TF.rgb_to_grayscale(out, 3) if view.grayscale else out
    for name, factor in view.jitter:
        out = {
            "brightness": TF.adjust_brightness,
            "contrast": TF.adjust_contrast,
            "saturation": TF.adjust_saturation,
            "hue": TF.adjust_hue,
        }[name](out, factor)
    out = TF.hflip(out) if view.flip else out
    assert apply(ViewRecipe(16), view, image).tobytes() == out.tobytes()


def test_normalise_equals_torchvision() -> None:
    from torchvision.transforms import functional as TF

    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = TF.normalize(images.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalise(images, channels_last=False), expected)
