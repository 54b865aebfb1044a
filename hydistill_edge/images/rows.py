"""Rows: which images of a source are taken, written the way Python writes a slice."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ImageSourceError

Rows = range | NDArray[np.int64]
"""Places of images in a source."""

_SLICE = re.compile(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*(?::\s*(\d+)?\s*)?")


def parse_rows(text: str) -> slice:
    """Parse `"0:5000"`, `"::5"` or `"0:50000:5"`; empty means all rows.

    Raises:
        ImageSourceError: not a slice, or a step of zero.
    """
    if not text.strip():
        return slice(None)
    match = _SLICE.fullmatch(text)
    step = int(match[3]) if match and match[3] else 1
    if match is None or step == 0:
        raise ImageSourceError(
            f'rows "{text}" cannot be read; expected a slice such as "0:5000" or "::5", with a '
            "step of at least 1"
        )
    start, stop = (int(part) if part else None for part in (match[1], match[2]))
    return slice(start, stop, step)


def select_rows(
    count: int, *, rows: str = "", shuffle_seed: int | None = None, limit: int | None = None
) -> Rows:
    """Return the places of the images to take: the slice first, then shuffled, then limited.

    Args:
        count: images in the source.
        rows: a slice as in `parse_rows`.
        shuffle_seed: None keeps the order.
        limit: at most so many.

    Returns:
        Places from 0: a range where the order is kept, so a million rows cost nothing.
    """
    chosen = range(*parse_rows(rows).indices(count))
    if shuffle_seed is None:
        return chosen[:limit]
    order = np.random.default_rng(shuffle_seed).permutation(len(chosen))[:limit]
    shuffled: NDArray[np.int64] = chosen.start + order * chosen.step
    return shuffled
