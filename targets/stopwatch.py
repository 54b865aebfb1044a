"""Call something again and again and time each call, with nothing else inside the clock."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[], int]
"""Nanoseconds from any origin, never going back."""

CLOCK: Clock = time.perf_counter_ns

# Warm-up is over once the medians of the last three windows agree within 2 %.
WINDOWS = 3
WINDOW_S = 0.2
WINDOW_CALLS = 3
SETTLED_WITHIN = 0.02

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the warm-up took.

    Attributes:
        rounds: calls made.
        settled: whether the medians agreed before the time was up.
    """

    s: float
    rounds: int
    settled: bool


def warm_up(
    call: Callable[[Any], object],
    inputs: Sequence[Any],
    *,
    at_least_s: float,
    at_most_s: float,
    clock: Clock = CLOCK,
) -> WarmUp:
    """Call until the time per call has settled, at least and at most so long.

    Args:
        call: takes one input.
        inputs: cycled through, one per call.
        at_least_s: even where it settles sooner.
        at_most_s: even where it never settles.
        clock: nanoseconds.
    """
    start = clock()
    medians: list[float] = []
    rounds = 0
    # Several windows have to fit into the longest warm-up.
    window_s = min(WINDOW_S, at_most_s / (2 * WINDOWS))
    while True:
        durations = time_calls(
            call, inputs, seconds=window_s, at_least=WINDOW_CALLS, first=rounds, clock=clock
        )
        rounds += len(durations)
        medians = [*medians[1 - WINDOWS :], float(np.median(durations))]
        spread = max(medians) - min(medians)
        settled = len(medians) == WINDOWS and spread <= SETTLED_WITHIN * max(medians)
        elapsed_s = (clock() - start) / _NS
        if (settled and elapsed_s >= at_least_s) or elapsed_s >= at_most_s:
            return WarmUp(elapsed_s, rounds, settled)


def time_calls(
    call: Callable[[Any], object],
    inputs: Sequence[Any],
    *,
    seconds: float,
    at_least: int = 1,
    at_most: int | None = None,
    cap_s: float | None = None,
    first: int = 0,
    clock: Clock = CLOCK,
) -> NDArray[np.int64]:
    """Return the duration of each call in nanoseconds, shape (n,).

    Args:
        call: takes one input.
        inputs: made before; cycled through, one per call.
        seconds: how long to go on.
        at_least: calls to make even where that takes longer.
        at_most: calls after which to stop even where time is left.
        cap_s: time after which to stop even before `at_least` calls.
        first: where in `inputs` to begin.
        clock: nanoseconds.
    """
    durations = array("q")
    end_ns = int(seconds * _NS)
    cap_ns = int(cap_s * _NS) if cap_s is not None else None
    start = clock()
    while True:
        given = inputs[(first + len(durations)) % len(inputs)]
        begin = clock()
        call(given)
        end = clock()
        durations.append(end - begin)
        n, elapsed = len(durations), end - start
        if n == at_most or (elapsed >= end_ns and n >= at_least):
            break
        if cap_ns is not None and elapsed >= cap_ns:
            break
    return np.array(durations, np.int64)


@contextmanager
def quiet_heap() -> Iterator[None]:
    """Keep what exists now out of garbage collection, so that a collection costs microseconds.

    Collection itself stays on: it runs on the device too, and without it a long measurement grows.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
