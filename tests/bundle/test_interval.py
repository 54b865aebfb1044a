"""Exact bounds of counted rates, against published values and their definition."""

from __future__ import annotations

import pytest

from hydistill_edge.bundle.interval import error_upper_bound, proportion_interval


@pytest.mark.parametrize(
    ("wrong", "n", "expected"),
    [(0, 299, 1 - 0.05 ** (1 / 299)), (0, 1, 0.95), (1, 1, 1.0), (10, 100, 0.1637)],
    ids=["rule of three", "one image", "all wrong", "table"],
)
def test_error_bound_equals_the_known_value(wrong: int, n: int, expected: float) -> None:
    assert error_upper_bound(wrong, n) == pytest.approx(expected, abs=1e-4)


def test_interval_equals_the_known_value_when_8_of_10_hit() -> None:
    # R: binom.test(8, 10)$conf.int
    assert proportion_interval(8, 10) == pytest.approx((0.4439045, 0.9747893), abs=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (997, 1000), (9_990, 10_000)])
def test_interval_contains_the_share_that_was_seen(hits: int, n: int) -> None:
    low, high = proportion_interval(hits, n)

    assert 0 <= low <= hits / n <= high <= 1
