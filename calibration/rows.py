"""Rows of a transfer set, picked by content: neither their order nor their names decide."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ShapeError

Rows = NDArray[np.int64]
"""Places of images in the transfer set, rising, shape (n,)."""

Hashes = NDArray[np.uint8]
"""Content hashes, shape (N, bytes) uint8."""


def check_columns(hashes: Hashes, **columns: Sequence[Any] | NDArray[Any]) -> None:
    """Raise ShapeError unless every column is as long as the hashes, which are uint8 (N, bytes)."""
    if hashes.ndim != 2 or hashes.dtype != np.uint8:
        raise ShapeError(f"hashes are {hashes.dtype} {hashes.shape}; expected uint8 (N, bytes)")
    for name, column in columns.items():
        if len(column) != len(hashes):
            raise ShapeError(f"{len(column)} {name} for {len(hashes)} hashes; expected one each")


def keys(hashes: Hashes) -> NDArray[np.str_]:
    """One sortable value per hash, shape (N,); hex, because NumPy drops trailing zero bytes."""
    rows = np.ascontiguousarray(hashes)
    return np.array([row.tobytes().hex() for row in rows], np.str_)


def distinct(hashes: Hashes) -> Rows:
    """Return the first row of every different image, rising."""
    _, first = np.unique(keys(hashes), return_index=True)
    return np.sort(first).astype(np.int64)


def content_order(hashes: Hashes, seed: int) -> NDArray[np.uint64]:
    """One pseudo-random value per image from its content and the seed, shape (N,)."""
    salt = (seed % 2**64).to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(row.tobytes(), digest_size=8, salt=salt).digest()
        for row in np.ascontiguousarray(hashes)
    )
    return np.frombuffer(digests, np.uint64)


def balanced(
    rows: Rows,
    labels: NDArray[np.int64],
    order: NDArray[np.uint64],
    count: int,
    confidences: NDArray[np.float64] | None,
) -> Rows:
    """Return `count` of the rows (all, where there are fewer), classes as equal as can be."""
    if count <= 0 or not len(rows):
        return np.empty(0, np.int64)
    ranked = rows[np.lexsort((order[rows], labels[rows]))]
    starts = np.searchsorted(labels[ranked], labels[ranked], side="left")
    rounds = np.arange(len(ranked)) - starts  # one of each class, then a second of each, ...
    taken = ranked[np.lexsort((order[ranked], rounds))[:count]]
    if confidences is None:
        return np.sort(taken)
    spread = []
    for label, quota in zip(*np.unique(labels[taken], return_counts=True), strict=True):
        of_class = rows[labels[rows] == label]
        by_confidence = of_class[np.lexsort((order[of_class], confidences[of_class]))]
        # The middle of each of `quota` equal parts of the ranking: never twice the same place.
        places = (np.arange(quota) * 2 + 1) * len(of_class) // (2 * quota)
        spread.append(by_confidence[places])
    return np.sort(np.concatenate(spread))
