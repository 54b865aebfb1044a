"""A percentile is a number only where the sample supports it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydistill_edge.errors import UsageError
from hydistill_edge.targets.distribution import describe
from hydistill_edge.targets.percentiles import (
    PERCENTILES,
    bounded_percentile,
    percentile,
    queries_needed,
    share_of,
    slower_allowed,
)

MS = 1_000_000


@pytest.mark.parametrize(
    ("slower", "needed"),
    [(1, [11, 64, 130, 662, 6_636]), (10, [35, 197, 398, 2_010, 20_140])],
    ids=["one-slower", "ten-slower"],
)
def test_queries_needed_are_those_of_the_published_rule(slower: int, needed: list[int]) -> None:
    assert [queries_needed(share, slower=slower) for share in PERCENTILES.values()] == needed


@pytest.mark.parametrize("name", PERCENTILES)
def test_percentile_is_null_when_one_query_is_missing(name: str) -> None:
    share = share_of(name)
    times = np.arange(1.0, queries_needed(share) + 1)

    assert bounded_percentile(times, share) == times[-1]
    assert percentile(times, share) is not None
    assert bounded_percentile(times[1:], share) is None
    assert percentile(times[1:], share) is None


def test_bound_is_the_tenth_slowest_when_ten_are_allowed() -> None:
    times = np.arange(2_010.0)

    assert slower_allowed(2_010, 0.99) == 10
    assert bounded_percentile(times, 0.99) == 2_000.0
    assert percentile(times, 0.99) == 1_989.0


def test_bound_covers_the_true_percentile_nearly_always() -> None:
    rng = np.random.default_rng(0)
    samples = np.sort(rng.exponential(size=(2_000, 700)), axis=1)

    bounds = np.array([bounded_percentile(sample, 0.99) for sample in samples])

    assert (bounds >= -np.log(0.01)).mean() >= 0.99


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=200))
def test_description_loses_no_query_and_keeps_its_order(durations: list[int]) -> None:
    found = describe(durations)

    assert sum(found.counts) == found.n == len(durations)
    values = [found.min_ms, *(v for v in found.percentiles.values() if v is not None)]
    assert values == sorted(values)
    assert all(v <= found.max_ms for v in values)
    for name, value in found.percentiles.items():
        bound = found.bounded[name]
        assert (value is None) == (bound is None)
        assert value is None or (bound is not None and value <= bound)


def test_description_gives_the_numbers_done_by_hand() -> None:
    found = describe([1 * MS] * 15 + [5 * MS], batch=2)

    assert (found.min_ms, found.max_ms, found.mean_ms) == (1.0, 5.0, 1.25)
    assert found.percentiles["p50"] == 1.0
    assert found.percentiles["p90"] is None
    assert found.cov == pytest.approx((15 * 0.25**2 + 3.75**2) ** 0.5 / 16**0.5 / 1.25)
    assert found.throughput_per_s == pytest.approx(2 * 16 / 0.020)
    assert (found.severe_outliers, found.severe_time_share) == (1, 0.25)


def test_description_of_equal_times_has_one_bin_and_no_spread() -> None:
    found = describe([2 * MS] * 100)

    assert (found.cov, found.counts, found.mild_outliers) == (0.0, (100,), 0)
    assert found.edges_ms[0] == 2.0


def test_description_refuses_an_empty_run() -> None:
    with pytest.raises(UsageError, match="0 queries"):
        describe([])


def test_share_of_lists_the_known_percentiles_when_one_is_unknown() -> None:
    with pytest.raises(UsageError, match="p50, p90, p95, p99, p999"):
        share_of("p42")
