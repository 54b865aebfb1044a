"""The protocol of a latency measurement, on a clock that only moves when the model works."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

from hydistill_edge.errors import UsageError
from hydistill_edge.targets.distribution import describe
from hydistill_edge.targets.latency import (
    LatencyReport,
    Mode,
    latency_gate,
    measure,
    not_measured,
)
from hydistill_edge.targets.stopwatch import time_calls, warm_up

MS = 1_000_000
IMAGES = np.random.default_rng(0).integers(0, 256, (70, 2, 2, 1), dtype=np.uint8)
SHORT = Mode("full", 1.0, 700, None, 60.0, (0.1, 1.0), advisory=False)


class FakeClock:
    """A clock in nanoseconds that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class FakeRunner:
    """Takes the next of the given times for each call; loading takes 5 ms."""

    def __init__(self, clock: FakeClock, times_ms: Iterator[float]) -> None:
        self.clock, self.times_ms = clock, times_ms
        self.seen: list[bytes] = []

    def __enter__(self) -> FakeRunner:
        self.clock.now += 5 * MS
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seen.append(b"closed")

    def run(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(images.tobytes())
        self.clock.now += int(next(self.times_ms) * MS)
        return np.zeros((len(images), 3), np.float32)


@dataclass(frozen=True)
class Limit:
    percentile: str = "p99"
    limit_ms: float = 2.0
    scope: str = "engine"


@dataclass
class Bench:
    """A measurement of a fake runner on a machine that tells nothing."""

    root: Path
    clock: FakeClock = field(default_factory=FakeClock)

    def measure(self, times_ms: Iterator[float], **options: object) -> LatencyReport:
        self.runner = FakeRunner(self.clock, times_ms)
        settings = {"mode": SHORT, "measured_on": "bench", **options}
        return measure(lambda: self.runner, IMAGES, clock=self.clock, root=self.root, **settings)  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def steady(first_ms: float = 1.0) -> Iterator[float]:
    return itertools.chain([first_ms], itertools.repeat(1.0))


def test_measure_keeps_cold_facts_apart_from_the_timed_queries(bench: Bench) -> None:
    report = bench.measure(steady(first_ms=40.0), build_s=12.0)

    assert report.cold == {"load_ms": 5.0, "first_inference_ms": 40.0, "build_s": 12.0}
    assert report.scopes is not None
    assert report.scopes["engine"].max_ms == 1.0
    assert bench.runner.seen[-1] == b"closed"


def test_measure_cycles_through_at_least_64_distinct_inputs(bench: Bench) -> None:
    bench.measure(steady())

    assert len(set(bench.runner.seen) - {b"closed"}) == len(IMAGES)


def test_measure_makes_whole_batches_when_the_model_takes_several_images(bench: Bench) -> None:
    report = bench.measure(steady(), batch=4)

    assert {len(seen) for seen in bench.runner.seen[:-1]} == {4 * 4}
    assert report.scopes is not None
    assert report.scopes["engine"].throughput_per_s == pytest.approx(4000)


def test_measure_goes_on_until_there_is_time_and_queries_enough(bench: Bench) -> None:
    slow = bench.measure(itertools.repeat(100.0))
    quick = bench.measure(itertools.repeat(0.1))

    assert slow.scopes is not None
    assert quick.scopes is not None
    assert slow.scopes["engine"].n == 600  # the cap of 60 s comes before 700 queries
    assert quick.scopes["engine"].n == 10_000  # one second
    assert slow.scopes["engine"].percentiles["p99"] is None
    assert quick.scopes["engine"].percentiles["p999"] == 0.1


def test_measure_keeps_every_outlier(bench: Bench) -> None:
    times = itertools.chain(itertools.repeat(1.0, 800), [50.0], itertools.repeat(1.0))

    report = bench.measure(times)

    assert report.scopes is not None
    assert report.scopes["engine"].max_ms == 50.0
    assert report.scopes["engine"].severe_outliers == 1
    assert report.verdict == "unstable"


def test_measure_times_the_frame_scope_apart_from_the_engine(bench: Bench) -> None:
    def frame(runner: FakeRunner) -> Callable[[bytes], int]:
        def decide(data: bytes) -> int:
            bench.clock.now += MS // 2  # decoding
            return int(runner.run(IMAGES[:1]).argmax())

        return decide

    report = bench.measure(steady(), frame=frame, frames=[bytes([i]) for i in range(64)])

    assert report.scopes is not None
    assert report.scopes["engine"].percentiles["p50"] == 1.0
    assert report.scopes["frame"].percentiles["p50"] == 1.5
    assert set(report.to_dict()["warmup"]["scopes"]) == {"engine", "frame"}


def test_measure_times_the_callable_of_a_runner_with_resident_tensors(bench: Bench) -> None:
    def resident(runner: FakeRunner) -> Callable[[np.ndarray], None]:
        def execute(images: np.ndarray) -> None:
            bench.clock.now += MS // 4

        return execute

    report = bench.measure(steady(), engine=resident)

    assert report.scopes is not None
    assert report.scopes["engine"].percentiles["p50"] == 0.25


def test_demo_is_always_advisory_and_ends_after_1024_queries_or_3_seconds(bench: Bench) -> None:
    quick = bench.measure(itertools.repeat(0.1), mode="demo", limit=Limit())
    start = bench.clock.now
    slow = bench.measure(itertools.repeat(20.0), mode="demo", frame=lambda runner: runner.run)

    assert (quick.advisory, quick.advisory_why, quick.passed) == (True, "mode demo", None)
    assert quick.scopes is not None
    assert quick.scopes["engine"].n == 1024
    assert slow.advisory
    assert bench.clock.now - start <= 3_200 * MS


@pytest.mark.parametrize(
    ("limit_ms", "options", "passed", "why"),
    [
        pytest.param(1.0, {}, True, "confidence", id="within"),
        pytest.param(0.9, {}, False, "confidence", id="above"),
        pytest.param(0.9, {"mismatches": ["no VNNI"]}, None, "no VNNI", id="other-machine"),
        pytest.param(2.0, {"advisory_why": "shared host"}, None, "within", id="shared-host"),
    ],
)
def test_limit_is_judged_only_on_the_machine_that_the_profile_describes(
    bench: Bench, limit_ms: float, options: dict[str, object], passed: bool | None, why: str
) -> None:
    report = bench.measure(steady(), limit=Limit(limit_ms=limit_ms), **options)

    assert report.passed is passed
    assert why in report.gates[0].why
    assert report.gates[0].value == 1.0


def test_gate_is_not_judged_when_the_sample_is_too_small() -> None:
    gate = latency_gate(Limit(), {"engine": describe([MS] * 300)})

    assert (gate.passed, gate.value) == (None, None)
    assert gate.why == "300 queries do not support p99; it takes 662"


def test_gate_is_not_judged_when_the_scope_was_not_measured() -> None:
    gate = latency_gate(Limit(scope="frame"), {"engine": describe([MS] * 700)})

    assert gate.passed is None
    assert "frame was not measured" in gate.why


def test_report_has_exactly_the_agreed_keys_and_is_strict_json(bench: Bench) -> None:
    fields = json.loads(json.dumps(bench.measure(steady()).to_dict(), allow_nan=False))

    assert fields.keys() >= {
        *("schema_version", "mode", "advisory", "advisory_why", "measured_on", "verdict"),
        *("verdict_why", "cold", "scopes", "warmup", "conditions", "gates", "note"),
    }
    assert fields["scopes"]["engine"].keys() >= {
        *("n", "min_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "mean_ms"),
        *("cov", "throughput_per_s", "bounded", "histogram"),
    }
    assert fields["scopes"]["engine"]["p999_ms"] is None
    assert set(fields["scopes"]["engine"]["histogram"]) == {"edges_ms", "counts"}
    assert (fields["measured_on"], fields["verdict"]) == ("bench", "stable")


def test_report_has_no_numbers_when_the_artifact_cannot_run_here() -> None:
    report = not_measured("engines are built on the device", limit=Limit())

    fields = report.to_dict()

    assert (fields["scopes"], fields["measured_on"], fields["verdict"]) == (None, None, None)
    assert fields["note"] == fields["gates"][0]["why"] == "engines are built on the device"
    assert report.passed is None


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        pytest.param(IMAGES[:63], {}, "63 distinct images", id="too-few"),
        pytest.param(np.repeat(IMAGES[:1], 99, axis=0), {}, "1 distinct images", id="all-equal"),
        pytest.param(IMAGES, {"mode": "fast"}, "demo|quick|full", id="unknown-mode"),
        pytest.param(IMAGES, {"frame": id, "frames": [1]}, "1 frames", id="too-few-frames"),
    ],
)
def test_measure_refuses_what_would_not_be_a_measurement(
    images: np.ndarray, options: dict[str, object], message: str
) -> None:
    clock = FakeClock()

    with pytest.raises(UsageError, match=message):
        measure(lambda: FakeRunner(clock, steady()), images, clock=clock, **options)  # type: ignore[arg-type]


def test_warm_up_ends_once_the_times_have_settled() -> None:
    clock = FakeClock()
    falling = itertools.chain(np.linspace(9.0, 1.0, 200).tolist(), itertools.repeat(1.0))
    runner = FakeRunner(clock, iter(falling))

    warm = warm_up(runner.run, [IMAGES], at_least_s=0.1, at_most_s=30, clock=clock)

    assert warm.settled
    assert 1.0 < warm.s < 3.0
    assert warm.rounds == len(runner.seen)


def test_warm_up_gives_up_when_the_times_never_settle() -> None:
    clock = FakeClock()
    rising = FakeRunner(clock, map(float, itertools.count(1)))

    warm = warm_up(rising.run, [IMAGES], at_least_s=0.1, at_most_s=2.0, clock=clock)

    assert not warm.settled
    assert warm.s >= 2.0


def test_clock_sees_the_call_only() -> None:
    clock = FakeClock()
    runner = FakeRunner(clock, itertools.cycle([1.0, 2.0, 3.0]))

    durations = time_calls(runner.run, [IMAGES], seconds=0, at_least=5, clock=clock)

    assert durations.tolist() == [MS, 2 * MS, 3 * MS, MS, 2 * MS]
