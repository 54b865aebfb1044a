"""What a reader should know first: the verdict and three sentences, made from the results alone."""

from __future__ import annotations

from dataclasses import dataclass

from hydistill_edge.report.data import Artifact, Gate, Run
from hydistill_edge.report.wording import (
    amount,
    count,
    in_unit,
    limit,
    listing,
    milliseconds,
    percent,
    plural,
    points,
    size,
    verdict,
)

SCOPES = ("frame", "engine")  # the one that a line waits for comes first
PERCENTILES = ("p99", "p90", "p50")  # the strictest that the sample supports comes first


@dataclass(frozen=True)
class Decision:
    """The head of a report.

    Attributes:
        passed: the build's verdict: True, False, or None for "not judged".
        verdict: its word.
        sentences: on the student, on the artifacts' gates, on time and size.
    """

    passed: bool | None
    verdict: str
    sentences: tuple[str, str, str]


def decide(run: Run) -> Decision:
    """Return the head of a run's report."""
    passed = run.passed
    if passed is None and any(artifact.passed is False for artifact in run.artifacts):
        passed = False
    sentences = (_on_student(run), _on_gates(run), _on_speed(run))
    return Decision(passed, verdict(passed), sentences)


def failed_gates(artifact: Artifact) -> tuple[tuple[str, Gate], ...]:
    """Return every gate that said no, with where it stands: a rung, "latency" or "accuracy"."""
    parity = artifact.parity.rungs if artifact.parity else ()
    latency = artifact.latency.gates if artifact.latency else ()
    found = [(rung.rung, gate) for rung in parity for gate in rung.gates]
    found += [("latency", gate) for gate in latency]
    found += [("accuracy", gate) for gate in artifact.gates]
    return tuple((where, gate) for where, gate in found if gate.passed is False)


def open_questions(artifact: Artifact) -> tuple[str, ...]:
    """Return what was not judged here: "parity R4", "latency"."""
    parity = artifact.parity
    rungs = (
        dict.fromkeys(rung.rung for rung in parity.rungs if rung.passed is None) if parity else {}
    )
    found = [f"parity {rung}" for rung in rungs]
    if parity is None:
        found.append("parity")
    gates = artifact.latency.gates if artifact.latency else ()
    if artifact.latency is None or not artifact.latency.scopes:
        found.append("latency")
    elif any(gate.passed is None for gate in gates):
        found.append("its latency limit")
    return tuple(found)


@dataclass(frozen=True)
class Headline:
    """The one latency that stands for an artifact, in ms."""

    scope: str
    percentile: str
    ms: float


def headline_latency(artifact: Artifact) -> Headline | None:
    """Return the frame scope's highest percentile that the sample supports, else the engine's."""
    scopes = {scope.name: scope for scope in (artifact.latency.scopes if artifact.latency else ())}
    for name in (*SCOPES, *scopes):
        for percentile in PERCENTILES:
            value = scopes[name].times.get(percentile) if name in scopes else None
            if value is not None:
                return Headline(name, percentile, value)
    return None


def _on_student(run: Run) -> str:
    teacher, student = run.teacher, run.student
    facts = [
        f"{amount(value)} {noun}"
        + (f", {percent(value / whole)} of the teacher's" if whole else "")
        for noun, value, whole in (
            ("parameters", student.params, teacher.params),
            ("multiply-accumulates", student.macs, teacher.macs),
        )
        if value is not None
    ]
    name = " ".join(["The student", student.arch]).rstrip()
    name += f" ({'; '.join(facts)})" if facts else ""
    if student.accuracy is not None:
        told = f"decides correctly in {percent(student.accuracy)} of cases"
        if run.evaluation_images:
            told += f" on {count(run.evaluation_images)} labelled images"
        if teacher.accuracy is not None:
            gap = points(student.accuracy - teacher.accuracy)
            told += f", the teacher {teacher.arch} in {percent(teacher.accuracy)} ({gap})"
    elif student.teacher_agreement is not None:
        told = f"decides like the teacher in {percent(student.teacher_agreement)} of cases"
    else:
        told = "was not evaluated: this run has neither accuracies nor agreements"
    bad = [_told(gate) for gate in student.gates if gate.passed is False]
    return f"{name} {told}" + (f"; it failed {listing(bad)}." if bad else ".")


def _on_gates(run: Run) -> str:
    total = len(run.artifacts)
    if not total:
        return "No artifact was built in this run."
    good = sum(artifact.passed is True for artifact in run.artifacts)
    parts = []
    if good == total:
        parts.append("The artifact passed" if total == 1 else f"All {total} artifacts passed")
    elif good:
        parts.append(f"{good} of {plural(total, 'artifact')} passed")
    parts = [f"{part} every gate" for part in parts]
    parts += [_failure(artifact) for artifact in run.artifacts if artifact.passed is False]
    parts += [_openness(artifact) for artifact in run.artifacts if artifact.passed is None]
    return "; ".join(parts) + "."


def _failure(artifact: Artifact) -> str:
    gates = failed_gates(artifact)
    if not gates:
        return f"{artifact.title} failed"
    where, gate = gates[0]
    more = f", and {plural(len(gates) - 1, 'more gate')}" if len(gates) > 1 else ""
    return f"{artifact.title} failed at {where} ({_told(gate)}{more})"


def _told(gate: Gate) -> str:
    """Return a gate as a report tells it: its number, its limit, and the worst sample."""
    asked = limit(gate.limit, gate.unit, gate.direction)
    told = f"{gate.name}: {in_unit(gate.value, gate.unit)}, asked {asked}"
    return told + (f", worst sample {gate.worst}" if gate.worst else "")


def _openness(artifact: Artifact) -> str:
    what = listing(open_questions(artifact))
    return f"{artifact.title} was not judged here" + (f" ({what})" if what else "")


def _on_speed(run: Run) -> str:
    # Times of different machines, scopes or percentiles are not compared with each other.
    groups: dict[tuple[str, str, str], list[tuple[float, Artifact]]] = {}
    for artifact in run.artifacts:
        headline = headline_latency(artifact)
        if artifact.passed is not False and artifact.latency and headline:
            key = (artifact.latency.measured_on, headline.scope, headline.percentile)
            groups.setdefault(key, []).append((headline.ms, artifact))
    if not groups:
        return "No artifact that may be used has a latency measured here."
    return "; ".join(_fastest(*key, group) for key, group in groups.items()) + "."


def _fastest(machine: str, scope: str, percentile: str, group: list[tuple[float, Artifact]]) -> str:
    ms, best = min(group, key=lambda pair: pair[0])
    told = "The fastest artifact is" if len(group) > 1 else "Measured was"
    told += f" {best.title} with {percentile} {milliseconds(ms)} per {scope}"
    told += f" and {size(best.bytes)}" if best.bytes is not None else ""
    told += f", on {machine}" if machine else ""
    return told + (", advisory" if best.latency and best.latency.advisory else "")
