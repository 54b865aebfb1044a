"""What a list of durations says: percentiles, spread, outliers, histogram. Nothing is deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import UsageError
from hydistill_edge.targets.percentiles import PERCENTILES, bounded_percentile, percentile

BINS = 60

_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Distribution:
    """Durations of one scope; times in ms, one query being one call of `batch` images.

    Attributes:
        n: queries.
        batch: images per query.
        percentiles: "p50" to "p999", by nearest rank; None where n does not support it.
        bounded: the same names; a value that the true percentile does not exceed, at 99 %
            confidence.
        cov: standard deviation over mean, a fraction.
        throughput_per_s: images per second of measured time.
        mild_outliers: queries more than 1.5 interquartile ranges above the third quartile.
        severe_outliers: those more than 3 above it (Tukey's fences); counted in both.
        severe_time_share: their share of the measured time.
        edges_ms: edges of the histogram, log-spaced, shape (bins + 1,).
        counts: queries per bin, shape (bins,); they sum up to n.
    """

    n: int
    batch: int
    min_ms: float
    max_ms: float
    mean_ms: float
    cov: float
    throughput_per_s: float
    percentiles: dict[str, float | None]
    bounded: dict[str, float | None]
    mild_outliers: int
    severe_outliers: int
    severe_time_share: float
    edges_ms: tuple[float, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the scope as it stands in latency.json."""
        return {
            "n": self.n,
            "batch": self.batch,
            "min_ms": self.min_ms,
            **{f"{name}_ms": value for name, value in self.percentiles.items()},
            "max_ms": self.max_ms,
            "mean_ms": self.mean_ms,
            "cov": self.cov,
            "throughput_per_s": self.throughput_per_s,
            "bounded": {f"{name}_ms": value for name, value in self.bounded.items()},
            "outliers": {
                "mild": self.mild_outliers,
                "severe": self.severe_outliers,
                "severe_time_share": self.severe_time_share,
            },
            "histogram": {"edges_ms": list(self.edges_ms), "counts": list(self.counts)},
        }


def describe(durations_ns: NDArray[np.int64] | Sequence[int], *, batch: int = 1) -> Distribution:
    """Describe durations of single queries.

    Args:
        durations_ns: shape (n,), n ≥ 1, in nanoseconds.
        batch: images per query.

    Raises:
        UsageError: no durations.
    """
    if len(durations_ns) == 0:
        raise UsageError("0 queries were timed; expected at least 1, give the run more time")
    times_ms = np.sort(np.asarray(durations_ns, np.float64)) / _NS_PER_MS
    total_ms, mean_ms = float(times_ms.sum()), float(times_ms.mean())
    first, third = np.percentile(times_ms, [25, 75])
    severe = times_ms[times_ms > third + 3.0 * (third - first)]
    edges, counts = _histogram(times_ms)
    return Distribution(
        n=len(times_ms),
        batch=batch,
        min_ms=float(times_ms[0]),
        max_ms=float(times_ms[-1]),
        mean_ms=mean_ms,
        cov=float(times_ms.std()) / mean_ms if mean_ms > 0 else 0.0,
        throughput_per_s=1e3 * batch * len(times_ms) / total_ms if total_ms > 0 else 0.0,
        percentiles={name: percentile(times_ms, p) for name, p in PERCENTILES.items()},
        bounded={name: bounded_percentile(times_ms, p) for name, p in PERCENTILES.items()},
        mild_outliers=int((times_ms > third + 1.5 * (third - first)).sum()),
        severe_outliers=len(severe),
        severe_time_share=float(severe.sum()) / total_ms if total_ms > 0 else 0.0,
        edges_ms=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _histogram(
    ordered_ms: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Bins grow with the value: the tail of a latency is decades away from its median."""
    low, high = max(float(ordered_ms[0]), 1e-6), float(ordered_ms[-1])
    if high <= low:
        return np.array([low, low * 1.01]), np.array([len(ordered_ms)])
    edges = np.geomspace(low, high, BINS + 1)
    edges[0], edges[-1] = min(low, float(ordered_ms[0])), high  # geomspace rounds its ends
    return edges, np.histogram(ordered_ms, edges)[0]
