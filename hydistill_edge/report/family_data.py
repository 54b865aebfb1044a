"""What the page of several students shows, as frozen values; `family_reading.py` makes them.

As in `data.py`, None and what is empty mean "not measured".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A network's line: the teacher, the small network, or a student.

    Attributes:
        accuracy: on labelled images, in [0, 1].
        agreement: with the teacher, in [0, 1].
    """

    arch: str
    params: float | None
    macs: float | None
    accuracy: float | None
    agreement: float | None


@dataclass(frozen=True)
class Gap:
    """A difference of fractions in [-1, 1], and on what it was measured, or why it was not."""

    value: float | None
    error: float | None
    note: str


@dataclass(frozen=True)
class Best:
    """The int8 artifact of a student that a reader should look at first.

    Attributes:
        time_note: why there is no latency, where there is none.
        on: the processor that it was measured on.
    """

    title: str
    device: str
    p50_ms: float | None
    bytes: float | None
    accuracy: float | None
    agreement: float | None
    advisory: bool
    on: str
    time_note: str


@dataclass(frozen=True)
class Student:
    """One student.

    Attributes:
        report: address of its own report; empty where it has none.
        accuracy_note: why there is no accuracy, where there is none.
        agreement_note: on which images.
        failed: what said no: gates, and where.
        open: what was not judged here.
        failure: class and message of the error that it could not be built for; empty where it was.
    """

    name: str
    method: str
    report: str
    devices: tuple[str, ...]
    network: Network
    accuracy_note: str
    agreement_note: str
    to_small: Gap
    to_teacher: Gap
    best: Best | None
    best_note: str
    passed: bool | None
    failed: tuple[str, ...]
    open: tuple[str, ...]
    failure: tuple[str, str] | None


@dataclass(frozen=True)
class Family:
    """Several students of one teacher and one transfer set."""

    name: str
    passed: bool | None
    teacher: Network
    small: Network | None
    small_note: str
    students: tuple[Student, ...]
    transfer: Mapping[str, float | None]
    wall_s: Mapping[str, float | None]
    notes: tuple[str, ...]

    @property
    def by_labels(self) -> bool:
        """Whether accuracies were measured; without labels, agreement stands in their place."""
        return any(student.network.accuracy is not None for student in self.students)
