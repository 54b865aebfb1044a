"""What a report shows, as frozen values: one run directory, nothing that has to be computed.

`reading.py` makes them. None, an empty text and an empty tuple all mean "not measured".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hydistill_edge.report.calibration_data import Calibration, CalibrationSet
from hydistill_edge.report.method_data import Method
from hydistill_edge.report.pictures import Pictures


@dataclass(frozen=True)
class Gate:
    """One judged number; `passed` None is "not judged here", and `why` says why."""

    name: str
    passed: bool | None
    value: float | None
    limit: float | None
    direction: str  # "at_least", "at_most" or "exactly"
    unit: str
    why: str
    worst: str


@dataclass(frozen=True)
class WorstSample:
    """One of the images on which a rung's two sides differ most."""

    id: str
    reference: str
    candidate: str
    max_abs: float | None


@dataclass(frozen=True)
class Rung:
    """One rung of the parity ladder of one artifact."""

    rung: str
    title: str
    source: str  # "synthetic", "real" or "none"
    n: float | None
    passed: bool | None
    gates: tuple[Gate, ...]
    metrics: Mapping[str, float | None]
    worst: tuple[WorstSample, ...]
    note: str


@dataclass(frozen=True)
class Parity:
    """parity.json of one artifact."""

    passed: bool | None
    rungs: tuple[Rung, ...]
    note: str


@dataclass(frozen=True)
class Scope:
    """The latency distribution of one scope ("engine" or "frame"), times in ms.

    Attributes:
        times: min, p50, p90, p95, p99, p999, max and mean by name; None where the sample is too
            small for the percentile.
        bounded: upper bounds of the percentiles, by the same names.
        edges_ms: B + 1 bin edges of the histogram, empty where there is none.
        counts: B counts.
    """

    name: str
    n: float | None
    times: Mapping[str, float | None]
    bounded: Mapping[str, float | None]
    cov: float | None
    throughput_per_s: float | None
    edges_ms: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True)
class Latency:
    """latency.json of one artifact."""

    mode: str
    advisory: bool
    advisory_why: str
    measured_on: str
    verdict: str
    verdict_why: str
    cold: Mapping[str, float | None]
    scopes: tuple[Scope, ...]
    warmup: Mapping[str, str]
    conditions: Mapping[str, str]
    surroundings: Mapping[str, str]  # memory, and what disturbed the measurement
    gates: tuple[Gate, ...]
    note: str


@dataclass(frozen=True)
class Artifact:
    """One artifact: its line of summary.json, joined with its evidence.

    Attributes:
        gates: those of the summary that stand neither in parity.json nor in latency.json.
    """

    key: str  # target-device-precision, the name of its folder
    target: str
    device: str
    precision: str
    file: str
    bytes: float | None
    scheme: str
    accuracy: float | None
    student_agreement: float | None
    teacher_agreement: float | None
    passed: bool | None
    gates: tuple[Gate, ...]
    parity: Parity | None
    latency: Latency | None
    calibration: Calibration | None
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What a reader calls it."""
        return f"{self.target} {self.precision} for {self.device}"


@dataclass(frozen=True)
class Model:
    """The teacher or the student as summary.json and teacher.json describe it."""

    arch: str
    params: float | None
    macs: float | None
    accuracy: float | None
    teacher_agreement: float | None
    digest: str
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """One model's line of evaluation.json; fractions in [0, 1].

    Attributes:
        per_class: (class, images, accuracy) in class order.
        confusion: C rows of true classes, C counts of decided classes each.
    """

    name: str
    accuracy: float | None
    per_class: tuple[tuple[str, float | None, float | None], ...]
    confusion: tuple[tuple[float, ...], ...]
    roc_auc: float | None
    roc_auc_note: str
    agreement_with_teacher: float | None
    agreement_with_student: float | None
    accuracy_without_overlap: float | None = None

    @property
    def worst(self) -> tuple[str, float] | None:
        """The class with the lowest accuracy, and that accuracy."""
        known = [(name, value) for name, _, value in self.per_class if value is not None]
        return min(known, key=lambda row: row[1]) if known else None


@dataclass(frozen=True)
class Overlap:
    """Evaluation images that were seen in training: `overlap` of evaluation.json.

    Attributes:
        compared: real images of the transfer set.
        images: (evaluation image, image of the transfer set, difference in levels, mirrored).
        warning: empty where none was seen.
    """

    compared: float | None
    images: tuple[tuple[str, str, float | None, bool | None], ...]
    warning: str


@dataclass(frozen=True)
class Transfer:
    """The transfer set: summary.json and its manifest, joined."""

    images: float | None
    real: float | None
    synthetic: float | None
    bytes: float | None
    method: str
    digest: str
    per_class: Mapping[str, float | None]
    seeds: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A whole run directory.

    Attributes:
        calibration: the images chosen for all artifacts, None where no stage chose them.
        method: what the method left to tell.
        peak_mib: resident memory at most, stage by stage.
    """

    name: str
    passed: bool | None
    teacher: Model
    student: Model
    transfer: Transfer
    calibration: CalibrationSet | None
    artifacts: tuple[Artifact, ...]
    evaluation_images: float | None
    overlap: Overlap
    scores: tuple[Score, ...]
    history: tuple[Mapping[str, float | None], ...]
    method: Method
    wall_s: Mapping[str, float | None]
    peak_mib: Mapping[str, float | None]
    environment: Mapping[str, str]
    recipe: str
    pictures: Pictures
    notes: tuple[str, ...]
    problems: tuple[str, ...]
