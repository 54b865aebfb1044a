"""Reject option: when a model had better say "I do not know".

Two steps on real hold-out images, after training and with nothing but NumPy. A temperature makes
the probabilities honest (Guo et al. 2017, arXiv:1706.04599); then each class gets the lowest
threshold at which the answers that stay keep the wanted error (selective classification, Geifman
and El-Yaniv 2017, arXiv:1705.08500). The risk is what was seen, beside its upper bound: with few
images the two are far apart, and a reader should know.

Synthetic images are never used: how sure a model is of images made for it says nothing about those
of a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydistill_edge.bundle.interval import error_upper_bound
from hydistill_edge.bundle.manifest import Reject
from hydistill_edge.errors import ShapeError

TARGET_ERROR = 0.01
MIN_SAMPLES = 30  # below it, one wrong answer more or less would move a threshold across the range
TEMPERATURES = (0.05, 20.0)
NEVER = 1.0  # as a threshold: no probability is strictly greater

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_STEPS = 60  # each narrows the search by the golden ratio: log(20 / 0.05) shrinks to 2e-12

Floats = NDArray[np.float64]


class Fit(NamedTuple):
    """A fitted rule, or None, and why."""

    reject: Reject | None
    why: str


def fit_reject(
    logits: NDArray[np.floating],
    decisions: ArrayLike,
    *,
    origins: Sequence[str] | NDArray[np.str_],
    classes: Sequence[str],
    fitted_on: Literal["labels", "teacher"],
    target_error: float = TARGET_ERROR,
    min_samples: int = MIN_SAMPLES,
) -> Fit:
    """Fit temperature and thresholds on the real images among those given.

    Args:
        logits: of the artifact (or the student) on hold-out images, shape (N, classes).
        decisions: the right class of each, shape (N,); -1 where unknown (left out).
        origins: where each image comes from; only "real" ones count.
        classes: names of the classes.
        fitted_on: whether decisions are true labels or the teacher's.
        target_error: wrong answers wanted among accepted ones, at most; a fraction in (0, 1).
        min_samples: accepted images that a threshold must rest on. A class with fewer shares one
            threshold with all such classes, fitted on every class together.

    Returns:
        The rule, or None where there are not enough real images, and why.

    Raises:
        ShapeError: columns of different lengths, or logits that are not (N, classes).
    """
    scores, right = np.asarray(logits, np.float64), np.asarray(decisions, np.int64)
    if scores.ndim != 2 or scores.shape != (len(right), len(classes)) or len(origins) != len(right):
        raise ShapeError(
            f"logits {scores.shape}, {len(right)} decisions, {len(origins)} origins for "
            f"{len(classes)} classes; expected (N, {len(classes)}), N and N"
        )
    real = np.asarray(origins) == "real"
    usable = real & (right >= 0) & (right < len(classes)) & np.isfinite(scores).all(axis=1)
    n = int(usable.sum())
    if n < min_samples:
        return Fit(
            None,
            f"no reject rule: {n} real hold-out images with a known decision; at least "
            f"{min_samples} are needed, and synthetic ones do not count",
        )
    scores, right = scores[usable], right[usable]
    temperature = fit_temperature(scores, right)
    rule = _fit_thresholds(softmax(scores / temperature), right, classes, target_error, min_samples)
    thresholds, pooled, note = rule
    fitted = Reject(
        temperature=temperature,
        thresholds=thresholds,
        target_error=target_error,
        fitted_on=fitted_on,
        n=n,
        coverage=0.0,
        risk=None,
        risk_upper=None,
        pooled=pooled,
        note=note,
    )
    return Fit(_with_risk(fitted, scores, right), f"fitted on {n} real hold-out images")


def apply_reject(
    logits: NDArray[np.floating], reject: Reject | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Return calibrated probabilities, and which predictions are accepted.

    Args:
        logits: shape (N, classes).
        reject: the rule; None leaves the probabilities as the model gives them.

    Returns:
        Probabilities, shape (N, classes) float32, and accepted, shape (N,); None without a rule.
        A row that is not finite is never accepted.
    """
    scores = np.asarray(logits, np.float64)
    if reject is None:
        return softmax(scores).astype(np.float32), None
    probabilities = softmax(scores / reject.temperature)
    accepted = _accepted(probabilities, np.asarray(reject.thresholds))
    return probabilities.astype(np.float32), accepted


def softmax(logits: Floats) -> Floats:
    """Return probabilities of shape (N, classes); rows that are not finite give NaN."""
    with np.errstate(invalid="ignore"):  # inf - inf; the NaN that it gives is wanted
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def fit_temperature(logits: Floats, decisions: NDArray[np.int64]) -> float:
    """Return the temperature that minimizes the negative log-likelihood of the decisions.

    It is convex in 1 / temperature, so a golden-section search over the logarithm finds the
    minimum. Decisions are smoothed by 1 / (N + 2): with few images and no mistake among them the
    likelihood would ask for endless certainty (Platt 1999 smooths his targets for the same reason).

    Args:
        logits: shape (N, classes), finite, N ≥ 1.
        decisions: shape (N,).
    """
    count = len(logits)
    smoothing = 1 / (count + 2)
    picked = (1 - smoothing) * logits[np.arange(count), decisions]
    target = picked + smoothing * logits.mean(axis=1)
    peak = logits.max(axis=1, keepdims=True)

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        total = np.log(np.exp((logits - peak) * scale).sum(axis=1)) + peak[:, 0] * scale
        return float((total - target * scale).mean())

    low, high = (math.log(limit) for limit in TEMPERATURES)
    left, right = high - _GOLDEN_RATIO * (high - low), low + _GOLDEN_RATIO * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN_RATIO * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN_RATIO * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


def _accepted(probabilities: Floats, thresholds: Floats) -> NDArray[np.bool_]:
    top = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(top)), top]
    return np.asarray(confidence > thresholds[top], np.bool_)  # NaN compares false


def _fit_thresholds(
    probabilities: Floats,
    right: NDArray[np.int64],
    classes: Sequence[str],
    target_error: float,
    min_samples: int,
) -> tuple[tuple[float, ...], tuple[str, ...], str]:
    """Return one threshold per class, the classes that share one, and a sentence."""
    top = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(top)), top]
    wrong = top != right
    shared = _threshold(confidence, wrong, target_error, min_samples)
    thresholds, pooled, never = [], [], []
    for index, name in enumerate(classes):
        mine = top == index
        if int(mine.sum()) < min_samples:
            pooled.append(name)
            thresholds.append(shared)
        else:
            thresholds.append(_threshold(confidence[mine], wrong[mine], target_error, min_samples))
        if thresholds[-1] == NEVER:
            never.append(name)
    note = f"each threshold rests on at least {min_samples} accepted images"
    if pooled:
        note += f"; {len(pooled)} of {len(classes)} classes have fewer and share one"
    if never:
        note += (
            f"; {len(never)} of {len(classes)} classes are never accepted: no threshold keeps the "
            f"error at {target_error:.4g}"
        )
    return tuple(thresholds), tuple(pooled), note


def _threshold(
    confidence: Floats, wrong: NDArray[np.bool_], target_error: float, min_samples: int
) -> float:
    """Return the lowest threshold with the wanted error; `NEVER` where there is none.

    It lies just below the lowest confidence that was seen and accepted: what is less sure than
    anything seen is not vouched for.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    counts = np.arange(1, len(ranked) + 1)
    errors = np.cumsum(wrong[order]) / counts
    # Equal confidences are accepted together, so a set may only end where the next one differs.
    ends = np.append(ranked[1:] != ranked[:-1], True)
    good = np.flatnonzero(ends & (errors <= target_error) & (counts >= min_samples))
    return float(np.nextafter(ranked[good[-1]], 0.0)) if len(good) else NEVER


def _with_risk(reject: Reject, logits: Floats, right: NDArray[np.int64]) -> Reject:
    """Add coverage and risk, measured with the very function that devices call."""
    probabilities, accepted = apply_reject(logits, reject)
    assert accepted is not None
    taken = int(accepted.sum())
    wrong = int((probabilities.argmax(axis=1) != right)[accepted].sum())
    fields = {**vars(reject), "coverage": taken / len(right)}
    if taken:
        fields |= {"risk": wrong / taken, "risk_upper": error_upper_bound(wrong, taken)}
    return Reject(**fields)
