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
    rows, columns, area = _blocks(height, width, side)
    found = np.empty((count, len(rows) * len(columns) * channels), np.float32)
    for start in range(0, count, _ROWS):
        part = images[start : start + _ROWS].astype(np.float32)
        sums = np.add.reduceat(np.add.reduceat(part, rows, axis=1), columns, axis=2)
        found[start : start + len(part)] = (sums / area[:, :, None]).reshape(len(part), -1)
    return found


def block_shares(
    size: tuple[int, int], channels: int, *, side: int = SIDE_PX
) -> NDArray[np.float32]:
    """Return which share of an image's values each value of its thumbnail stands for.

    Args:
        size: (height, width) of the image, in pixels.
        channels: of the image.
        side: as for `thumbnails`.

    Returns:
        Shape (at most side * side * C,) float32; the sum is 1.
    """
    height, width = size
    _, _, area = _blocks(height, width, side)
    shares = np.repeat(area.ravel() / (height * width * channels), channels)
    return shares.astype(np.float32)


def _blocks(
    height: int, width: int, side: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return where the blocks begin, down and across, and their areas in pixels."""
    rows, columns = (
        np.unique(np.linspace(0, length, min(side, length) + 1).astype(np.int64)[:-1])
        for length in (height, width)
    )
    return rows, columns, np.diff(rows, append=height)[:, None] * np.diff(columns, append=width)
