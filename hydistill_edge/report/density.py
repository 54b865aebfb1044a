"""Where points lie densely: a smooth density, and the levels whose lines hold a share of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_POINTS = 3
"""Points without which a density says nothing."""

_CELLS = 72
_NARROWEST = 0.02
"""Least width of the kernel, as a share of the window's longer side: lines stay visible."""


@dataclass(frozen=True)
class Density:
    """A density on a grid.

    Attributes:
        x: shape (n,).
        y: shape (n,).
        values: shape (n, n), rows along y; their sum is 1.
    """

    x: Floats
    y: Floats
    values: Floats

    def level(self, share: float) -> float:
        """Return the density above which the given share of all lies, the densest part first."""
        falling = np.sort(self.values, axis=None)[::-1]
        place = int(np.searchsorted(np.cumsum(falling), share * falling.sum()))
        return float(falling[min(place, len(falling) - 1)])


def density(
    points: Sequence[tuple[float, float]], window: tuple[float, float, float, float]
) -> Density | None:
    """Return a Gaussian kernel density, the kernel as wide as Scott's rule says.

    Args:
        points: (x, y).
        window: least x, largest x, least y, largest y of the grid.

    Returns:
        None for fewer than `LEAST_POINTS` points.
    """
    if len(points) < LEAST_POINTS:
        return None
    left, right, low, high = window
    x, y = np.linspace(left, right, _CELLS), np.linspace(low, high, _CELLS)
    at = np.array(points, np.float64)
    spread = float(np.sqrt(at.var(axis=0, ddof=1).mean()))
    width = max(spread * len(at) ** (-1 / 6), _NARROWEST * max(right - left, high - low))
    across = np.exp(-0.5 * ((x[:, None] - at[:, 0]) / width) ** 2)
    along = np.exp(-0.5 * ((y[:, None] - at[:, 1]) / width) ** 2)
    values: Floats = along @ across.T
    return Density(x, y, values / values.sum())
