"""Ranges of float activations: from which values to which an int8 tensor reaches.

The float graph runs over the calibration images twice: the first pass finds the extremes of every
tensor, the second fills one histogram of fixed edges per tensor. So memory is bounded by the number
of tensors, never by the number of images, and the order of the batches does not matter.

How the graph is run is the caller's business: an `ActivationReader` is handed in.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import InputError
from hydistill_edge.targets.base import ActivationReader, Images, RangeEstimator, Scheme

Floats = NDArray[np.floating[Any]]
METHODS = ("minmax", "percentile", "entropy", "mse")

BINS = 4096  # both signs together: 16 bins per int8 step, so that rounding inside a bin is small
LEVELS = 256  # of an 8 bit integer
PERCENTILE = 99.999  # keeps all but 1 value in 100,000
# The count of a bin that quantizing leaves empty. It keeps the divergence finite, as smoothing does
# in ONNX Runtime's calibrator; otherwise one outlier would forbid every smaller range.
EMPTY = 1e-4
DEAD = 1e-30  # a tensor that never reaches it is all zeros; bins of it have no width in float32
STEPS = 256  # candidates for the least divergence: bounds in steps of 1/256 of the extremes
GRID = 16  # candidates per side in the coarse and in the fine search for the least squared error


class Range(NamedTuple):
    """Values that a quantized tensor can hold; `low` <= 0 <= `high`: zero is one of them."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of one tensor's values between -limit and +limit.

    Attributes:
        low: least value seen.
        high: greatest value seen.
        counts: shape (bins,) int64, an even number of bins of equal width; the edge between the
            two middle ones is zero.
    """

    low: float
    high: float
    counts: NDArray[np.int64]

    @property
    def limit(self) -> float:
        """Greatest magnitude that the bins reach."""
        return max(abs(self.low), abs(self.high))

    @property
    def width(self) -> float:
        """Width of one bin."""
        return 2 * self.limit / len(self.counts)

    @property
    def centers(self) -> Floats:
        """Middle of each bin, shape (bins,)."""
        bins = len(self.counts)
        return (np.arange(bins) - (bins - 1) / 2) * self.width

    @property
    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of |x|, shape (bins / 2,), the bin next to zero first."""
        half = len(self.counts) // 2
        return self.counts[half:] + self.counts[:half][::-1]

    def add(self, values: NDArray[np.float32]) -> None:
        """Count more values; all lie between `low` and `high`."""
        bins = len(self.counts)
        # Scaled from zero, so that zero itself is on an edge whatever float32 rounds.
        places = np.floor(np.ravel(values) * np.float32(bins / 2 / self.limit)).astype(np.int32)
        np.clip(places + bins // 2, 0, bins - 1, out=places)
        self.counts[:] += np.bincount(places, minlength=bins)


def estimate_ranges(
    reader: ActivationReader,
    model: Path,
    tensors: Sequence[str],
    images: Images,
    *,
    method: str = "minmax",
    symmetric: bool = True,
    percentile: float = PERCENTILE,
) -> dict[str, Range]:
    """Return the range of each named tensor of a float model over the images.

    Args:
        reader: runs the model and yields the tensors batch by batch; called once for "minmax",
            twice otherwise.
        model: ONNX file in float.
        tensors: names of float tensors in the model.
        images: shape (N, H, W, C) uint8, the calibration images.
        method: "minmax" keeps every value; "percentile" cuts the rarest; "entropy" keeps the
            distribution (least KL divergence); "mse" has the least squared rounding error.
        symmetric: return (-a, a) for a signed type with zero point 0; else (low, high).
        percentile: share in percent of the values that "percentile" keeps.

    Raises:
        InputError: unknown method, no images, a tensor that the reader does not yield, or one
            that is not finite.
    """
    check_method(method)
    _check_percentile(percentile)
    extremes = _extremes(reader, model, tensors, images)
    if method == "minmax":
        return {name: _as_range(low, high, symmetric) for name, (low, high) in extremes.items()}
    histograms = {
        name: Histogram(low, high, np.zeros(BINS, dtype=np.int64))
        for name, (low, high) in extremes.items()
    }
    dead = {name for name, histogram in histograms.items() if histogram.limit < DEAD}
    for batch in reader(model, tensors, images):
        for name in set(tensors) - dead:
            histograms[name].add(batch[name])
    search = _searches(percentile)[method]
    return {
        name: Range(0.0, 0.0) if name in dead else search(histogram, symmetric)
        for name, histogram in histograms.items()
    }


def make_estimator(reader: ActivationReader, images: Images, scheme: Scheme) -> RangeEstimator:
    """Return what a builder asks for ranges: reader, images and the scheme's method are bound.

    Args:
        reader: runs the model and yields the tensors batch by batch.
        images: shape (N, H, W, C) uint8, the calibration images.
        scheme: its range estimator, and whether its activations are symmetric, decide.
    """

    def estimate(model: Path, tensors: Sequence[str]) -> dict[str, tuple[float, float]]:
        ranges = estimate_ranges(
            reader,
            model,
            tensors,
            images,
            method=scheme.range_estimator,
            symmetric=scheme.symmetric_activations,
        )
        return {name: (found.low, found.high) for name, found in ranges.items()}

    return estimate


def percentile_range(histogram: Histogram, symmetric: bool, percentile: float) -> Range:
    """Return the range that keeps `percentile` percent of the values.

    Symmetric: of the magnitudes. Otherwise half of the rest is cut at either end. Values are taken
    as spread evenly inside a bin.
    """
    half = len(histogram.counts) // 2
    if symmetric:
        edges = np.arange(half + 1) * histogram.width
        bound = _quantile(histogram.magnitudes, edges, percentile / 100)
        return _as_range(-bound, min(bound, histogram.limit), symmetric)
    edges = np.arange(-half, half + 1) * histogram.width
    tail = (1 - percentile / 100) / 2
    low = _quantile(histogram.counts, edges, tail)
    high = _quantile(histogram.counts, edges, 1 - tail)
    return _as_range(max(low, histogram.low), min(high, histogram.high), symmetric)


def mse_range(histogram: Histogram, symmetric: bool) -> Range:
    """Return the range with the least squared error of clipping and rounding to 8 bits."""
    if symmetric:
        bounds = histogram.limit * np.arange(1, GRID**2 + 1) / GRID**2
        return _least_error(histogram, -bounds, bounds, symmetric)
    # Both ends are free: a coarse grid over the two, then a fine one around the best of it.
    low, high = histogram.low, histogram.high
    coarse = np.arange(1, GRID + 1) / GRID
    best = _least_error(histogram, *_pairs(min(low, 0) * coarse, max(high, 0) * coarse), symmetric)
    around = np.arange(1 - GRID, GRID) / GRID**2
    lows = np.clip(best.low + low * around, min(low, 0), 0)
    highs = np.clip(best.high + high * around, 0, max(high, 0))
    return _least_error(histogram, *_pairs(lows, highs), symmetric)


def entropy_range(histogram: Histogram, symmetric: bool) -> Range:
    """Return the range after which the distribution of |x| has changed least (KL divergence).

    One bound for magnitudes is searched; asymmetric ranges end there or where the values end.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310. As in later NVIDIA tools the
    bin next to zero is leveled with its neighbor: exact zeros (of a ReLU) fit every range and
    would hide the rest.
    """
    counts = histogram.magnitudes.astype(np.float64)
    counts[0] = counts[1]
    one_sided = histogram.low >= 0 or histogram.high <= 0
    levels = LEVELS if one_sided and not symmetric else LEVELS // 2
    step = max(1, len(counts) // STEPS)
    sizes = [*range(levels, len(counts), step), len(counts)]
    divergences = [_divergence(counts, size, levels) for size in sizes]
    bound = sizes[int(np.argmin(divergences))] * histogram.width
    low, high = max(-bound, histogram.low), min(bound, histogram.high)
    return _as_range(low, high, symmetric)


def _divergence(counts: Floats, size: int, levels: int) -> float:
    """Return KL(clipped ‖ quantized) where `size` bins are kept and merged into `levels`."""
    kept = counts[:size]
    clipped = kept.copy()
    clipped[-1] += counts[size:].sum()
    level = np.arange(size) * levels // size
    filled = kept > 0
    mass = np.bincount(level, weights=kept)
    share = np.bincount(level, weights=filled)
    quantized = np.where(filled, mass[level] / np.maximum(share[level], 1), 0.0)
    seen = clipped > 0
    quantized = np.where(quantized > 0, quantized, EMPTY)
    p, q = clipped[seen] / clipped.sum(), quantized[seen] / quantized.sum()
    return float(np.sum(p * np.log(p / q)))


def _searches(percentile: float) -> Mapping[str, Callable[[Histogram, bool], Range]]:
    return {
        "percentile": lambda histogram, symmetric: percentile_range(
            histogram, symmetric, percentile
        ),
        "entropy": entropy_range,
        "mse": mse_range,
    }


def check_method(method: str) -> None:
    """Raise InputError unless there is such an estimator."""
    known = METHODS
    if method not in known:
        close = difflib.get_close_matches(method, known, n=1)
        hint = f' (did you mean "{close[0]}"?)' if close else ""
        raise InputError(
            f'range estimator "{method}" is not known{hint}; known: {", ".join(known)}'
        )


def _check_percentile(percentile: float) -> None:
    if not 50 < percentile <= 100:
        raise InputError(f"percentile is {percentile:g}; expected more than 50 and at most 100")


def _extremes(
    reader: ActivationReader, model: Path, tensors: Sequence[str], images: Images
) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for batch in reader(model, tensors, images):
        for name, low, high in _batch_extremes(batch, tensors):
            before = found.get(name, (low, high))
            found[name] = (min(before[0], low), max(before[1], high))
    if tensors and not found:
        raise InputError(
            f"no activations were read from {model.name}: {len(images)} calibration images gave no "
            "batch; hand over at least one image"
        )
    return found


def _batch_extremes(
    batch: Mapping[str, NDArray[np.float32]], tensors: Sequence[str]
) -> Iterator[tuple[str, float, float]]:
    for name in tensors:
        if name not in batch:
            raise InputError(
                f'tensor "{name}" was not read; expected every one of {len(tensors)} named tensors '
                "in each batch. Check that the model has it as a float tensor"
            )
        low, high = float(batch[name].min()), float(batch[name].max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(
                f'tensor "{name}" reaches from {low} to {high} on the calibration images; expected '
                "finite values. Check the model in float before quantizing it"
            )
        yield name, low, high


def _as_range(low: float, high: float, symmetric: bool) -> Range:
    if symmetric:
        bound = max(abs(low), abs(high))
        return Range(-bound, bound)
    return Range(min(low, 0.0), max(high, 0.0))


def _quantile(counts: NDArray[np.int64], edges: Floats, share: float) -> float:
    """Return the value below which `share` of the counts lie; shapes (bins,) and (bins + 1,)."""
    below = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    if share <= 0.5:  # the last edge with no more below it, so that empty bins are cut, not kept
        first = int(np.searchsorted(below, share, side="right")) - 1
        return float(np.interp(share, below[first : first + 2], edges[first : first + 2]))
    last = int(np.searchsorted(below, share, side="left"))
    return float(np.interp(share, below[last - 1 : last + 1], edges[last - 1 : last + 1]))


def _pairs(lows: Floats, highs: Floats) -> tuple[Floats, Floats]:
    """Return every low with every high, as two arrays of shape (lows * highs,)."""
    grid = np.meshgrid(np.unique(lows), np.unique(highs), indexing="ij")
    return grid[0].ravel(), grid[1].ravel()


def _least_error(
    histogram: Histogram,
    lows: Floats,
    highs: Floats,
    symmetric: bool,
) -> Range:
    filled = histogram.counts > 0
    values, counts = histogram.centers[filled], histogram.counts[filled]
    errors = [
        float(np.sum(counts * (values - rounded(values, low, high, symmetric)) ** 2))
        if high > low
        else float("inf")
        for low, high in zip(lows, highs, strict=True)
    ]
    best = int(np.argmin(errors))
    return Range(float(lows[best]), float(highs[best]))


def rounded(values: Floats, low: float, high: float, symmetric: bool) -> Floats:
    """Return values of any shape as 8 bits would hold them: scaled, rounded, clipped and back.

    Symmetric: int8 with zero point 0 and scale high / 127; else uint8 with a whole zero point.
    """
    if symmetric:
        scale = high / (LEVELS // 2 - 1)
        signed: Floats = np.clip(np.rint(values / scale), -LEVELS // 2, LEVELS // 2 - 1)
        return signed * scale
    scale = (high - low) / (LEVELS - 1)
    zero_point = np.rint(-low / scale)
    quantized: Floats = np.clip(np.rint(values / scale) + zero_point, 0, LEVELS - 1)
    restored: Floats = (quantized - zero_point) * scale
    return restored
