"""Thumbnails: what is left of an image when only a few blocks of pixels can be told apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE_PX = 8

_ROWS = 512  # images at once


def thumbnails(images: NDArray[np.uint8], *, side: int = SIDE_PX) -> NDArray[np.float32]:
    """Return means over blocks of pixels.

    Args:
        images: shape (N, H, W, C) uint8.
        side: blocks per side, at most; fewer for smaller images.

    Returns:
        Shape (N, at most side * side * C) float32, in levels from 0 to 255.
    """
    count, height, width, channels = images.shape
    rows = np.unique(np.linspace(0, height, min(side, height) + 1).astype(int)[:-1])
    columns = np.unique(np.linspace(0, width, min(side, width) + 1).astype(int)[:-1])
    area = np.diff(rows, append=height)[:, None] * np.diff(columns, append=width)
    found = np.empty((count, len(rows) * len(columns) * channels), np.float32)
    for start in range(0, count, _ROWS):
        part = images[start : start + _ROWS].astype(np.float32)
        sums = np.add.reduceat(np.add.reduceat(part, rows, axis=1), columns, axis=2)
        found[start : start + len(part)] = (sums / area[:, :, None]).reshape(len(part), -1)
    return found
