"""Latency of an artifact on this machine: cold facts once, then two scopes, then a verdict.

- *engine*: pixels of the model's own size to logits, tensors resident.
- *frame*: a raw image to a decision, copies, resize and post-processing included.

    report = measure(lambda: OnnxRuntimeRunner(path, threads=1), images, mode="quick",
                     frame=lambda runner: lambda image: int(runner.run(image[None]).argmax()))
    report.verdict, report.scopes["engine"].bounded["p99"]

Percentiles that the sample does not support are null, no query is ever left out, and a number
measured on another machine than the device profile describes is advisory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from hydistill_edge.errors import UsageError
from hydistill_edge.targets.base import Images, Runner
from hydistill_edge.targets.cgroup import ROOT, read_text
from hydistill_edge.targets.conditions import read_conditions
from hydistill_edge.targets.distribution import Distribution, describe
from hydistill_edge.targets.disturbance import (
    CPU_COV_LIMIT,
    GPU_COV_LIMIT,
    Disturbance,
    Run,
    Verdict,
    between,
    judge_stability,
    read_counters,
)
from hydistill_edge.targets.gates import Gate, combine
from hydistill_edge.targets.interleave import Contender, LatencyRatio, compare_latency
from hydistill_edge.targets.latency_gate import LatencyLimit, latency_gate
from hydistill_edge.targets.stopwatch import CLOCK, Clock, WarmUp, quiet_heap, time_calls, warm_up

__all__ = [
    "CPU_COV_LIMIT",
    "DISTINCT_INPUTS",
    "GPU_COV_LIMIT",
    "MODES",
    "Contender",
    "Distribution",
    "LatencyLimit",
    "LatencyRatio",
    "LatencyReport",
    "Mode",
    "ModeName",
    "compare_latency",
    "latency_gate",
    "measure",
    "not_measured",
    "read_conditions",
]

SCHEMA_VERSION = 1

# With fewer distinct inputs, caches and branch predictors learn the data.
DISTINCT_INPUTS = 64
# More would only take memory: they are all made before the clock runs.
MOST_INPUTS = 256

ModeName = Literal["demo", "quick", "full"]
AnyRunner = TypeVar("AnyRunner", bound=Runner)


@dataclass(frozen=True, slots=True)
class Mode:
    """How long to measure; times are per scope.

    Attributes:
        seconds: how long to go on.
        at_least: queries to make even where that takes longer.
        at_most: queries after which to stop; None for no such end.
        cap_s: time after which to stop even before `at_least` queries.
        warm_up_s: shortest and longest warm-up.
        advisory: whether a number of this mode never counts.
    """

    name: ModeName
    seconds: float
    at_least: int
    at_most: int | None
    cap_s: float
    warm_up_s: tuple[float, float]
    advisory: bool


# "full" follows the single-stream rules of MLPerf Mobile (60 s and 1,024 samples, 600 s at most);
# "demo" spends 3 s on an artifact, both scopes and their warm-ups together.
MODES: Mapping[ModeName, Mode] = {
    "full": Mode("full", 60.0, 1024, None, 600.0, (1.0, 30.0), advisory=False),
    "quick": Mode("quick", 10.0, 1024, None, 60.0, (1.0, 30.0), advisory=False),
    "demo": Mode("demo", 1.2, 1, 1024, 1.2, (0.1, 0.3), advisory=True),
}


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """What latency.json holds.

    Attributes:
        mode: "demo", "quick" or "full".
        advisory_why: why the numbers do not count; empty where they do.
        measured_on: the machine; None where nothing was measured.
        verdict: None where nothing was measured.
        cold: load_ms, first_inference_ms and build_s, each null where unknown.
        scopes: "engine" and, where it was measured, "frame"; None where nothing was measured.
        warm_ups: per scope.
        disturbances: per scope.
        memory: resident_before_mib, resident_mib and resident_peak_mib of the whole process;
            its peak counts from the start of the process.
        conditions: see `conditions.read_conditions`.
        gates: the latency limit of the device profile, where there is one.
        note: what a reader must know.
    """

    mode: ModeName
    advisory_why: str = ""
    measured_on: str | None = None
    verdict: Verdict | None = None
    verdict_why: str = ""
    cold: Mapping[str, float | None] = field(default_factory=dict)
    scopes: Mapping[str, Distribution] | None = None
    warm_ups: Mapping[str, WarmUp] = field(default_factory=dict)
    disturbances: Mapping[str, Disturbance] = field(default_factory=dict)
    memory: Mapping[str, float | None] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    note: str = ""

    @property
    def advisory(self) -> bool:
        """Whether the numbers do not count for a gate."""
        return bool(self.advisory_why)

    @property
    def passed(self) -> bool | None:
        """True, False, or None where no limit was judged."""
        return combine(self.gates)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as it stands in latency.json, schema version 1."""
        warm_ups = list(self.warm_ups.values())
        return {
            "schema_version": SCHEMA_VERSION,
            "mode": self.mode,
            "advisory": self.advisory,
            "advisory_why": self.advisory_why,
            "measured_on": self.measured_on,
            "verdict": self.verdict,
            "verdict_why": self.verdict_why,
            "cold": {
                key: self.cold.get(key) for key in ("load_ms", "first_inference_ms", "build_s")
            },
            "scopes": (
                None
                if self.scopes is None
                else {scope: found.to_dict() for scope, found in self.scopes.items()}
            ),
            "warmup": {
                "s": sum(warm.s for warm in warm_ups),
                "rounds": sum(warm.rounds for warm in warm_ups),
                "scopes": {scope: asdict(warm) for scope, warm in self.warm_ups.items()},
            },
            "disturbance": {scope: d.to_dict() for scope, d in self.disturbances.items()},
            "memory": dict(self.memory),
            "conditions": dict(self.conditions),
            "passed": self.passed,
            "gates": [gate.to_dict() for gate in self.gates],
            "note": self.note,
        }


def measure(
    open_runner: Callable[[], AbstractContextManager[AnyRunner]],
    images: Images,
    *,
    mode: ModeName | Mode = "full",
    batch: int = 1,
    engine: Callable[[AnyRunner], Callable[[Images], object]] | None = None,
    frame: Callable[[AnyRunner], Callable[[Any], object]] | None = None,
    frames: Sequence[Any] | None = None,
    limit: LatencyLimit | None = None,
    mismatches: Sequence[str] = (),
    advisory_why: str = "",
    measured_on: str | None = None,
    threads: int | None = None,
    versions: Mapping[str, str] | None = None,
    extra_conditions: Mapping[str, Any] | None = None,
    build_s: float | None = None,
    cov_limit: float = CPU_COV_LIMIT,
    clock: Clock = CLOCK,
    root: Path = ROOT,
) -> LatencyReport:
    """Load an artifact, warm it up, and time its two scopes.

    Args:
        open_runner: makes the runner; its call and its `__enter__` are the load time.
        images: shape (N, H, W, C) uint8 at the model's size, at least 64 of them distinct.
        mode: "full", "quick", "demo", or a mode of your own.
        batch: images per query of the engine scope.
        engine: gives the call that is timed in the engine scope; `runner.run` where None.
        frame: gives the call from a raw image to a decision; no frame scope where None.
        frames: inputs of the frame scope, at least 64; the images one by one where None.
        limit: what the device profile asks for.
        mismatches: how this machine differs from the profile; any makes the numbers advisory.
        advisory_why: another reason why they do not count, such as a shared host.
        measured_on: name of the machine; its processor where None.
        threads: that the runtime was told to take.
        versions: of runtimes and drivers.
        extra_conditions: what else changes the number.
        build_s: seconds that building an engine on this machine took, where it did.
        cov_limit: spread up to which a run is stable; `GPU_COV_LIMIT` on a GPU.
        clock: nanoseconds; tests hand in their own.
        root: where /proc and /sys stand; tests hand in their own.

    Raises:
        UsageError: an unknown mode, or fewer than 64 distinct inputs.
    """
    plan = _plan(mode)
    batches = _batches(images, batch)
    raw = list(images[:MOST_INPUTS]) if frames is None else frames
    if frame is not None and len(raw) < DISTINCT_INPUTS:
        raise UsageError(f"{len(raw)} frames; expected at least {DISTINCT_INPUTS} distinct ones")

    reasons = [f"mode {plan.name}"] if plan.advisory else []
    reasons += [*([advisory_why] if advisory_why else []), *mismatches]
    before_mib = _memory_mib(root, "VmRSS")
    start = clock()
    with open_runner() as runner:
        loaded = clock()
        call = runner.run if engine is None else engine(runner)
        first_start = clock()
        call(batches[0])
        cold = {
            "load_ms": (loaded - start) / 1e6,
            "first_inference_ms": (clock() - first_start) / 1e6,
            "build_s": build_s,
        }
        timed = {"engine": _time_scope(call, batches, plan, batch, clock, root)}
        if frame is not None:
            timed["frame"] = _time_scope(frame(runner), raw, plan, 1, clock, root)
        memory = {
            "resident_before_mib": before_mib,
            "resident_mib": _memory_mib(root, "VmRSS"),
            "resident_peak_mib": _memory_mib(root, "VmHWM"),
        }
    scopes = {scope: result.distribution for scope, result in timed.items()}
    verdict, verdict_why = judge_stability(
        {scope: result.run for scope, result in timed.items()}, cov_limit=cov_limit
    )
    why = "; ".join(reasons)
    conditions = read_conditions(
        threads=threads, versions=versions, extra=extra_conditions, root=root
    )
    return LatencyReport(
        mode=plan.name,
        advisory_why=why,
        measured_on=measured_on or conditions["cpu"] or conditions["machine"],
        verdict=verdict,
        verdict_why=verdict_why,
        cold=cold,
        scopes=scopes,
        warm_ups={scope: result.warm_up for scope, result in timed.items()},
        disturbances={scope: result.run.disturbance for scope, result in timed.items()},
        memory=memory,
        conditions=conditions,
        gates=(latency_gate(limit, scopes, advisory_why=why),) if limit is not None else (),
        note="" if frame is not None else "the frame scope was not measured",
    )


def not_measured(
    why: str, *, mode: ModeName = "full", limit: LatencyLimit | None = None
) -> LatencyReport:
    """Return the report of an artifact that cannot run here: no numbers, and why.

    Args:
        why: such as "TensorRT engines are built and measured on the device".
        mode: the mode that was asked for.
        limit: what the device profile asks for; its gate is then not judged.
    """
    gates = () if limit is None else (replace(latency_gate(limit, {}), why=why),)
    return LatencyReport(mode=mode, advisory_why=why, gates=gates, note=why)


@dataclass(frozen=True, slots=True)
class _Timed:
    distribution: Distribution
    warm_up: WarmUp
    run: Run


def _time_scope(
    call: Callable[[Any], object],
    inputs: Sequence[Any],
    plan: Mode,
    batch: int,
    clock: Clock,
    root: Path,
) -> _Timed:
    shortest_s, longest_s = plan.warm_up_s
    with quiet_heap():
        warm = warm_up(call, inputs, at_least_s=shortest_s, at_most_s=longest_s, clock=clock)
        before, start = read_counters(root), clock()
        durations_ns = time_calls(
            call,
            inputs,
            seconds=plan.seconds,
            at_least=plan.at_least,
            at_most=plan.at_most,
            cap_s=plan.cap_s,
            clock=clock,
        )
        wall_s, after = (clock() - start) / 1e9, read_counters(root)
    distribution = describe(durations_ns, batch=batch)
    disturbance = between(before, after, wall_s)
    return _Timed(distribution, warm, Run(distribution.cov, warm.settled, disturbance))


def _plan(mode: ModeName | Mode) -> Mode:
    if isinstance(mode, Mode):
        return mode
    if mode not in MODES:
        raise UsageError(f'mode is "{mode}"; expected one of {", ".join(MODES)}')
    return MODES[mode]


def _batches(images: Images, batch: int) -> list[Images]:
    """Make all inputs of the engine scope before the clock runs: shape (batch, H, W, C) each."""
    distinct: set[bytes] = set()
    for image in images:
        distinct.add(image.tobytes())
        if len(distinct) == DISTINCT_INPUTS:
            break
    if images.ndim != 4 or len(distinct) < DISTINCT_INPUTS or batch < 1:
        raise UsageError(
            f"{len(distinct)} distinct images of shape {images.shape}, batch {batch}; expected at "
            f"least {DISTINCT_INPUTS} distinct ones of shape (N, H, W, C), and a batch from 1 on"
        )
    count = min(max(DISTINCT_INPUTS, len(images) // batch), MOST_INPUTS)
    rows = np.arange(count * batch).reshape(count, batch) % len(images)
    return [np.ascontiguousarray(images[row]) for row in rows]


def _memory_mib(root: Path, key: str) -> float | None:
    """Resident memory (VmRSS) or its peak (VmHWM) of this process, proc_pid_status(5)."""
    for line in (read_text(root / "proc/self/status") or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024  # the kernel gives kB
    return None
