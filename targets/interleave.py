"""Which of two is faster, and by how much: measured in turns, so that drift strikes both.

Two runs one after the other compare two moments of a machine. In turns (A B, B A, A B, ...) each
round compares neighbors in time, and the spread of the rounds' ratios says what the ratio is
worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hydistill_edge.errors import UsageError
from hydistill_edge.targets.stopwatch import CLOCK, Clock, quiet_heap, time_calls, warm_up

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of a comparison.

    Attributes:
        call: takes one input; what it does is what is timed.
        inputs: made before, cycled through.
    """

    name: str
    call: Callable[[Any], object]
    inputs: Sequence[Any]


@dataclass(frozen=True, slots=True)
class LatencyRatio:
    """Medians of `new` over medians of `old`, round by round.

    Attributes:
        ratio: median of the rounds' ratios; below 1 the new one is faster.
        ratio_min: smallest ratio of a round.
        ratio_max: largest ratio of a round.
        ratios: one per round.
        old_p50_ms: median of the rounds' medians.
        new_p50_ms: the same for the new one.
        old_medians_ms: one per round.
        new_medians_ms: one per round.
        n: queries of each side, over all rounds.
        decided: whether all rounds agree on which is faster.
    """

    old: str
    new: str
    rounds: int
    ratio: float
    ratio_min: float
    ratio_max: float
    ratios: tuple[float, ...]
    old_p50_ms: float
    new_p50_ms: float
    old_medians_ms: tuple[float, ...]
    new_medians_ms: tuple[float, ...]
    n: tuple[int, int]
    decided: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def compare_latency(
    old: Contender,
    new: Contender,
    *,
    rounds: int = ROUNDS,
    seconds: float = 1.0,
    at_least: int = 11,
    warm_up_s: tuple[float, float] = (0.5, 10.0),
    clock: Clock = CLOCK,
) -> LatencyRatio:
    """Time two contenders in turns and compare the medians of each round.

    Args:
        old: the peer or the version before; the ratio's denominator.
        new: what is judged.
        rounds: at least 5; every other round begins with the new one.
        seconds: per contender and round.
        at_least: queries per contender and round even where that takes longer; 11 support a p50.
        warm_up_s: shortest and longest warm-up of each, before the first round.
        clock: nanoseconds; tests hand in their own.

    Raises:
        UsageError: fewer than 5 rounds, or a contender without inputs.
    """
    if rounds < ROUNDS:
        raise UsageError(f"rounds is {rounds}; expected at least {ROUNDS} for a spread")
    for side in (old, new):
        if len(side.inputs) == 0:
            raise UsageError(f'contender "{side.name}" has no inputs; expected at least 1')
    medians: dict[int, list[float]] = {0: [], 1: []}
    counts = [0, 0]
    sides = (old, new)
    with quiet_heap():
        for side in sides:
            warm_up(
                side.call,
                side.inputs,
                at_least_s=warm_up_s[0],
                at_most_s=warm_up_s[1],
                clock=clock,
            )
        for number in range(rounds):
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                side = sides[index]
                durations_ns = time_calls(
                    side.call,
                    side.inputs,
                    seconds=seconds,
                    at_least=at_least,
                    first=counts[index],
                    clock=clock,
                )
                counts[index] += len(durations_ns)
                medians[index].append(float(np.median(durations_ns)) / 1e6)
    ratios = [b / max(a, 1e-9) for a, b in zip(medians[0], medians[1], strict=True)]
    return LatencyRatio(
        old=old.name,
        new=new.name,
        rounds=rounds,
        ratio=float(np.median(ratios)),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        ratios=tuple(ratios),
        old_p50_ms=float(np.median(medians[0])),
        new_p50_ms=float(np.median(medians[1])),
        old_medians_ms=tuple(medians[0]),
        new_medians_ms=tuple(medians[1]),
        n=(counts[0], counts[1]),
        decided=max(ratios) < 1.0 or min(ratios) > 1.0,
    )
