"""What the ranges of a calibration set do to real images, or to what is known of them, by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.calibration.coverage import Activations, TensorActivations
from hydistill_edge.calibration.set_cover import find_outliers
from hydistill_edge.errors import InputError, ShapeError

Floats = NDArray[np.float64]

QUANTILES = (0.001, 0.999)
"""Between these lie the values of real images that a set must cover."""

REFERENCE_OUTLIER_FACTOR = 4.0
"""One of 50 real images holds 2 % of all values, and would be their 99.9 % quantile by itself, so
the reference is freed of outliers earlier than a calibration set is."""

LEVELS = 255  # steps of an 8-bit range
REACH = 3.09  # standard deviations between which a normal distribution has its QUANTILES


@dataclass(frozen=True, slots=True, eq=False)
class LayerMoments:
    """What a BatchNorm layer sees of a set, beside what it remembers.

    Attributes:
        name: the layer's name.
        mean: per channel over the calibration set, shape (C,).
        variance: the same, shape (C,).
        running_mean: what the layer remembers, shape (C,).
        running_variance: the same, shape (C,).
    """

    name: str
    mean: NDArray[np.floating[Any]]
    variance: NDArray[np.floating[Any]]
    running_mean: NDArray[np.floating[Any]]
    running_variance: NDArray[np.floating[Any]]

    def __post_init__(self) -> None:
        others = (self.variance, self.running_mean, self.running_variance)
        if self.mean.ndim != 1 or any(other.shape != self.mean.shape for other in others):
            shapes = [self.mean.shape, *(other.shape for other in others)]
            raise ShapeError(
                f'moments of "{self.name}" have shapes {shapes}; expected four of (C,)'
            )


@dataclass(frozen=True, slots=True)
class LayerQuality:
    """One tensor, or one BatchNorm layer, of the set against the reference.

    Attributes:
        name: of the tensor or layer.
        low: least value that the set's range holds (for a BatchNorm layer: mean less 3.09 standard
            deviations, of the channel where that is least).
        high: greatest value.
        reference_low: 0.1 % quantile of the reference.
        reference_high: 99.9 % quantile.
        covered: share of the reference's quantile range that the set's range covers, in [0, 1];
            for a BatchNorm layer the mean over its channels.
        excess_bits: bits of resolution that the set's range gives away beyond all values of the
            reference.
        cut: share of the reference's values that the set's range cuts off; None without images.
        tail_mass: share of the set's values outside of the reference's quantile range, 0.002 where
            both are alike; None without images.
        signal_db: signal to noise of the reference's values in the set's range of 8 bits, of the
            median image; None without images.
    """

    name: str
    low: float
    high: float
    reference_low: float
    reference_high: float
    covered: float
    excess_bits: float
    cut: float | None = None
    tail_mass: float | None = None
    signal_db: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Every tensor of a set against real images.

    Attributes:
        layers: one per tensor.
        rounding: error of rounding over the signal's power, shape (tensors, real images).
        cutting: error of cutting values off, the same.
    """

    layers: tuple[LayerQuality, ...]
    rounding: Floats
    cutting: Floats

    @property
    def noise(self) -> Floats:
        """Both together, shape (tensors, real images), at most 1: more is just as lost."""
        return np.minimum(self.rounding + self.cutting, 1.0)

    @property
    def signal_db(self) -> float:
        """Signal to noise of the median image, over all tensors: their errors add up."""
        return decibel(self.noise.sum(axis=0))


def compare_with_real(
    activations: Activations, real: Activations, ranges: Mapping[str, tuple[float, float]]
) -> Comparison:
    """Compare a set with real images.

    Args:
        activations: of the set.
        real: of a few real images, for the same tensors.
        ranges: tensor name to the range it is quantized with; the set's extremes where it is not
            named.

    Raises:
        InputError: the tensors differ.
    """
    if activations.names != real.names:
        differ = sorted(set(activations.names) ^ set(real.names))
        raise InputError(
            f"the set has {len(activations.names)} tensors and the real images have "
            f"{len(real.names)}, in another order or others ({', '.join(differ[:3])}); summarize "
            "both with the same names"
        )
    nobody = np.zeros(len(real), np.int64)
    odd = find_outliers(real, nobody, factor=REFERENCE_OUTLIER_FACTOR)
    usual = real.take(np.setdiff1d(np.arange(len(real)), [outlier.image for outlier in odd]))
    layers, rounding, cutting = [], [], []
    for held, reference in zip(activations.tensors, usual.tensors, strict=True):
        low, high = _with_zero(ranges.get(held.name, held.range))
        rounded, cut = _noise(reference, low, high)
        rounding.append(rounded)
        cutting.append(cut)
        layers.append(_layer(held, reference, low, high, decibel(rounded + cut)))
    return Comparison(tuple(layers), np.array(rounding), np.array(cutting))


def _layer(
    held: TensorActivations, reference: TensorActivations, low: float, high: float, signal: float
) -> LayerQuality:
    least, most = _with_zero((reference.quantile(QUANTILES[0]), reference.quantile(QUANTILES[1])))
    return LayerQuality(
        name=held.name,
        low=low,
        high=high,
        reference_low=least,
        reference_high=most,
        covered=_share_covered(low, high, least, most),
        excess_bits=_excess_bits(high - low, np.ptp(_with_zero(reference.range))),
        cut=reference.outside(low, high),
        tail_mass=held.outside(least, most),
        signal_db=signal,
    )


def _noise(held: TensorActivations, low: float, high: float) -> tuple[Floats, Floats]:
    """Return the error of 8 bits from low to high over the signal's power, per image: (N,) twice.

    The first is of rounding, the second of cutting off what lies outside.
    """
    values = (held.edges[1:] + held.edges[:-1]) / 2
    shares = held.shares.astype(np.float64)
    shares /= shares.sum(axis=1, keepdims=True)
    power = np.maximum(shares @ values**2, np.finfo(np.float64).tiny)
    # What is smaller than half a step is rounded to zero and cannot lose more than itself.
    rounding = np.minimum(((high - low) / LEVELS) ** 2 / 12, values**2)
    beyond = np.maximum(values - high, 0) + np.maximum(low - values, 0)
    return shares @ rounding / power, shares @ beyond**2 / power


def decibel(noise: Floats) -> float:
    """Return the signal to noise ratio of the median image, within -60 to 60 dB."""
    return float(np.clip(-10 * math.log10(max(float(np.median(noise)), 1e-9)), -60, 60))


def compare_with_moments(layer: LayerMoments) -> LayerQuality:
    """Compare normal distributions, channel by channel; their reach stands for the range."""
    deviation, remembered = np.sqrt(layer.variance), np.sqrt(layer.running_variance)
    low, high = layer.mean - REACH * deviation, layer.mean + REACH * deviation
    least = layer.running_mean - REACH * remembered
    most = layer.running_mean + REACH * remembered
    covered = [_share_covered(*ends) for ends in zip(low, high, least, most, strict=True)]
    span, usual = high.max() - low.min(), most.max() - least.min()
    return LayerQuality(
        name=layer.name,
        low=float(low.min()),
        high=float(high.max()),
        reference_low=float(least.min()),
        reference_high=float(most.max()),
        covered=float(np.mean(covered)),
        excess_bits=_excess_bits(float(span), float(usual)),
    )


def _with_zero(ends: tuple[float, float]) -> tuple[float, float]:
    """Every quantized range holds zero."""
    return min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)


def _share_covered(low: float, high: float, least: float, most: float) -> float:
    if most <= least:
        return 1.0  # a channel that the reference never moved asks for nothing
    return float(max(min(high, most) - max(low, least), 0.0) / (most - least))


def _excess_bits(span: float, usual: float) -> float:
    if usual <= 0 or span <= usual:
        return 0.0
    return min(math.log2(span / usual), 8.0)
