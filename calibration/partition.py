"""Three sets of images that share none: what calibrates, what proves parity, what travels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydistill_edge.calibration.rows import (
    Hashes,
    Rows,
    balanced,
    check_columns,
    content_order,
    distinct,
)
from hydistill_edge.errors import TransferSetError

DEFAULT_COUNT = 256

KEPT_SHARE, LEAST_KEPT, MOST_KEPT = 5, 10, 64
"""One real image of so many is kept for calibration; none if that is less than the second number,
and never more than the third.

Min-max ranges of inverted images alone, and with real ones among them, on other real images: a
steel ResNet-20 30.2 dB, 32.3 dB with 20 and 34.9 dB with 150; a ResNet-20 on CIFAR-10 25.7 and
27.6 dB with 60, a ShuffleNetV2 18.8 and 28.1 dB. Parity on 240 proves what it proves on 300: with
no decision changed, an agreement of 0.985 takes 199. Of fewer than 50 it needs every one.
"""


ENOUGH = 256
"""Images other than procedural ones that serve all three sets, however many are wanted."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Three sets of rows that share no image.

    Attributes:
        calibration: images that int8 ranges are taken from; some real, where there are.
        parity: images that agreement is measured on; as many real as others, where there are.
        golden: images that travel in the bundle; synthetic, or free to ship.
        reason: how they were chosen, and what fell short.
    """

    calibration: Rows
    parity: Rows
    golden: Rows
    reason: str


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
    ship. A fifth of the real images, 64 at most and none if under 10, is kept for calibration:
    ranges want to see some. Parity then takes real images up to half of its number (all others
    that there are, where they are fewer; more where the synthetic ones do not fill it), because
    agreement on real images is what counts and agreement on synthetic ones is judged beside it.
    The rest calibrates. Procedural images take no part where there are enough others.
    Where there are too few images, all three shrink in proportion, and `reason` says so.

    Args:
        hashes: content hashes, shape (N, bytes) uint8.
        pseudo_labels: the teacher's class of every image, shape (N,).
        origins: one of "real", "web", "synthetic", "derived" and "procedural", shape (N,).
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
    check_columns(hashes, pseudo_labels=labels, origins=sources, may_ship=ships)
    score = None if confidences is None else np.asarray(confidences, np.float64)
    wanted = {"calibration": calibration, "parity": parity, "golden": golden}
    pool, order = distinct(hashes), content_order(hashes, seed)
    pool = pool[_proving(sources[pool], sum(wanted.values()))]
    sizes = _sizes(wanted, len(pool))

    def draw(rows: Rows, count: int) -> Rows:
        return balanced(rows, labels, order, count, None)

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
    keep = min(int(is_real.sum()) // KEPT_SHARE, MOST_KEPT, sizes["calibration"])
    kept = draw(pool[is_real], keep if keep >= LEAST_KEPT else 0)
    chosen_parity = _filled(
        [np.setdiff1d(pool[is_real], kept), pool[~is_real], np.setdiff1d(pool, kept)],
        [(sizes["parity"] + 1) // 2, sizes["parity"], sizes["parity"]],
        draw,
    )
    pool = np.setdiff1d(pool, chosen_parity)
    chosen_calibration = balanced(pool, labels, order, sizes["calibration"], score)

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


def _proving(origins: NDArray[np.str_], wanted: int) -> Rows:
    """Return the rows that something is proven on: all but procedural ones, where these suffice.

    Procedural images are like nothing that the network was made for. Some drive it far out of its
    ranges: an int8 student that was 33 dB from its float self on images of its memory, and lost
    nothing on real ones, was 1.5 dB from it on a set that held them.

    Args:
        origins: shape (N,).
        wanted: images that are asked for; `ENOUGH` of them will do.
    """
    others = np.flatnonzero(origins != "procedural")
    return others if len(others) >= min(wanted, ENOUGH) else np.arange(len(origins))


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
