from __future__ import annotations

import itertools

import numpy as np
import pytest

from demo.scenes import CLASSES, Box, draw_object, portrait, scene

UNTOUCHED = -1000.0


def scenes(count: int) -> list[tuple[np.ndarray, list[Box]]]:
    names = list(CLASSES)
    return [
        scene(names[i % len(names)], 128, 160, (18, 34), np.random.default_rng([7, i]))
        for i in range(count)
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_box_is_the_extent_of_the_pixels_that_were_drawn(name: str) -> None:
    for seed in range(20):
        canvas = np.full((90, 100, 3), UNTOUCHED, np.float32)
        box = draw_object(canvas, name, (48.3, 44.7), 30, np.random.default_rng(seed))
        # Slow reference: a pixel more than half covered has lost more than half its distance.
        rows, columns = [], []
        for y in range(90):
            for x in range(100):
                if canvas[y, x].max() > UNTOUCHED / 2 + 100:
                    rows.append(y)
                    columns.append(x)
        found = (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
        # Tones shift the threshold by a fraction of a pixel, thin tips by at most one.
        assert np.abs(np.subtract(found, (box.x0, box.y0, box.x1, box.y1))).max() <= 1
        assert box.name == name


def test_size_of_a_disc_is_that_asked_for() -> None:
    # The aspect ratio changes by at most exp(±0.15): each side lies within exp(±0.075) of 2r.
    for seed in range(20):
        canvas = np.zeros((100, 100, 3), np.float32)
        box = draw_object(canvas, "target", (50.0, 50.0), 30, np.random.default_rng(seed))
        for side in (box.x1 - box.x0, box.y1 - box.y0):
            assert 60 * np.exp(-0.075) - 1.5 <= side <= 60 * np.exp(0.075) + 1.5


def test_objects_lie_inside_the_picture_and_never_touch() -> None:
    counts = set()
    for image, boxes in scenes(60):
        assert image.shape == (128, 160, 3)
        assert image.dtype == np.uint8
        counts.add(len(boxes))
        for box in boxes:
            assert 0 <= box.x0 < box.x1 <= 160
            assert 0 <= box.y0 < box.y1 <= 128
        for a, b in itertools.combinations(boxes, 2):
            wide = min(a.x1, b.x1) - max(a.x0, b.x0)
            high = min(a.y1, b.y1) - max(a.y0, b.y0)
            smaller = min((a.x1 - a.x0) * (a.y1 - a.y0), (b.x1 - b.x0) * (b.y1 - b.y0))
            assert max(wide, 0) * max(high, 0) < 0.35 * smaller  # corners of the boxes may
    assert counts == {1, 2, 3, 4}


def test_first_object_is_of_the_class_asked_for() -> None:
    names = list(CLASSES)
    for index, (_, boxes) in enumerate(scenes(24)):
        assert boxes[0].name == names[index % len(names)]


def test_colour_alone_tells_little_and_the_pattern_much() -> None:
    def set_of(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        pictures = [
            (portrait(name, 64, np.random.default_rng([number, first + i])), number)
            for number, name in enumerate(CLASSES)
            for i in range(count)
        ]
        images, labels = zip(*pictures, strict=True)
        return np.stack(images).astype(np.float32), np.array(labels)

    def nearest(train: np.ndarray, test: np.ndarray) -> float:
        distance = ((test[:, None] - train[None]) ** 2).sum(-1)
        return float((train_labels[distance.argmin(1)] == test_labels).mean())

    train, train_labels = set_of(0, 40)
    test, test_labels = set_of(1000, 20)

    def colour(images: np.ndarray) -> np.ndarray:
        return images.mean((1, 2))

    def brightness_spectrum(images: np.ndarray) -> np.ndarray:
        grey = images.mean(3)
        grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
        return np.abs(np.fft.rfft2(grey))[:, :16, :16].reshape(len(grey), -1)

    chance = 1 / len(CLASSES)
    assert nearest(colour(train), colour(test)) < 2 * chance
    assert nearest(brightness_spectrum(train), brightness_spectrum(test)) > 4 * chance
