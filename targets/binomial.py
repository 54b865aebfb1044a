"""Binomial tail probabilities from the standard library, safe for millions of trials.

Agreement bounds (`gates.py`) and percentile bounds (`percentiles.py`) both rest on them, and a
device has no scipy.
"""

from __future__ import annotations

import math

# Terms of the continued fraction grow with sqrt(max(a, b)); 20,000 serve 10^8 trials.
_MAX_TERMS = 20_000
# Halvings of an interval of length 1 until only float64 rounding is left.
_HALVINGS = 60
_TINY = 1e-300


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return P(X ≤ k) for X ~ Binomial(n, p).

    Args:
        k: any integer; below 0 the answer is 0, from n on it is 1.
        n: number of trials, n ≥ 0.
        p: chance of each trial, in [0, 1].

    Source: P(X ≤ k) = I_{1-p}(n-k, k+1), https://dlmf.nist.gov/8.17#E5
    """
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    return regularized_beta(1.0 - p, n - k, k + 1)


def proportion_lower_bound(successes: int, n: int, confidence: float = 0.95) -> float:
    """Return the one-sided Clopper-Pearson lower bound of a proportion, in [0, 1].

    It is the p at which `successes` or more of n would be seen with probability 1 - confidence:
    with that confidence the true proportion is not lower.

    Args:
        successes: 0 ≤ successes ≤ n.
        n: number of trials, n ≥ 1.
        confidence: in (0, 1).

    Source: Clopper and Pearson 1934, Biometrika 26(4), doi:10.1093/biomet/26.4.404
    """
    assert 0 <= successes <= n
    assert n >= 1
    if successes == 0:
        return 0.0
    alpha = 1.0 - confidence
    if successes == n:
        return float(alpha ** (1.0 / n))
    low, high = 0.0, successes / n
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if regularized_beta(middle, successes, n - successes + 1) < alpha:
            low = middle
        else:
            high = middle
    return low


def regularized_beta(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), for a, b > 0 and x in [0, 1].

    Source: continued fraction https://dlmf.nist.gov/8.17#E22, evaluated by Lentz's method.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    # The fraction converges quickly on one side of the mean only; the other side is its mirror.
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _beta_below_mean(1.0 - x, b, a)
    return _beta_below_mean(x, a, b)


def _beta_below_mean(x: float, a: float, b: float) -> float:
    log_front = (
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * math.log(x)
        + b * math.log1p(-x)
        - math.log(a)
    )
    if log_front < -700.0:  # exp would underflow, and the fraction is of order 1
        return 0.0
    return min(1.0, math.exp(log_front) * _continued_fraction(x, a, b))


def _continued_fraction(x: float, a: float, b: float) -> float:
    c = 1.0
    d = 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        step = 1.0
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            step = c * d
            value *= step
        if abs(step - 1.0) < 1e-15:
            return value
    raise AssertionError(f"no convergence of I_x(a, b) for x={x}, a={a}, b={b}")


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
