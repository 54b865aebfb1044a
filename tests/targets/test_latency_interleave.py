"""Two contenders in turns: the ratio survives drift, and its spread is told."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from hydistill_edge.errors import UsageError
from hydistill_edge.targets.latency import Contender, LatencyRatio, compare_latency

MS = 1_000_000


class Machine:
    """A clock, and work that takes longer the hotter the machine gets."""

    def __init__(self, drift_per_call: float = 0.0) -> None:
        self.now, self.calls, self.drift = 0, 0, drift_per_call
        self.log: list[str] = []

    def __call__(self) -> int:
        return self.now

    def work(self, name: str, ms: float) -> Callable[[object], None]:
        def call(given: object) -> None:
            self.calls += 1
            self.log.append(name)
            self.now += int(ms * (1 + self.drift * self.calls) * MS)

        return call


def race(machine: Machine, old_ms: float, new_ms: float, rounds: int = 6) -> LatencyRatio:
    return compare_latency(
        Contender("old", machine.work("old", old_ms), [0, 1]),
        Contender("new", machine.work("new", new_ms), [0, 1]),
        rounds=rounds,
        seconds=0.02,
        warm_up_s=(0.01, 0.02),
        clock=machine,
    )


def test_ratio_is_exact_when_the_machine_is_steady() -> None:
    found = race(Machine(), 1.0, 0.5)

    assert (found.ratio, found.ratio_min, found.ratio_max) == (0.5, 0.5, 0.5)
    assert (found.old_p50_ms, found.new_p50_ms, found.decided) == (1.0, 0.5, True)
    assert found.n == (6 * 20, 6 * 40)


def test_ratio_survives_a_machine_that_slows_down() -> None:
    found = race(Machine(drift_per_call=0.01), 1.0, 0.8)

    assert found.ratio == pytest.approx(0.8, rel=0.05)
    assert found.ratio_min < found.ratio < found.ratio_max


def test_equal_contenders_are_not_decided_when_the_machine_drifts() -> None:
    assert not race(Machine(drift_per_call=0.01), 1.0, 1.0).decided


def test_turns_alternate_who_begins() -> None:
    machine = Machine()

    race(machine, 1.0, 1.0, rounds=5)

    turns = machine.log[-200::20]  # 20 calls of 1 ms fill a turn
    assert turns == ["old", "new", "new", "old", "old", "new", "new", "old", "old", "new"]


def test_result_is_json() -> None:
    fields = json.loads(json.dumps(race(Machine(), 1.0, 2.0).to_dict(), allow_nan=False))

    assert (fields["old"], fields["new"], fields["rounds"], fields["ratio"]) == ("old", "new", 6, 2)
    assert len(fields["ratios"]) == 6


def test_comparison_refuses_fewer_than_five_rounds() -> None:
    with pytest.raises(UsageError, match="at least 5"):
        race(Machine(), 1.0, 1.0, rounds=4)


def test_comparison_refuses_a_contender_without_inputs() -> None:
    machine = Machine()
    side = Contender("old", machine.work("old", 1.0), [])

    with pytest.raises(UsageError, match="no inputs"):
        compare_latency(side, side, clock=machine)
