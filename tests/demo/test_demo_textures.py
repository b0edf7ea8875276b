from __future__ import annotations

import numpy as np
import pytest

from demo import textures

PERIOD = 0.5
# The smallest shift (in units of the period) after which each pattern must look the same again.
SHIFTS = {
    "stripes": (1.0, 0.0),
    "checker": (1.0, 1.0),
    "dots": (1.0, 1.0),
    "zigzag": (1.2, 1.0),
    "bricks": (1.6, 1.6),  # two courses of 0.8
}


def plane(shift: tuple[float, float] = (0.0, 0.0)) -> tuple[textures.Field, textures.Field]:
    v, u = np.mgrid[-1:1:64j, -1:1:64j]
    move = np.multiply(shift, PERIOD)
    return (u + move[0]).astype(np.float32), (v + move[1]).astype(np.float32)


@pytest.mark.parametrize("name", SHIFTS)
def test_pattern_repeats_after_its_period_and_not_before(name: str) -> None:
    texture = getattr(textures, name)
    here = texture(*plane(), PERIOD, np.random.default_rng(3))
    there = texture(*plane(SHIFTS[name]), PERIOD, np.random.default_rng(3))
    half = texture(*plane((SHIFTS[name][0] / 2, 0)), PERIOD, np.random.default_rng(3))
    assert np.abs(here - there).mean() < 1e-3
    assert np.abs(here - half).mean() > 0.1
    assert here.min() == 0
    assert here.max() == 1


def test_rings_depend_on_the_distance_only_and_spokes_on_the_angle_only() -> None:
    angle, radius = np.meshgrid(np.linspace(0, 6, 50), np.linspace(0.1, 1, 40))
    u = (radius * np.cos(angle)).astype(np.float32)
    v = (radius * np.sin(angle)).astype(np.float32)
    rings = textures.rings(u, v, PERIOD, np.random.default_rng(0))
    spokes = textures.spokes(u, v, PERIOD, np.random.default_rng(0))
    np.testing.assert_allclose(rings, rings[:, :1].repeat(50, 1), atol=1e-4)
    np.testing.assert_allclose(spokes, spokes[:1].repeat(40, 0), atol=1e-4)
    assert np.ptp(rings[:, 0]) == 1
    assert np.ptp(spokes[0]) == 1


def test_a_wheel_has_whole_spokes() -> None:
    # 3 / 0.5 = 6 rays: six equal turns of 60 degrees, with no seam at 180 degrees.
    angle = np.linspace(-np.pi, np.pi, 721)
    u, v = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    light = textures.spokes(u, v, PERIOD, np.random.default_rng(1))
    np.testing.assert_allclose(light[120:], light[:-120], atol=1e-3)
    np.testing.assert_allclose(light[0], light[-1], atol=1e-3)


def test_smooth_noise_stays_in_range_and_is_smooth() -> None:
    noise = textures.smooth_noise(60, 80, 3, np.random.default_rng(0))
    assert noise.shape == (60, 80)
    assert np.abs(noise).max() <= 1
    # A patch is 20 to 27 pixels wide: no step between neighbours comes near the full range of 2.
    assert max(np.abs(np.diff(noise, axis=axis)).max() for axis in (0, 1)) < 0.25
    assert np.ptp(noise) > 0.5
