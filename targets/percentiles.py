"""Percentiles of a sample, and the ones that the sample can support.

The 99th percentile of 100 queries is a guess. With order statistics it can be bounded: among n
queries, at most t lie above the true percentile with a confidence that the binomial distribution
gives. The rule is the early stopping of MLPerf Inference at tolerance 0 and 99 % confidence:
take the largest t that n allows, drop the t - 1 slowest, and the slowest of the rest is a bound.
At least 11 / 64 / 130 / 662 / 6,636 queries are needed for p50 / p90 / p95 / p99 / p99.9.

Source: https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import UsageError
from hydistill_edge.targets.binomial import binomial_cdf

CONFIDENCE = 0.99

PERCENTILES: Mapping[str, float] = {
    "p50": 0.50,
    "p90": 0.90,
    "p95": 0.95,
    "p99": 0.99,
    "p999": 0.999,
}


def share_of(percentile: str) -> float:
    """Return the share of queries below a percentile: 0.99 for "p99".

    Raises:
        UsageError: a percentile that the protocol does not know.
    """
    if percentile not in PERCENTILES:
        known = ", ".join(PERCENTILES)
        raise UsageError(f'percentile is "{percentile}"; expected one of {known}')
    return PERCENTILES[percentile]


def queries_needed(share: float, *, slower: int = 1) -> int:
    """Return the smallest n that supports a percentile with this many slower queries allowed.

    Args:
        share: of queries below the percentile, in (0, 1).
        slower: t ≥ 1 of the rule above.
    """
    low, high = slower, 2 * slower + 1
    while not _supports(high, share, slower):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _supports(middle, share, slower):
            high = middle
        else:
            low = middle
    return high


def slower_allowed(n: int, share: float) -> int:
    """Return the largest t of the rule above for n queries; 0 where n does not support any."""
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        if _supports(n, share, middle):
            low = middle
        else:
            high = middle
    return low


def percentile(ordered: NDArray[np.float64], share: float) -> float | None:
    """Return the measured percentile (nearest rank), or None where the sample does not support it.

    Args:
        ordered: shape (n,), ascending.
        share: of queries below it, in (0, 1).
    """
    if slower_allowed(len(ordered), share) == 0:
        return None
    # The product is rounded: 0.07 * 100 is 7.000000000000001, and its ceiling one rank too high.
    return float(ordered[math.ceil(share * len(ordered) - 1e-9) - 1])


def bounded_percentile(ordered: NDArray[np.float64], share: float) -> float | None:
    """Return a value that the true percentile does not exceed, at 99 % confidence; else None.

    Args:
        ordered: shape (n,), ascending.
        share: of queries below the percentile, in (0, 1).
    """
    slower = slower_allowed(len(ordered), share)
    return float(ordered[-slower]) if slower else None


def _supports(n: int, share: float, slower: int) -> bool:
    return binomial_cdf(slower, n, 1.0 - share) <= 1.0 - CONFIDENCE
