"""Binomial tails agree with plain sums and, where it is installed, with scipy."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydistill_edge.targets.binomial import (
    binomial_cdf,
    proportion_lower_bound,
    regularized_beta,
)


@pytest.mark.parametrize(("k", "n", "p"), [(0, 5, 0.3), (3, 10, 0.5), (9, 10, 0.9), (40, 60, 0.6)])
def test_binomial_cdf_equals_the_plain_sum(k: int, n: int, p: float) -> None:
    plain = sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    assert binomial_cdf(k, n, p) == pytest.approx(plain, rel=1e-12)


def test_binomial_cdf_is_0_or_1_outside_the_trials() -> None:
    assert binomial_cdf(-1, 5, 0.5) == 0.0
    assert binomial_cdf(5, 5, 0.5) == 1.0
    assert binomial_cdf(0, 0, 0.5) == 1.0


@pytest.mark.parametrize("n", [64, 6_636, 2_000_000])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97, 0.999])
def test_tails_equal_scipy_when_it_is_installed(n: int, share: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the build extra only")
    agree = max(1, round(n * share))

    assert proportion_lower_bound(agree, n) == pytest.approx(
        stats.beta.ppf(0.05, agree, n - agree + 1), rel=1e-9
    )
    assert binomial_cdf(agree, n, share) == pytest.approx(
        stats.binom.cdf(agree, n, share), rel=1e-7, abs=1e-12
    )


@given(st.floats(0, 1), st.integers(1, 3000), st.integers(1, 3000))
def test_regularized_beta_mirrors_itself(x: float, a: int, b: int) -> None:
    value = regularized_beta(x, a, b)

    assert 0.0 <= value <= 1.0
    assert value == pytest.approx(1.0 - regularized_beta(1.0 - x, b, a), abs=1e-9)


@given(st.integers(1, 5000), st.data())
def test_lower_bound_rises_with_every_success(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n - 1))

    lower, higher = (proportion_lower_bound(k, n) for k in (successes, successes + 1))

    assert 0.0 <= lower < higher < 1.0
    assert lower <= successes / n
