"""Outlines of the objects: closed polygons around the origin, no point farther off than 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]


def _circle(radius: float, corners: int, turn: float = 0.0) -> Points:
    """A regular polygon; ``turn`` in radians, 0 puts a corner on top."""
    angles = turn + np.linspace(0, 2 * np.pi, corners, endpoint=False) - np.pi / 2
    return (radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def _closed(*points: tuple[float, float]) -> Points:
    return np.asarray(points, np.float32)


def _star(tips: int, inner: float) -> Points:
    star = _circle(1.0, 2 * tips)
    star[1::2] *= inner
    return star


def _cross(arm: float) -> Points:
    a, o = arm, 0.95
    return _closed(
        (-a, -o), (a, -o), (a, -a), (o, -a), (o, a), (a, a),
        (a, o), (-a, o), (-a, a), (-o, a), (-o, -a), (-a, -a),
    )  # fmt: skip


# Each outline is a list of polygons; a second one inside the first is a hole (even-odd rule).
DISC = [_circle(1.0, 48)]
SQUARE = [0.95 * _circle(1.0, 4, np.pi / 4)]
TRIANGLE = [_circle(1.0, 3)]
STAR = [_star(5, 0.5)]
CROSS = [_cross(0.38)]
RING = [_circle(1.0, 48), _circle(0.3, 32)]
SLAB = [_closed((-1.0, -0.55), (1.0, -0.55), (1.0, 0.55), (-1.0, 0.55))]
HEXAGON = [_circle(1.0, 6)]
