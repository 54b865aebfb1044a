"""Learning rates as pure functions of the step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydistill_edge.errors import UsageError
from hydistill_edge.training.schedules import SCHEDULES, cosine, keep_rate, multi_step, one_cycle


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 1.0), (25, 0.5 + np.sqrt(0.125)), (50, 0.5), (100, 0.0), (130, 0.0)]
)
def test_cosine_equals_hand_computation(step: float, rate: float) -> None:
    assert cosine(step, total=100, peak=1.0) == pytest.approx(rate)


def test_cosine_rises_evenly_when_it_warms_up() -> None:
    rates = [cosine(step, total=10, peak=0.4, warmup=3) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_cosine_ends_at_the_floor() -> None:
    assert cosine(10, total=10, peak=0.4, floor=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (25, 2.0), (62.5, 1.0), (100, 0.0)])
def test_one_cycle_equals_hand_computation(step: float, rate: float) -> None:
    assert one_cycle(step, total=100, peak=2.0) == pytest.approx(rate)


def test_multi_step_falls_at_each_milestone() -> None:
    rates = [multi_step(step, total=8, peak=1.0) for step in range(8)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(done=st.floats(0, 1.2), total=st.integers(1, 10_000))
def test_rate_stays_between_zero_and_peak(name: str, done: float, total: int) -> None:
    assert 0.0 <= SCHEDULES[name](done * total, total=total, peak=0.3) <= 0.3 + 1e-12


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedule_is_refused_when_there_is_no_step(name: str) -> None:
    with pytest.raises(UsageError, match="0 steps"):
        SCHEDULES[name](0, total=0, peak=0.1)


def test_one_cycle_is_refused_when_rise_is_all() -> None:
    with pytest.raises(UsageError, match=r"rise is 1\.0"):
        one_cycle(0, total=10, peak=0.1, rise=1.0)


def test_one_step_falls_in_the_middle() -> None:
    rates = [SCHEDULES["one_step"](step, total=4, peak=1.0) for step in range(4)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1])


def curve(place: float) -> float:
    """The published curve of one period, by hand: 100 epochs up, then half a cosine over 900."""
    if place < 100:
        return place / 100
    return float(0.5 * (1 + np.cos(np.pi * (place - 100) / 900)))


@pytest.mark.parametrize("place", [0, 50, 100, 250, 499.5])
@pytest.mark.parametrize("number", range(6))
def test_periodic_starts_anew_every_period(number: int, place: float) -> None:
    rate = SCHEDULES["periodic"](500 * number + place, total=4000, peak=5e-5)
    assert rate == pytest.approx(5e-5 * curve(place), abs=1e-12)


@pytest.mark.parametrize(
    ("place", "share"), [(0, 0.0), (50, 0.5), (100, 1.0), (250, 0.933), (500, 0.587), (1000, 0.0)]
)
def test_last_phase_of_periodic_runs_the_whole_curve(place: float, share: float) -> None:
    rate = SCHEDULES["periodic"](3000 + place, total=4000, peak=2.0)
    assert rate == pytest.approx(2.0 * curve(place), abs=1e-12)
    assert rate / 2.0 == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("total", [400, 1000, 3001])
def test_periodic_keeps_its_shape_when_the_training_is_shorter(total: int) -> None:
    for share in (0.1, 0.2, 0.31, 0.7, 0.77, 0.9):
        published = SCHEDULES["periodic"](4000 * share, total=4000, peak=1.0)
        found = SCHEDULES["periodic"](total * share, total=total, peak=1.0)
        assert found == pytest.approx(published, abs=1e-9)


def test_peak_falls_from_period_to_period_only_when_asked() -> None:
    peaks = [SCHEDULES["periodic_decay"](500 * n + 100, total=4000, peak=1.0) for n in range(6)]
    assert peaks == pytest.approx([0.8**n for n in range(6)])
    assert SCHEDULES["periodic_decay"](3100, total=4000, peak=1.0) == pytest.approx(0.1)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (50, 0.5), (100, 1.0), (550, 0.5), (1000, 0)])
def test_warm_cosine_is_one_period(step: float, rate: float) -> None:
    assert SCHEDULES["warm_cosine"](step, total=1000, peak=1.0) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    ("floor", "table"),
    [(0.5, (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)), (0.35, (1.0, 0.87, 0.74, 0.61, 0.48, 0.35))],
)
@pytest.mark.parametrize("total", [4000, 400, 8])
def test_keep_rate_is_that_of_the_published_table(
    floor: float, table: tuple[float, ...], total: int
) -> None:
    period = total // 8
    for number, rate in enumerate(table):
        for step in (period * number, period * (number + 1) - 1):
            assert keep_rate(step, total=total, floor=floor) == pytest.approx(rate)
    for step in (6 * period, total - 1, total, total + 5):
        assert keep_rate(step, total=total, floor=floor) == 0.8


@given(step=st.integers(0, 500), floor=st.floats(0.1, 1.0), last=st.floats(0.1, 1.0))
def test_keep_rate_stays_between_its_bounds(step: int, floor: float, last: float) -> None:
    rate = keep_rate(step, total=400, floor=floor, last=last)
    assert min(floor, last) - 1e-9 <= rate <= 1.0


@pytest.mark.parametrize("rates", [(0.0, 0.8), (0.5, 1.2)])
def test_keep_rate_is_refused_when_it_is_no_share(rates: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="shares in"):
        keep_rate(0, total=10, floor=rates[0], last=rates[1])
