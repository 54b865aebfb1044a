"""Which images calibrate, which prove parity, and which travel as golden images.

The three sets share no image, by content hash. Each is balanced over the teacher's classes, and a
choice depends on the images' contents and the seed alone: neither on their order nor on their
names. Fewer images than asked for is an answer, written into `reason`, as long as there are any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydistill_edge.errors import ShapeError, TransferSetError
from hydistill_edge.targets.base import Images

DEFAULT_COUNT = 256

Rows = NDArray[np.int64]
"""Places of images in the transfer set, rising, shape (n,)."""

Hashes = NDArray[np.uint8]
"""Content hashes, shape (N, bytes) uint8."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The images of one set, as calibration.json tells about them.

    Attributes:
        rows: their places in the transfer set.
        ids: their source ids.
        digest: sha256 (hex) over their pixels, in order.
        per_class: class name to number of images with that pseudo-label, for every class.
        reason: how they were chosen, in one sentence.
    """

    rows: Rows
    ids: tuple[str, ...]
    digest: str
    per_class: dict[str, int]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values of calibration.json that are about the images."""
        return {
            "count": len(self.ids),
            "digest": self.digest,
            "ids": list(self.ids),
            "per_class": dict(self.per_class),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Partition:
    """Three sets of rows that share no image.

    Attributes:
        calibration: images that int8 ranges are taken from.
        parity: images that agreement is measured on; as many real as others, where there are.
        golden: images that travel in the bundle; synthetic, or free to ship.
        reason: how they were chosen, and what fell short.
    """

    calibration: Rows
    parity: Rows
    golden: Rows
    reason: str


def choose(
    *,
    images: Callable[[Rows], Images],
    hashes: Hashes,
    pseudo_labels: ArrayLike,
    ids: Sequence[str],
    classes: Sequence[str],
    count: int = DEFAULT_COUNT,
    seed: int = 0,
    confidences: ArrayLike | None = None,
    exclude: Hashes | None = None,
) -> Choice:
    """Choose a class-balanced set of images.

    Args:
        images: gives the pixels of rows, shape (n, H, W, C) uint8, at the graph's input size.
        hashes: content hashes, shape (N, bytes) uint8.
        pseudo_labels: the teacher's class of every image, shape (N,).
        ids: N source ids.
        classes: names of the classes.
        count: images wanted; all that there are where there are fewer.
        seed: another seed, another choice.
        confidences: shape (N,); where given, a class's images are spread over its ranking by
            confidence, so that hard and easy ones both set ranges; else they are drawn by hash.
        exclude: content hashes, shape (M, bytes), of images that must not be chosen.

    Raises:
        TransferSetError: there is not one image to choose.
        ShapeError: columns of different lengths.
    """
    labels = np.asarray(pseudo_labels, np.int64)
    _check_columns(hashes, pseudo_labels=labels, ids=ids)
    pool = _distinct(hashes)
    if exclude is not None:
        pool = pool[~np.isin(_keys(hashes)[pool], _keys(exclude))]
    if not len(pool) or count < 1:
        raise TransferSetError(
            f"no image to calibrate with: {len(hashes)} in the transfer set, {len(pool)} of them "
            f"free, {count} asked for; make synthetic images or ask for at least one"
        )
    score = None if confidences is None else np.asarray(confidences, np.float64)
    rows = _balanced(pool, labels, _order(hashes, seed), count, score)
    how = "drawn by content hash" if score is None else "spread over the teacher's confidence"
    reason = f"{len(rows)} of {len(pool)} images, balanced over the classes, {how}"
    if len(rows) < count:
        reason += f"; {count} were asked for and no more are there"
    return describe(
        rows, images=images(rows), pseudo_labels=labels, ids=ids, classes=classes, reason=reason
    )


def describe(
    rows: Rows,
    *,
    images: Images,
    pseudo_labels: ArrayLike,
    ids: Sequence[str],
    classes: Sequence[str],
    reason: str,
) -> Choice:
    """Return what is to be told about rows that were chosen already.

    Args:
        rows: their places.
        images: their pixels, shape (n, H, W, C) uint8, as the quantizer sees them.
        pseudo_labels: of the whole transfer set, shape (N,).
        ids: of the whole transfer set.
        classes: names of the classes.
        reason: how they were chosen.

    Raises:
        ShapeError: not one image per row.
    """
    if len(images) != len(rows):
        raise ShapeError(f"{len(images)} images for {len(rows)} rows; expected one each")
    found = np.bincount(np.asarray(pseudo_labels, np.int64)[rows], minlength=len(classes))
    return Choice(
        rows=rows,
        ids=tuple(ids[int(row)] for row in rows),
        digest=pixel_digest(images),
        per_class={name: int(number) for name, number in zip(classes, found, strict=True)},
        reason=reason,
    )


def pixel_digest(images: Images) -> str:
    """Return the sha256 (hex) over the pixels in order.

    Args:
        images: shape (N, H, W, C) uint8.
    """
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def partition(
    *,
    hashes: Hashes,
    pseudo_labels: ArrayLike,
    origins: ArrayLike,
    may_ship: ArrayLike,
    calibration: int = DEFAULT_COUNT,
    parity: int,
    golden: int,
    seed: int,
    confidences: ArrayLike | None = None,
) -> Partition:
    """Choose the three sets that share no image.

    Golden images are chosen first, because few may travel: synthetic ones before others that may
    ship. Parity then takes real images up to half of its number (all that there are, where they
    are fewer; more where the others do not fill it), because agreement on real images is what
    counts and agreement on synthetic ones is judged beside it. The rest calibrates.
    Where there are too few images, all three shrink in proportion, and `reason` says so.

    Args:
        hashes: content hashes, shape (N, bytes) uint8.
        pseudo_labels: the teacher's class of every image, shape (N,).
        origins: "real", "web", "synthetic" or "derived", shape (N,).
        may_ship: whether an image may leave the run directory, shape (N,).
        calibration: images wanted.
        parity: images wanted.
        golden: images wanted.
        seed: another seed, another choice.
        confidences: as for `choose`; also keeps golden images away from near ties.

    Raises:
        TransferSetError: fewer different images than sets that are asked for.
        ShapeError: columns of different lengths.
    """
    labels, sources = np.asarray(pseudo_labels, np.int64), np.asarray(origins, np.str_)
    ships = np.asarray(may_ship, np.bool_) | (sources == "synthetic")
    _check_columns(hashes, pseudo_labels=labels, origins=sources, may_ship=ships)
    score = None if confidences is None else np.asarray(confidences, np.float64)
    pool, order = _distinct(hashes), _order(hashes, seed)
    wanted = {"calibration": calibration, "parity": parity, "golden": golden}
    sizes = _sizes(wanted, len(pool))

    def draw(rows: Rows, count: int) -> Rows:
        return _balanced(rows, labels, order, count, None)

    candidates = pool[ships[pool]]
    synthetic = candidates[sources[candidates] == "synthetic"]
    chosen_golden = _filled(
        [
            _surer(synthetic, labels, score),
            synthetic,
            _surer(candidates, labels, score),
            candidates,
        ],
        [sizes["golden"]] * 4,
        draw,
    )
    pool = np.setdiff1d(pool, chosen_golden)
    is_real = sources[pool] == "real"
    chosen_parity = _filled(
        [pool[is_real], pool[~is_real], pool],
        [(sizes["parity"] + 1) // 2, sizes["parity"], sizes["parity"]],
        draw,
    )
    pool = np.setdiff1d(pool, chosen_parity)
    chosen_calibration = _balanced(pool, labels, order, sizes["calibration"], score)

    got = {
        "calibration": len(chosen_calibration),
        "parity": len(chosen_parity),
        "golden": len(chosen_golden),
    }
    real = int((sources[chosen_parity] == "real").sum())
    return Partition(
        calibration=chosen_calibration,
        parity=chosen_parity,
        golden=chosen_golden,
        reason=_reason(wanted, got, real=real, free=len(candidates)),
    )


def _reason(wanted: dict[str, int], got: dict[str, int], *, real: int, free: int) -> str:
    parts = ", ".join(f"{name} {number}" for name, number in got.items())
    text = f"disjoint by content and balanced over the classes: {parts} ({real} of parity real)"
    short = [name for name in wanted if got[name] < wanted[name]]
    if "golden" in short and free <= got["golden"]:
        short.remove("golden")
        text += (
            f"; {wanted['golden']} golden images were asked for, and {free} may leave the run "
            "directory"
        )
    if short:
        asked = ", ".join(f"{name} {wanted[name]}" for name in short)
        text += f"; asked for {asked}, and too few different images are there"
    return text


def _check_columns(hashes: Hashes, **columns: Sequence[Any] | NDArray[Any]) -> None:
    if hashes.ndim != 2 or hashes.dtype != np.uint8:
        raise ShapeError(f"hashes are {hashes.dtype} {hashes.shape}; expected uint8 (N, bytes)")
    for name, column in columns.items():
        if len(column) != len(hashes):
            raise ShapeError(f"{len(column)} {name} for {len(hashes)} hashes; expected one each")


def _keys(hashes: Hashes) -> NDArray[np.str_]:
    """One sortable value per hash, shape (N,); hex, because NumPy drops trailing zero bytes."""
    rows = np.ascontiguousarray(hashes)
    return np.array([row.tobytes().hex() for row in rows], np.str_)


def _distinct(hashes: Hashes) -> Rows:
    """Return the first row of every different image, rising."""
    _, first = np.unique(_keys(hashes), return_index=True)
    return np.sort(first).astype(np.int64)


def _order(hashes: Hashes, seed: int) -> NDArray[np.uint64]:
    """One pseudo-random value per image from its content and the seed, shape (N,)."""
    salt = (seed % 2**64).to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(row.tobytes(), digest_size=8, salt=salt).digest()
        for row in np.ascontiguousarray(hashes)
    )
    return np.frombuffer(digests, np.uint64)


def _sizes(wanted: dict[str, int], available: int) -> dict[str, int]:
    """Shrink the wanted numbers in proportion where they are more than there are images."""
    sets = [name for name, number in wanted.items() if number > 0]
    if available < len(sets) or min(wanted.values()) < 0:
        asked = ", ".join(f"{name} {number}" for name, number in wanted.items())
        raise TransferSetError(
            f"{available} different images cannot be divided into {asked}; make more images or "
            "ask for fewer"
        )
    total = sum(wanted.values())
    if total <= available:
        return dict(wanted)
    sizes = {name: wanted[name] * available // total for name in wanted}
    for name in sets:  # nothing shrinks to nothing; the largest set pays
        if sizes[name] == 0:
            sizes[name] = 1
    while sum(sizes.values()) > available:
        sizes[max(sizes, key=lambda name: sizes[name])] -= 1
    return sizes


def _filled(
    pools: Sequence[Rows], limits: Sequence[int], pick: Callable[[Rows, int], Rows]
) -> Rows:
    """Fill one set from several pools in turn; after each, the set has at most its limit."""
    chosen = np.empty(0, np.int64)
    for pool, limit in zip(pools, limits, strict=True):
        left = np.setdiff1d(pool, chosen)
        chosen = np.union1d(chosen, pick(left, limit - len(chosen)))
    return chosen


def _surer(rows: Rows, labels: NDArray[np.int64], confidences: NDArray[np.float64] | None) -> Rows:
    """Return the surer half of every class: a golden decision must not hang on a rounding."""
    if confidences is None or not len(rows):
        return rows
    halves = []
    for label in np.unique(labels[rows]):
        of_class = rows[labels[rows] == label]
        middle = np.median(confidences[of_class])
        halves.append(of_class[confidences[of_class] >= middle])
    return np.sort(np.concatenate(halves))


def _balanced(
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
