"""A split in two, decided by content and seed.

An image's rank is a mix of its hash and the seed. So a choice does not depend on the order of
storage, and equal images always fall on the same side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import TransferSetError
from hydistill_edge.images.content_hash import Hashes

Places = NDArray[np.int64]


def stratified_split(
    hashes: Hashes, groups: NDArray[np.integer], fraction: float, *, seed: int
) -> tuple[Places, Places]:
    """Split in two, each group in proportion (largest remainders, so the total is right too).

    Args:
        hashes: content hashes, shape (N, 32) uint8, all different.
        groups: shape (N,) the group of each image, such as its pseudo-label.
        fraction: share of the second part, between 0 and 1.
        seed: another seed, another split.

    Returns:
        The rest and the part: rising places, shapes (N - n,) and (n,).

    Raises:
        TransferSetError: a fraction outside (0, 1), or one that leaves a side empty.
    """
    total = round(fraction * len(hashes))
    if not 0 < fraction < 1 or not 0 < total < len(hashes):
        raise TransferSetError(
            f"cannot split {len(hashes)} images at {fraction}: both sides need at least one; "
            "expected a fraction between 0 and 1 and enough images"
        )
    names, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shares = fraction * sizes
    quota = np.floor(shares).astype(np.int64)
    # largest remainders first; names break ties, so the result is the same everywhere
    order = np.lexsort((names, quota - shares))
    quota[order[: total - int(quota.sum())]] += 1
    part = _rank_in_group(_keys(hashes, seed), members) < quota[members]
    return np.flatnonzero(~part), np.flatnonzero(part)


def _keys(hashes: Hashes, seed: int) -> NDArray[np.uint64]:
    words = np.ascontiguousarray(hashes[:, :8]).view(np.uint64).ravel()
    return _mixed(words ^ _mixed(np.array([seed % 2**64], np.uint64)))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words (SplitMix64, https://prng.di.unimi.it/splitmix64.c)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def _rank_in_group(keys: NDArray[np.uint64], groups: NDArray[np.integer]) -> Places:
    """Return each row's place among the rows of its group, by rising key."""
    order = np.lexsort((keys, groups))
    ordered = groups[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - starts
    return ranks
