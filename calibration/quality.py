"""How good a calibration set is: one score, its parts, and what to do when it is too low.

A set is judged against what is known of the training images: the statistics that BatchNorm layers
remember, else a few real images. BatchNorm tells noise from images without exception, and also
stops sets that an easy network, or a forgiving runtime, gets away with. The error that the ranges
cause on a few real images, rounding and cutting in every quantized tensor, is told beside it; as a
judge it let noise pass that cost 7 points, and stopped inverted images that cost none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from hydistill_edge.calibration.coverage import Activations
from hydistill_edge.calibration.layer_quality import (
    QUANTILES,
    Comparison,
    LayerMoments,
    LayerQuality,
    compare_with_moments,
    compare_with_real,
)
from hydistill_edge.errors import InputError

PartName = Literal["signal", "coverage", "resolution", "tail", "balance", "bn_distance"]

LIMIT = 0.6
"""Score to reach against real images, where there is no BatchNorm. Fitted to two networks."""

LIMIT_BATCH_NORM = 0.75
"""Score to reach against BatchNorm statistics. On six networks in two runtimes (`tools/bench/
calibration_sources.py`) every set of real or inverted images scored 0.82 and more, and every set of
noise 0.59 and less. What noise costs there depends on the runtime: from nothing to 12 points."""

WEIGHTS: dict[PartName, float] = {
    "signal": 6.0,  # the one that is computed from real images: it alone ranks sets by their loss
    "bn_distance": 1.0,
    "coverage": 1.0,
    "resolution": 1.0,
    "tail": 1.0,
    "balance": 0.5,  # one class alone still sets usable ranges
}
"""Exponents of the parts in the score, which is their weighted geometric mean: no part makes up for
another. Parts that cannot be known are left out."""

SIGNAL_HALF_DB = 12.0
"""Signal to noise, over all quantized tensors, at which the part is a half: of the 16 sets under it
all but one lost 0.3 points or more, and of the 24 over it all but one lost 0.7 or less."""

BN_HALF = 0.4
"""BN distance in nats at which the part is a half: a single real image has it (0.39 and 0.40), and
20 real images a third (0.04 and 0.13)."""

TAIL_HALF = 1.0 - (QUANTILES[1] - QUANTILES[0])
"""Share of the real values that may be cut before the part is a half: all outside `QUANTILES`."""

LEAST = 0.01  # a part of zero would hide all others


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the score: `value` in [0, 1], one is best, and `why` in words."""

    name: PartName
    value: float
    weight: float
    why: str


@dataclass(frozen=True, slots=True)
class Quality:
    """The score of a calibration set.

    Attributes:
        score: in [0, 1]; None where there is nothing to judge by.
        parts: what it is made of.
        passed: whether the score reaches the limit; None where there is no score.
        limit: the limit.
        advice: what to do, most helpful first; empty where the set passed.
        layers: every tensor or layer that was compared.
        reference: what the set was held against, in words.
    """

    score: float | None
    parts: tuple[Part, ...]
    passed: bool | None
    limit: float
    advice: tuple[str, ...]
    layers: tuple[LayerQuality, ...]
    reference: str

    @property
    def worst(self) -> LayerQuality | None:
        """The layer that loses most: by signal where there is one, else by coverage."""
        if not self.layers:
            return None
        return min(self.layers, key=lambda layer: (layer.signal_db or 0.0, layer.covered))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def judge_quality(
    per_class: Mapping[str, int],
    *,
    activations: Activations | None = None,
    real: Activations | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    moments: Sequence[LayerMoments] = (),
    bn_distances: Mapping[str, float] | None = None,
    limit: float | None = None,
) -> Quality:
    """Score a calibration set.

    Args:
        per_class: class name to number of images, for every class.
        activations: of the set. Leave a tensor out whose range is fixed, as the pixels' is.
        real: of a few real images that are not in the set, for the same tensors.
        ranges: tensor name to the range it is quantized with; the set's extremes where it is not
            named.
        moments: of the BatchNorm layers; they decide where there are any.
        bn_distances: layer name to the divergence (nats, mean over the channels) of what it sees of
            the set from what it remembers.
        limit: the score to reach; None takes `LIMIT_BATCH_NORM` or, where real images decide,
            `LIMIT`.

    Raises:
        InputError: no image, tensors that differ, or a limit outside of (0, 1].
    """
    parts = [_part("balance", *_balance(per_class))]
    layers: tuple[LayerQuality, ...] = ()
    compared = None
    if activations is not None and real is not None and len(real):
        compared = compare_with_real(activations, real, ranges or {})
        layers = compared.layers
        # With BatchNorm these two are told, and do not count.
        told = [_signal_part(compared), _tail_part(layers)]
        parts += [replace(part, weight=0.0) for part in told] if moments else told
    if moments:
        remembered = tuple(compare_with_moments(layer) for layer in moments)
        layers = layers or remembered
        parts += _range_parts(remembered)
    elif compared is not None:
        parts += _range_parts(layers)
    if bn_distances:
        parts.append(_bn_part(bn_distances))
    by_memory = bool(moments) or compared is None
    wanted = limit if limit is not None else LIMIT_BATCH_NORM if by_memory else LIMIT
    if not 0 < wanted <= 1:
        raise InputError(f"the limit is {wanted:g}; expected more than 0 and at most 1")
    if len(parts) == 1:
        why = "hand over about 20 real images, or a student with BatchNorm layers, to judge it by"
        nothing = "nothing: neither real images nor BatchNorm statistics were there"
        return Quality(None, tuple(parts), None, wanted, (why,), (), nothing)
    score = _score(parts)
    judged = None if by_memory else compared
    beside = None if compared is None or real is None else f"{len(real)} real images"
    advice = () if score >= wanted else tuple(_advice(parts, judged, per_class, beside is None))
    reference = "BatchNorm statistics" if by_memory else str(beside)
    if by_memory and beside is not None:
        reference += f"; ranges beside those of {beside}"
    return Quality(score, tuple(parts), score >= wanted, wanted, advice, layers, reference)


def _part(name: PartName, value: float, why: str) -> Part:
    return Part(name, min(max(value, 0.0), 1.0), WEIGHTS[name], why)


def _score(parts: Sequence[Part]) -> float:
    total = sum(part.weight for part in parts)
    return math.exp(sum(p.weight * math.log(max(p.value, LEAST)) for p in parts) / total)


def _balance(per_class: Mapping[str, int]) -> tuple[float, str]:
    counts = np.array(list(per_class.values()), np.float64)
    images = int(counts.sum())
    if images < 1:
        raise InputError("the calibration set has no image; expected at least one per class")
    shares = counts[counts > 0] / images
    most = math.log(min(len(counts), images))
    # Fewer images than classes cannot be of every class; that is not this part's fault.
    even = 1.0 if most == 0 else abs(float((shares * np.log(shares)).sum())) / most
    missing = int((counts == 0).sum())
    why = f"{images} images, {int(counts.min())} to {int(counts.max())} of a class"
    return even, why + (f"; {missing} classes have none" if missing else "")


def _bn_part(distances: Mapping[str, float]) -> Part:
    values = np.nan_to_num(np.array(list(distances.values()), np.float64), nan=np.inf)
    mean, worst = float(values.mean()), list(distances)[int(values.argmax())]
    why = f"{mean:.3g} nats over {len(values)} layers, most in {worst} ({values.max():.3g})"
    return _part("bn_distance", 1 / (1 + mean / BN_HALF), why)


def _range_parts(layers: Sequence[LayerQuality]) -> list[Part]:
    least = min(layers, key=lambda layer: layer.covered)
    widest = max(layers, key=lambda layer: layer.excess_bits)
    covered = float(np.mean([layer.covered for layer in layers]))
    used = float(np.mean([2.0**-layer.excess_bits for layer in layers]))
    return [
        _part(
            "coverage",
            covered,
            f"{covered:.1%} of the ranges are covered, least in {least.name} ({least.covered:.0%})",
        ),
        _part(
            "resolution",
            used,
            f"{used:.1%} of the steps are used, fewest in {widest.name} "
            f"({widest.excess_bits:.1f} bits wasted)",
        ),
    ]


def _tail_part(layers: Sequence[LayerQuality]) -> Part:
    cuts = np.array([layer.cut or 0.0 for layer in layers])
    worst = layers[int(cuts.argmax())]
    why = f"{cuts.mean():.2%} of real values are cut, most in {worst.name} ({cuts.max():.1%})"
    return _part("tail", 1 / (1 + float(cuts.mean()) / TAIL_HALF), why)


def _signal_part(compared: Comparison) -> Part:
    signal = compared.signal_db
    worst = min(compared.layers, key=lambda layer: layer.signal_db or 0.0)
    return _part(
        "signal",
        1 / (1 + 10 ** ((SIGNAL_HALF_DB - signal) / 10)),
        f"{signal:.1f} dB in all {len(compared.layers)} tensors together, least in {worst.name} "
        f"({worst.signal_db:.1f} dB)",
    )


def _advice(
    parts: Sequence[Part],
    compared: Comparison | None,
    per_class: Mapping[str, int],
    lacks_real: bool,
) -> list[str]:
    values = {part.name: part.value for part in parts}
    if compared is not None:
        advice = _advice_from_real(compared)
    elif values.get("coverage", 1.0) < values.get("resolution", 1.0):
        advice = [
            "the images are tamer than the training images were: more inversion iterations, or "
            "more different images"
        ]
    else:
        advice = [
            "the images reach further than the training images did, or are of another kind: more "
            "inversion iterations, and no noise among them"
        ]
    if values.get("bn_distance", 1.0) < 0.5:
        advice.append(
            "the BatchNorm layers do not know these images: invert the student itself, with a "
            "greater weight of its BatchNorm statistics"
        )
    if values["balance"] < 0.9:
        fewest = min(per_class, key=lambda name: per_class[name])
        advice.append(f'add images of the rare classes, "{fewest}" first')
    if lacks_real:
        advice.append(
            "add about 20 real images: they repair most of what synthetic ones miss, and others "
            "kept apart tell whether the network minds"
        )
    return advice


def _advice_from_real(compared: Comparison) -> list[str]:
    layers = compared.layers
    if np.median(compared.cutting.sum(axis=0)) > np.median(compared.rounding.sum(axis=0)):
        worst = min(layers, key=lambda layer: layer.covered)
        advice = [
            f"the images do not reach what real ones do ({worst.covered:.0%} of the range in "
            f"{worst.name}): put 20 real images among them, or make more images with more "
            "inversion iterations, and choose among more candidates"
        ]
    else:
        worst = max(layers, key=lambda layer: layer.excess_bits)
        advice = [
            f"the images reach too far ({2**worst.excess_bits:.1f} times what real ones do in "
            f"{worst.name}), and real images beside them cannot repair that: replace them, or cut "
            'the ranges with the estimator "percentile" or "mse"'
        ]
    shares = np.median(compared.noise, axis=1)
    if len(layers) > 1 and shares.max() > 0.5 * shares.sum():
        advice.append(
            f"keep the layer that reads {layers[int(shares.argmax())].name} in float: it makes "
            f"{shares.max() / shares.sum():.0%} of the error"
        )
    return advice
