"""Learning rates as pure functions of the step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydistill_edge.errors import UsageError
from hydistill_edge.training.schedules import SCHEDULES, cosine, multi_step, one_cycle


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
