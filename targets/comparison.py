"""How far the logits of a candidate are from a reference, as one set of numbers.

Every number is scale-aware or comes with the scale, because an absolute tolerance means nothing
across networks. Agreement alone saturates on easy networks, so SNR and KL stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ShapeError
from hydistill_edge.targets.gates import agreement_lower_bound

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

# SNR of equal arrays. float32 logits that differ in one last bit stay below 250 dB.
EQUAL_SNR_DB = 300.0

# A float margin of this many rms errors (of a difference of two logits) is decisive: errors alone
# turn it over in about 2 % of normal draws, so a flip above it deserves a look.
DECISIVE_SIGMAS = 2.0

WORST = 5

# What `_Errors.numbers` gives, in its order.
_NUMBERS = (
    "scale",
    "max_abs",
    "max_abs_over_scale",
    "mean_abs",
    "cosine_min",
    "cosine_mean",
    "snr_db",
    "mean_kl",
    "max_kl",
)


@dataclass(frozen=True, slots=True)
class Worst:
    """One of the samples that did worst.

    Attributes:
        reference: class that the reference decides for (its name, else its index).
        candidate: class that the candidate decides for.
        max_abs: largest absolute difference of a logit; None where one is not finite.
    """

    id: str
    reference: str
    candidate: str
    max_abs: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate logits against reference logits, shape (n, classes) each.

    Numbers are over the samples whose logits are all finite, and None where there is none; a
    sample that is not finite counts as a disagreement.

    Attributes:
        n: samples compared.
        nonfinite_reference: samples with NaN or infinity in the reference.
        nonfinite_candidate: the same in the candidate.
        scale: median over the samples of the largest absolute reference logit.
        max_abs: largest absolute difference.
        max_abs_over_scale: the same, divided by the scale.
        mean_abs: mean absolute difference.
        cosine_min: smallest cosine of a sample's two logit vectors.
        cosine_mean: their mean.
        snr_db: 10 log10(energy of the reference / energy of the difference); 300 where equal.
        agree: samples with the same top-1 class.
        top1_agreement: agree / n.
        top1_lower_bound: its one-sided 95 % lower bound.
        mean_kl: mean KL(reference ‖ candidate) of the class probabilities, in nats.
        max_kl: its largest value.
        noise_margin: float margin (first minus second logit) above which a decision is decisive,
            two rms errors of a difference of two logits; None for a single class.
        decisive_n: samples with a reference margin above it.
        decisive_agreement: top-1 agreement among those; None where there is none.
        largest_flip_margin: largest reference margin that was turned over; None without a flip.
        worst_id: sample with the largest absolute difference, non-finite ones first.
        worst_cosine_id: sample with the smallest cosine.
        worst_flip_id: turned-over sample with the largest reference margin; None without a flip.
        worst: the worst samples, turned-over ones first.
    """

    n: int
    nonfinite_reference: int
    nonfinite_candidate: int
    scale: float | None
    max_abs: float | None
    max_abs_over_scale: float | None
    mean_abs: float | None
    cosine_min: float | None
    cosine_mean: float | None
    snr_db: float | None
    agree: int
    top1_agreement: float
    top1_lower_bound: float
    mean_kl: float | None
    max_kl: float | None
    noise_margin: float | None
    decisive_n: int
    decisive_agreement: float | None
    largest_flip_margin: float | None
    worst_id: str
    worst_cosine_id: str | None
    worst_flip_id: str | None
    worst: tuple[Worst, ...]

    def metrics(self) -> dict[str, float | int | None]:
        """Return the numbers without the samples' ids."""
        skipped = {"worst_id", "worst_cosine_id", "worst_flip_id", "worst"}
        return {key: value for key, value in asdict(self).items() if key not in skipped}


def compare(
    reference: Array,
    candidate: Array,
    ids: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    worst: int = WORST,
) -> Comparison:
    """Compare two sets of logits of the same samples, in float64.

    Args:
        reference: shape (N, C), N ≥ 1.
        candidate: shape (N, C).
        ids: N ids, named where a sample does badly.
        classes: C names for the worst samples; indices where None.
        worst: how many worst samples to keep.

    Raises:
        ShapeError: shapes that differ, no samples, or not one id per sample.
    """
    _check_shapes(reference, candidate, ids, classes)
    ref, cand = reference.astype(np.float64), candidate.astype(np.float64)
    ref_ok, cand_ok = _finite(ref), _finite(cand)
    finite = ref_ok & cand_ok
    errors = _Errors.of(ref[finite], cand[finite])

    ref_top, cand_top = _top1(ref), _top1(cand)
    same: Mask = np.asarray(finite & (ref_top == cand_top))
    n, agree = len(ref), int(same.sum())
    margins = np.full(n, -np.inf)
    margins[ref_ok] = _margins(ref[ref_ok])
    floor = math.inf if errors.noise_margin is None else errors.noise_margin
    decisive: Mask = np.asarray(finite & (margins > floor))
    flips = np.flatnonzero(~same & np.isfinite(margins))
    flip = int(flips[np.argmax(margins[flips])]) if len(flips) else None

    max_abs = np.full(n, np.inf)
    max_abs[finite] = errors.max_abs
    order = np.lexsort((-max_abs, same))  # turned-over samples first, then by size of the error
    where_finite = np.flatnonzero(finite)
    names = tuple(classes) if classes is not None else tuple(str(c) for c in range(ref.shape[1]))
    return Comparison(
        n=n,
        nonfinite_reference=int((~ref_ok).sum()),
        nonfinite_candidate=int((~cand_ok).sum()),
        **errors.numbers(),
        agree=agree,
        top1_agreement=agree / n,
        top1_lower_bound=agreement_lower_bound(agree, n),
        noise_margin=errors.noise_margin,
        decisive_n=int(decisive.sum()),
        decisive_agreement=float(same[decisive].mean()) if decisive.any() else None,
        largest_flip_margin=None if flip is None else float(margins[flip]),
        worst_id=ids[int(np.argmax(max_abs))],
        worst_cosine_id=(
            ids[int(where_finite[np.argmin(errors.cosine)])] if len(where_finite) else None
        ),
        worst_flip_id=None if flip is None else ids[flip],
        worst=tuple(
            Worst(
                id=ids[i],
                reference=names[ref_top[i]] if ref_ok[i] else "not finite",
                candidate=names[cand_top[i]] if cand_ok[i] else "not finite",
                max_abs=float(max_abs[i]) if finite[i] else None,
            )
            for i in order[:worst].tolist()
        ),
    )


def logit_scale(logits: Array) -> float:
    """Return the size of a typical large logit: median over samples of the largest absolute one.

    A median, so that neither one wild sample nor a few flat ones move the tolerances.

    Args:
        logits: shape (N, C), finite, N ≥ 1.
    """
    return float(np.median(np.abs(logits).max(axis=1)))


@dataclass(frozen=True, slots=True)
class _Errors:
    """Numbers of the finite samples; arrays have shape (samples,)."""

    ref: NDArray[np.float64]
    cand: NDArray[np.float64]
    max_abs: NDArray[np.float64]
    cosine: NDArray[np.float64]
    noise_margin: float | None

    @staticmethod
    def of(ref: NDArray[np.float64], cand: NDArray[np.float64]) -> _Errors:
        difference = cand - ref
        return _Errors(
            ref=ref,
            cand=cand,
            max_abs=np.abs(difference).max(axis=1),
            cosine=_cosines(ref, cand),
            noise_margin=_noise_margin(difference),
        )

    def numbers(self) -> dict[str, Any]:
        if not len(self.ref):
            return dict.fromkeys(_NUMBERS)
        difference = self.cand - self.ref
        scale, max_abs = logit_scale(self.ref), float(self.max_abs.max())
        kl = _kl(self.ref, self.cand)
        values = (
            scale,
            max_abs,
            max_abs_over_scale(max_abs, scale),
            float(np.abs(difference).mean()),
            float(self.cosine.min()),
            float(self.cosine.mean()),
            _snr_db(self.ref, difference),
            float(kl.mean()),
            float(kl.max()),
        )
        return dict(zip(_NUMBERS, values, strict=True))


def max_abs_over_scale(max_abs: float, scale: float) -> float:
    """Return max_abs / scale, and 0 where nothing differs, even at scale 0."""
    # A zero reference has no scale; a difference from it is then as large as can be told.
    return 0.0 if max_abs == 0.0 else max_abs / max(scale, float(np.finfo(np.float32).tiny))


def _check_shapes(
    reference: Array, candidate: Array, ids: Sequence[str], classes: Sequence[str] | None
) -> None:
    if reference.ndim != 2 or reference.shape != candidate.shape or reference.size == 0:
        raise ShapeError(
            f"reference logits have shape {reference.shape}, candidate logits {candidate.shape}; "
            "expected the same (N, classes) with N >= 1, of the same images"
        )
    if len(ids) != len(reference):
        raise ShapeError(f"{len(ids)} ids for {len(reference)} samples; expected one id each")
    if classes is not None and len(classes) != reference.shape[1]:
        raise ShapeError(
            f"{len(classes)} class names for {reference.shape[1]} logits; expected one name each"
        )


def _finite(logits: NDArray[np.float64]) -> Mask:
    return np.asarray(np.isfinite(logits).all(axis=1))


def _top1(logits: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.asarray(np.argmax(np.where(np.isfinite(logits), logits, -np.inf), axis=1))


def _margins(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """First minus second logit, shape (N,); infinite for a single class."""
    if logits.shape[1] == 1:
        return np.full(len(logits), np.inf)
    ordered = np.partition(logits, -2, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def _noise_margin(difference: NDArray[np.float64]) -> float | None:
    """Two rms errors of the difference of two logits of one sample.

    A shift of all logits changes no decision, so it is taken out; the mean square of e_i - e_j
    over all pairs i ≠ j is then 2 C / (C - 1) times the mean square of the centered error.
    """
    samples, classes = difference.shape
    if classes == 1 or samples == 0:
        return None
    centered = difference - difference.mean(axis=1, keepdims=True)
    pair_square = 2 * classes / (classes - 1) * float(np.mean(centered**2))
    return DECISIVE_SIGMAS * math.sqrt(pair_square)


def _cosines(ref: NDArray[np.float64], cand: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine per sample, shape (N,); two zero vectors are equal (1), one alone is not (0)."""
    ref_norm, cand_norm = np.linalg.norm(ref, axis=1), np.linalg.norm(cand, axis=1)
    product = ref_norm * cand_norm
    cosine = (ref * cand).sum(axis=1) / np.where(product > 0, product, 1.0)
    cosine = np.where(product > 0, np.clip(cosine, -1.0, 1.0), 0.0)
    return np.where((ref_norm == 0) & (cand_norm == 0), 1.0, cosine)


def _snr_db(ref: NDArray[np.float64], difference: NDArray[np.float64]) -> float:
    signal, noise = float(np.sum(ref**2)), float(np.sum(difference**2))
    if noise == 0.0:
        return EQUAL_SNR_DB
    if signal == 0.0:
        return -EQUAL_SNR_DB
    return min(EQUAL_SNR_DB, 10.0 * float(np.log10(signal / noise)))


def _kl(ref: NDArray[np.float64], cand: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(reference ‖ candidate) per sample in nats, shape (N,)."""
    log_p, log_q = _log_softmax(ref), _log_softmax(cand)
    return np.asarray(np.maximum(np.sum(np.exp(log_p) * (log_p - log_q), axis=1), 0.0))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
