"""Were evaluation images seen in training? Each is compared with the real images that were used.

An accuracy on images that a student learned from, or on near copies of them, says little about new
ones. Two images count as the same where the root of their mean squared difference, as they are or
mirrored, is at most

- half of what usually lies between an evaluation image and the one most like it, and
- half of the evaluation image's own contrast: between two pictures of the sky lies little.

A file that was saved again, scaled down and up or slightly noisy is found so. A crop, a turn or
another light is not, nor another picture of the same thing; and the measure knows pixels, not
meaning: where all images look alike, different ones may lie below the limit. `alike` says how often
that happens among the evaluation images themselves.

No pair below the limit is missed. What is searched is a short descriptor, the means over blocks of
pixels along the axes that evaluation images differ most on. Two descriptors are never farther apart
than their images, so those farther apart than the limit need no further look.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ShapeError
from hydistill_edge.images.leak import NEAR_COPY, pixel_distances, to_nearest_other
from hydistill_edge.images.thumbnails import block_shares, thumbnails

Images = NDArray[np.uint8]
Places = NDArray[np.int64]

LIMIT_SHARE = NEAR_COPY
"""Of the usual distance, and of an image's contrast."""

SHOWN = 20

_VARIANCE = 0.9  # of the evaluation images' thumbnails that the axes of a descriptor explain
_QUERIES = 2000  # evaluation images at most that the usual distance is taken from
_ROWS = 128  # of a distance matrix at once: a processor's cache holds them
_PAIRS = 1024  # of images that are compared pixel by pixel at once
_ROUNDING = 0.05  # squared levels: float32 sums of squares up to 255**2


@dataclass(frozen=True)
class Overlap:
    """Which evaluation images were seen; distances are in levels of 255.

    Attributes:
        places: of the evaluation images that were seen, ascending, shape (k,).
        used: place of the used image most like each, shape (k,).
        distances: between both, shape (k,) float32; 0 for the same pixels.
        mirrored: whether one is the other's mirror image, shape (k,).
        evaluated: evaluation images.
        compared: used images.
        usual: median distance of an evaluation image to the nearest other one; None where there is
            no other, and then the same pixels are looked for alone.
        alike: share of the evaluation images with another one of them below the limit.
    """

    places: Places
    used: Places
    distances: NDArray[np.float32]
    mirrored: NDArray[np.bool_]
    evaluated: int
    compared: int
    usual: float | None
    alike: float

    @property
    def unseen(self) -> Places:
        """Places of the evaluation images that were not seen, ascending."""
        return np.setdiff1d(np.arange(self.evaluated), self.places)

    def to_dict(self, *, evaluated: Sequence[str], used: Sequence[str]) -> dict[str, Any]:
        """Return plain values.

        Args:
            evaluated: ids of all evaluation images.
            used: ids of all used images.
        """
        exact = self.distances == 0
        return {
            "compared_with": self.compared,
            "exact": int(exact.sum()),
            "near": int((~exact).sum()),
            "mirrored": int(self.mirrored.sum()),
            "usual_distance": self.usual,
            "limit": None if self.usual is None else LIMIT_SHARE * self.usual,
            "limit_share": LIMIT_SHARE,
            "alike_share": self.alike,
            "images": [
                {
                    "id": evaluated[place],
                    "used": used[other],
                    "distance": float(distance),
                    "mirrored": bool(mirrored),
                }
                for place, other, distance, mirrored in zip(
                    self.places, self.used, self.distances, self.mirrored, strict=True
                )
            ],
        }


def find_overlap(evaluated: Images, pieces: Iterable[tuple[Places, Images]]) -> Overlap:
    """Return which evaluation images are among the used ones.

    Args:
        evaluated: shape (M, H, W, C) uint8, at least one.
        pieces: the used images in pieces that fit into memory: their places, shape (n,), and the
            images themselves, shape (n, H, W, C) uint8.

    Raises:
        ShapeError: images of different sizes, or none.
    """
    if not len(evaluated):
        raise ShapeError("no evaluation image to compare; expected at least one")
    usual, limits, alike = _limits(evaluated)
    search = _Search(evaluated, limits)
    compared = 0
    for places, images in pieces:
        if images.shape[1:] != evaluated.shape[1:]:
            raise ShapeError(
                f"evaluation images of shape {evaluated.shape[1:]} and used ones of shape "
                f"{images.shape[1:]}; expected the same"
            )
        search.add(places, images)
        compared += len(images)
    (plain, mirror), (used, used_mirrored) = np.split(search.best, 2), np.split(search.used, 2)
    mirrored = mirror < plain
    distances = np.minimum(plain, mirror)
    seen = np.flatnonzero(distances <= limits)
    return Overlap(
        places=seen,
        used=np.where(mirrored, used_mirrored, used)[seen],
        distances=distances[seen],
        mirrored=mirrored[seen],
        evaluated=len(evaluated),
        compared=compared,
        usual=usual,
        alike=alike,
    )


class _Search:
    """The nearest used image of every evaluation image, among those within its limit.

    Attributes:
        best: distance to it, infinite where there is none; images first, then their mirror images.
        used: its place; -1 where there is none.

    Args:
        evaluated: shape (M, H, W, C) uint8.
        limits: shape (M,).
    """

    def __init__(self, evaluated: Images, limits: NDArray[np.float32]) -> None:
        self._images = np.concatenate([evaluated, evaluated[:, :, ::-1]])
        self.best = np.full(len(self._images), np.inf, np.float32)
        self.used = np.full(len(self._images), -1, np.int64)
        self._reach = np.square(np.concatenate([limits, limits])) + _ROUNDING
        self._describe = _Descriptor(evaluated)
        wanted = self._describe(self._images)
        self._squares = np.square(wanted).sum(axis=1)
        # With the used image's square behind it, one product gives all but the own square.
        ones = np.ones((len(wanted), 1), np.float32)
        self._asked = np.concatenate([-2.0 * wanted, ones], axis=1)

    def add(self, places: Places, images: Images) -> None:
        """Look among some used images, shape (n, H, W, C), for nearer ones."""
        others = self._describe(images)
        table = np.concatenate([others, np.square(others).sum(axis=1, keepdims=True)], axis=1).T
        for start in range(0, len(self._asked), _ROWS):
            part = slice(start, start + _ROWS)
            within = self._reach[part] - self._squares[part]
            rows, columns = np.nonzero(self._asked[part] @ table <= within[:, None])
            for at in range(0, len(rows), _PAIRS):
                some = slice(at, at + _PAIRS)
                self._compare(start + rows[some], columns[some], places, images)

    def _compare(self, rows: Places, columns: Places, places: Places, images: Images) -> None:
        found = pixel_distances(self._images[rows], images[columns])
        nearer = np.flatnonzero(found < self.best[rows])
        nearer = nearer[np.argsort(-found[nearer], kind="stable")]  # the nearest is written last
        rows, found = rows[nearer], found[nearer]
        self.best[rows], self.used[rows] = found, places[columns[nearer]]
        self._reach[rows] = np.minimum(self._reach[rows], np.square(self.best[rows]) + _ROUNDING)


def _limits(images: Images) -> tuple[float | None, NDArray[np.float32], float]:
    """Return the usual distance, the limit of every image, and the share of those below it."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(_QUERIES, len(images))).astype(np.int64))
    own = to_nearest_other(images, rows=rows)
    if not len(own):
        return None, np.zeros(len(images), np.float32), 0.0
    usual = float(np.median(own))
    limits = np.minimum(LIMIT_SHARE * usual, LIMIT_SHARE * _contrasts(images)).astype(np.float32)
    return usual, limits, float((own <= limits[rows]).mean())


def _contrasts(images: Images) -> NDArray[np.float32]:
    """Return the standard deviation of every image around its channels' means, shape (N,)."""
    found = np.empty(len(images), np.float32)
    for start in range(0, len(images), _ROWS):
        part = images[start : start + _ROWS].astype(np.float32)
        found[start : start + len(part)] = np.sqrt(part.var(axis=(1, 2)).mean(axis=1))
    return found


class _Descriptor:
    """Makes descriptors; the distance between two is at most that between their images.

    Args:
        images: that the axes are taken from, shape (N, H, W, C) uint8.
    """

    def __init__(self, images: Images) -> None:
        _, height, width, channels = images.shape
        # Weighted so, the squared distance of two thumbnails is a mean over the images' values.
        self._weights = np.sqrt(block_shares((height, width), channels))
        small = thumbnails(images) * self._weights
        self._middle = small.mean(axis=0)
        small -= self._middle
        variances, axes = np.linalg.eigh((small.T @ small).astype(np.float64))
        explained = np.cumsum(variances[::-1])
        count = 1 + int(np.searchsorted(explained, _VARIANCE * explained[-1]))
        self._axes = np.ascontiguousarray(axes[:, ::-1][:, :count], np.float32)

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """Return descriptors, shape (N, axes) float32."""
        described: NDArray[np.float32] = (
            thumbnails(images) * self._weights - self._middle
        ) @ self._axes
        return described
