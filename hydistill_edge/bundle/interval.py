"""Exact (Clopper-Pearson) bounds of a rate that was counted, from the standard library.

Source: Clopper and Pearson 1934, Biometrika 26(4), doi:10.1093/biomet/26.4.404
"""

from __future__ import annotations

import math

CONFIDENCE = 0.95
_HALVINGS = 60  # of an interval of length 1: only float64 rounding is left


def error_upper_bound(wrong: int, n: int, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided upper bound of an error rate, a fraction.

    It is the rate at which `wrong` or fewer of n would be seen with probability 1 - confidence.

    Args:
        wrong: 0 ≤ wrong ≤ n.
        n: at least 1.
        confidence: in (0, 1).
    """
    assert 0 <= wrong <= n
    assert n >= 1
    if wrong == n:
        return 1.0
    log_choose = [0.0]
    for k in range(wrong):
        log_choose.append(log_choose[-1] + math.log((n - k) / (k + 1)))
    low, high = wrong / n, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _at_most(log_choose, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def proportion_interval(hits: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the two-sided interval of a proportion, two fractions.

    Args:
        hits: 0 ≤ hits ≤ n.
        n: at least 1.
        confidence: in (0, 1), shared equally by both sides.
    """
    one_sided = (1 + confidence) / 2
    return 1 - error_upper_bound(n - hits, n, one_sided), error_upper_bound(hits, n, one_sided)


def _at_most(log_choose: list[float], n: int, p: float) -> float:
    """Return P(X ≤ k) for X ~ Binomial(n, p), 0 < p < 1, from log(n over i) for i = 0 to k."""
    if not 0 < p < 1:
        return 1.0 if p <= 0 else 0.0
    hit, miss = math.log(p), math.log1p(-p)
    terms = [value + i * hit + (n - i) * miss for i, value in enumerate(log_choose)]
    peak = max(terms)
    return math.exp(peak) * math.fsum(math.exp(term - peak) for term in terms)
