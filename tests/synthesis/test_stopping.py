"""Step sizes, and when a batch has had enough."""

from __future__ import annotations

import pytest

from hydistill_edge.synthesis.stopping import DECLINE, Schedule, has_stalled
from hydistill_edge.training.schedules import cosine


def run(schedule: Schedule, values: list[float]) -> list[float]:
    rates = []
    while not schedule.finished:
        rates.append(schedule.rate())
        schedule.advance(values[schedule.done])
    return rates


@pytest.mark.parametrize(
    ("values", "stalled"),
    [
        ([4.0, 4.0, 3.0], False),  # fewer than two windows
        ([4.0, 4.0, 3.0, 3.0], False),
        ([4.0, 4.0, 3.9, 3.9], True),
        ([3.0, 3.0, 4.0, 4.0], True),
        ([9.0, 9.0, 4.0, 2.0, 3.0, 2.9], True),  # single values jump, means are alike
    ],
    ids=str,
)
def test_stall_is_seen_when_means_of_two_windows_are_alike(
    values: list[float], stalled: bool
) -> None:
    assert has_stalled(values, window=2, tolerance=0.05) is stalled


def test_schedule_is_a_cosine_when_nothing_is_watched() -> None:
    schedule = Schedule(10, 0.3)
    rates = run(schedule, [1.0] * 10)
    assert rates == [cosine(step, total=10, peak=0.3) for step in range(10)]
    assert (schedule.done, schedule.stalled) == (10, False)


def test_schedule_ends_one_window_after_a_stall() -> None:
    schedule = Schedule(100, 0.3, window=5, tolerance=0.01)
    rates = run(schedule, [1.0] * 100)
    assert (schedule.done, schedule.stalled) == (15, True)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0]


def test_schedule_goes_to_the_end_when_the_distance_keeps_falling() -> None:
    schedule = Schedule(30, 0.3, window=5, tolerance=0.01)
    run(schedule, [0.9**step for step in range(30)])
    assert (schedule.done, schedule.stalled) == (30, False)


def test_schedule_waits_when_no_distance_is_comparable() -> None:
    schedule = Schedule(30, 0.3, window=5, tolerance=0.01)
    for _ in range(30):
        schedule.advance(None)
    assert (schedule.finished, schedule.stalled) == (True, False)


def test_schedule_declines_once_when_images_are_good_enough() -> None:
    schedule, rates = Schedule(100, 0.3), []
    while not schedule.finished:
        rates.append(schedule.rate())
        schedule.advance(enough=schedule.done >= 20)
    assert (schedule.done, schedule.stalled) == (21 + DECLINE, True)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0]


def test_schedule_is_not_made_longer_when_enough_comes_at_the_end() -> None:
    schedule = Schedule(30, 0.3)
    for _ in range(30):
        schedule.advance(enough=schedule.done >= 30 - DECLINE)
    assert (schedule.finished, schedule.stalled) == (True, False)
