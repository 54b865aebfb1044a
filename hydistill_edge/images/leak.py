"""Do made images show collected ones? Each is compared with the collected image nearest to it.

A generator trained on few images may repeat them. Its images would then carry what the collected
ones show, and could not be passed on freely. The measure is the distance between collected images
themselves: a made image nearer to a collected one than half of what usually lies between two
collected images is called a near copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ShapeError
from hydistill_edge.images.thumbnails import thumbnails

NEAR_COPY = 0.5
"""Share of the usual distance between collected images below which an image is a near copy."""

SHOWN = 20

_ROWS = 256  # of a distance matrix at once


@dataclass(frozen=True)
class LeakCheck:
    """How near made images come to collected ones; distances are per pixel value, in levels of 255.

    Attributes:
        distances: of each made image to the nearest collected one, shape (M,) float32: the root of
            the mean squared difference.
        nearest: place of that collected image, shape (M,) int64.
        usual: median distance of a collected image to the nearest other one; None where there is
            no other.
        limit: below it, an image is a near copy; None as above.
    """

    distances: NDArray[np.float32]
    nearest: NDArray[np.int64]
    usual: float | None
    limit: float | None

    @property
    def near_copies(self) -> NDArray[np.int64]:
        """Places of the near copies, nearest first."""
        limit = 0.0 if self.limit is None else self.limit
        places = np.flatnonzero(self.distances <= limit)
        return places[np.argsort(self.distances[places], kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; of the near copies, the nearest few by name of their places."""
        copies = self.near_copies
        return {
            "made": len(self.distances),
            "usual_distance": self.usual,
            "limit": self.limit,
            "distance_min": float(self.distances.min()),
            "distance_median": float(np.median(self.distances)),
            "exact_copies": int((self.distances == 0).sum()),
            "near_copies": len(copies),
            "nearest": [
                {
                    "made": int(place),
                    "collected": int(self.nearest[place]),
                    "distance": float(self.distances[place]),
                }
                for place in copies[:SHOWN]
            ],
        }


def check_leak(made: NDArray[np.uint8], collected: NDArray[np.uint8]) -> LeakCheck:
    """Compare made images with collected ones.

    The nearest one is found by thumbnails, and the distance is then taken between whole images.

    Args:
        made: shape (M, H, W, C) uint8, at least one.
        collected: shape (N, H, W, C) uint8, at least one.

    Raises:
        ShapeError: images of different sizes, or none.
    """
    if made.shape[1:] != collected.shape[1:] or not len(made) or not len(collected):
        raise ShapeError(
            f"made images {made.shape} and collected ones {collected.shape}; expected "
            "(M, H, W, C) and (N, H, W, C), at least one of each"
        )
    of_collected = thumbnails(collected)
    nearest = _nearest(thumbnails(made), of_collected)
    own = to_nearest_other(collected, of_collected)
    usual = float(np.median(own)) if len(own) else None
    return LeakCheck(
        distances=pixel_distances(made, collected[nearest]),
        nearest=nearest,
        usual=usual,
        limit=None if usual is None else NEAR_COPY * usual,
    )


def to_nearest_other(
    images: NDArray[np.uint8],
    small: NDArray[np.float32] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return how far images lie from the nearest other one, found by thumbnails.

    Args:
        images: shape (N, H, W, C) uint8.
        small: their thumbnails, where they are made already.
        rows: places of the images to look at, shape (n,); None for all.

    Returns:
        Shape (n,) float32, the root of the mean squared difference, in levels of 255; none where
        there is no other image.
    """
    if len(images) < 2:
        return np.empty(0, np.float32)
    small = thumbnails(images) if small is None else small
    rows = np.arange(len(images)) if rows is None else rows
    return pixel_distances(images[rows], images[_nearest(small[rows], small, own=rows)])


def _nearest(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    *,
    own: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the place of the nearest in `second` of every row; `own` places do not count."""
    # Centered: the differences of large squares would lose what tells two images apart.
    middle = second.mean(axis=0)
    others = second - middle
    squares = np.square(others).sum(axis=1)
    found = np.empty(len(first), np.int64)
    for start in range(0, len(first), _ROWS):
        part = first[start : start + _ROWS] - middle
        distances = squares - 2.0 * part @ others.T
        if own is not None:
            distances[np.arange(len(part)), own[start : start + len(part)]] = np.inf
        found[start : start + len(part)] = distances.argmin(axis=1)
    return found


def pixel_distances(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how far images (n, H, W, C) are from those of the same place, shape (n,) float32.

    The root of the mean squared difference, in levels of 255.
    """
    found = np.empty(len(first), np.float32)
    for start in range(0, len(first), _ROWS):
        part = slice(start, start + _ROWS)
        difference = first[part].astype(np.float32) - second[part].astype(np.float32)
        found[part] = np.sqrt(np.square(difference).mean(axis=(1, 2, 3)))
    return found
