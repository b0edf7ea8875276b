"""Surface patterns, each a function of a point on the object.

A pattern takes object coordinates ``u``, ``v`` (float arrays of one shape; the object's half size
is 1), a ``period`` in the same unit and a random generator, and returns the share of the light
tone, 0 to 1. Edges are soft, so that a pattern neither aliases nor rings when it is drawn small.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]
Texture = Callable[[Field, Field, float, np.random.Generator], Field]

SHARPNESS = 2.5  # slope at an edge; 1 would be a plain sine


def _soft(wave: Field) -> Field:
    """Map -1..1 to 0..1 with a steep, not a hard, change at 0."""
    return np.clip(0.5 + 0.5 * SHARPNESS * wave, 0, 1).astype(np.float32)


def _sine(t: Field) -> Field:
    return np.sin(2 * np.pi * t).astype(np.float32)


def _triangle(t: Field) -> Field:
    """A triangle wave of period 1 between -1 and 1."""
    return (4 * np.abs(t - np.floor(t + 0.5)) - 1).astype(np.float32)


def stripes(u: Field, v: Field, period: float, rng: np.random.Generator) -> Field:
    """Straight bars."""
    return _soft(_sine(u / period + rng.uniform()))


def checker(u: Field, v: Field, period: float, rng: np.random.Generator) -> Field:
    """A chessboard."""
    return _soft(2 * _sine(u / period + rng.uniform()) * _sine(v / period + rng.uniform()))


def dots(u: Field, v: Field, period: float, rng: np.random.Generator) -> Field:
    """Round light spots on a square lattice."""
    lattice = _sine(u / period + rng.uniform()) + _sine(v / period + rng.uniform())
    return _soft(lattice - 0.6)


def rings(u: Field, v: Field, period: float, rng: np.random.Generator) -> Field:
    """Circles around the object's centre."""
    return _soft(_sine(np.hypot(u, v) / period + rng.uniform()))


def zigzag(u: Field, v: Field, period: float, rng: np.random.Generator) -> Field:
    """Bars that bend sharply to and fro."""
    bend = 0.3 * _triangle(u / (1.2 * period) + rng.uniform())
    return _soft(_sine(v / period + bend + rng.uniform()))


def spokes(u: Field, v: Field, period: float, rng: np.random.Generator) -> Field:
    """Rays from the object's centre; about as many as the period goes into half a turn."""
    count = round(3.0 / period)
    return _soft(_sine(count * np.arctan2(v, u) / (2 * np.pi) + rng.uniform()))


def bricks(u: Field, v: Field, period: float, rng: np.random.Generator) -> Field:
    """Light courses with thin dark joints, every other course shifted by half a brick."""
    row = v / (0.8 * period) + rng.uniform()
    column = u / (1.6 * period) + rng.uniform() + 0.5 * (np.floor(row) % 2)
    joint_v = 0.8 * np.abs(row - np.round(row))
    joint_u = 1.6 * np.abs(column - np.round(column))
    return _soft(6 * (np.minimum(joint_u, joint_v) - 0.12))


def blotches(u: Field, v: Field, period: float, rng: np.random.Generator) -> Field:
    """Irregular patches, without any direction or repetition."""
    total = np.zeros_like(u)
    for angle in rng.uniform(0, 2 * np.pi, 8):
        wave = (np.cos(angle) * u + np.sin(angle) * v) / (1.2 * period)
        total += _sine(wave + rng.uniform())
    return _soft(total / 2)


def smooth_noise(height: int, width: int, cells: int, rng: np.random.Generator) -> Field:
    """Noise between -1 and 1 (height x width) whose patches are about 1/``cells`` of the side."""
    coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(noise, -1, 1)
