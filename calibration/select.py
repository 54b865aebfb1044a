"""Which range estimator: build every candidate, hold its logits against the float student's.

No estimator is best everywhere. Extremes lose on outliers, clipping loses on gates, and which of
both a network has is seen in its logits only. So the choice is made by parity, on images that no
range was taken from and on which nothing is judged afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import InputError, MissingError, ShapeError
from hydistill_edge.targets.base import Logits, Scheme

T = TypeVar("T")

PREFERRED = "minmax"
"""Wins ties: it needs no choice of a parameter and clips no value that it has seen."""

TIE_DB = 2.0
"""What a clipping estimator must win by. Candidates are compared on images like those that set the
ranges, and clipping pays there by what the rarer, stronger images lose later: on a steel RegNetY,
entropy was 1.6 dB above min-max on the images of the choice and 1.3 dB below it on the test split,
for real images as for synthetic ones."""

GUARD = 0.005
"""A candidate may turn over so many decisions more than the best one, or a single one."""

EQUAL_SNR_DB = 300.0
"""SNR of equal logits, as in the parity ladder."""


@dataclass(frozen=True, slots=True)
class Row:
    """How one candidate did.

    Attributes:
        estimator: its range estimator.
        snr_db: 10 log10(energy of the reference / energy of the difference).
        agreement: share of images with the reference's top-1 class.
        mean_kl: mean KL(reference ‖ candidate) of the class probabilities, in nats.
        failed: why there are no numbers; None where there are.
    """

    estimator: str
    snr_db: float | None = None
    agreement: float | None = None
    mean_kl: float | None = None
    failed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; "failed" is there only where the candidate did."""
        if self.failed is not None:
            return {"estimator": self.estimator, "failed": self.failed}
        return {
            "estimator": self.estimator,
            "snr_db": self.snr_db,
            "agreement": self.agreement,
            "mean_kl": self.mean_kl,
        }


@dataclass(frozen=True, slots=True)
class Selection(Generic[T]):
    """The candidate to use.

    Attributes:
        chosen: its scheme.
        built: what `build` made of it.
        rows: one per candidate, in their order.
        reason: one sentence.
    """

    chosen: Scheme
    built: T
    rows: tuple[Row, ...]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without what was built."""
        return {
            "estimator": self.chosen.range_estimator,
            "reason": self.reason,
            "rows": [row.to_dict() for row in self.rows],
        }


def select_by_parity(
    candidates: Sequence[Scheme],
    build: Callable[[Scheme], T],
    evaluate: Callable[[T], Logits],
    reference: Logits,
) -> Selection[T]:
    """Return the candidate whose logits are nearest to the reference.

    The highest SNR wins among those that turn over hardly more decisions than the best does;
    min-max wins where it is within 2 dB of that. What cannot be built, or gives logits that are
    not finite, is a row with the reason.

    Args:
        candidates: schemes, usually equal but for their range estimator.
        build: makes the artifact of a scheme.
        evaluate: returns its logits, shape (N, classes), on images disjoint from those of
            calibration, parity and golden.
        reference: the float student's logits of the same images, shape (N, classes).

    Raises:
        InputError: there is no candidate, or all of them failed.
        MissingError: (from `build` or `evaluate`) something is missing here, for all of them.
        ShapeError: the reference is not (N, classes) of finite values with N >= 1.
    """
    _check(candidates, reference)
    rows, made = [], []
    for scheme in candidates:
        try:
            built = build(scheme)
            row = _judge(scheme.range_estimator, reference, evaluate(built))
        except MissingError:
            raise
        except Exception as error:  # the quantizers' own errors share no base class but this
            rows.append(Row(scheme.range_estimator, failed=f"{type(error).__name__}: {error}"))
            continue
        rows.append(row)
        if row.failed is None:
            made.append((scheme, built, row))
    if not made:
        lines = "; ".join(f"{row.estimator}: {row.failed}" for row in rows)
        raise InputError(f"none of {len(rows)} range estimators gave a working artifact ({lines})")
    scheme, built, row = _best(made, images=len(reference))
    return Selection(scheme, built, tuple(rows), _reason(row, rows, images=len(reference)))


def _best(made: Sequence[tuple[Scheme, T, Row]], *, images: int) -> tuple[Scheme, T, Row]:
    allowed = max(GUARD, 1 / images)
    floor = max(_number(row.agreement) for _, _, row in made) - allowed
    # A hair below the floor, so that one image less is one image less in floats too.
    running = [entry for entry in made if _number(entry[2].agreement) >= floor - 1e-9]
    best = max(running, key=lambda entry: _number(entry[2].snr_db))  # the first of equal ones
    for entry in running:
        near = _number(best[2].snr_db) - _number(entry[2].snr_db) <= TIE_DB
        if entry[2].estimator == PREFERRED and near:
            return entry
    return best


def _reason(chosen: Row, rows: Sequence[Row], *, images: int) -> str:
    others = [row for row in rows if row is not chosen and row.failed is None]
    failed = [row.estimator for row in rows if row.failed is not None]
    found = f"{chosen.estimator}: {_number(chosen.snr_db):.1f} dB on {images} images"
    note = f" ({', '.join(failed)} failed)" if failed else ""
    if not others:
        return f"{found}, the only one that worked{note}"
    rival = max(others, key=lambda row: _number(row.snr_db))
    gain = _number(chosen.snr_db) - _number(rival.snr_db)
    if gain >= 0:
        text = f"{found}, {gain:.1f} dB above {rival.estimator}"
    elif chosen.estimator == PREFERRED and -gain <= TIE_DB:
        text = f"{found}; {rival.estimator} is {-gain:.1f} dB above, too little to change for"
    else:
        text = (
            f"{found}; {rival.estimator} is {-gain:.1f} dB above, but turns over more decisions "
            f"({_number(rival.agreement):.2%} agree, here {_number(chosen.agreement):.2%})"
        )
    return text + note


def _judge(estimator: str, reference: Logits, logits: Logits) -> Row:
    if logits.shape != reference.shape:
        return Row(
            estimator,
            failed=f"its logits have shape {logits.shape}; expected {reference.shape}",
        )
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits).all(axis=1)).sum())
        return Row(estimator, failed=f"{bad} of {len(logits)} images give logits not finite")
    expected, found = reference.astype(np.float64), logits.astype(np.float64)
    return Row(
        estimator,
        snr_db=_snr_db(expected, found),
        agreement=float((expected.argmax(axis=1) == found.argmax(axis=1)).mean()),
        mean_kl=_mean_kl(expected, found),
    )


def _snr_db(reference: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    signal, noise = float((reference**2).sum()), float(((found - reference) ** 2).sum())
    if noise == 0.0:
        return EQUAL_SNR_DB
    if signal == 0.0:
        return -EQUAL_SNR_DB
    return min(EQUAL_SNR_DB, 10.0 * math.log10(signal / noise))


def _mean_kl(reference: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    log_p, log_q = _log_softmax(reference), _log_softmax(found)
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _number(value: float | None) -> float:
    assert value is not None  # only of rows that did not fail
    return value


def _check(candidates: Sequence[Scheme], reference: Logits) -> None:
    if not candidates:
        raise InputError("no scheme to choose from; hand over at least one")
    if reference.ndim != 2 or reference.size == 0 or not np.isfinite(reference).all():
        raise ShapeError(
            f"reference logits have shape {reference.shape}; expected finite (N, classes) with "
            "N >= 1: the float student's, on the images that candidates are compared on"
        )
