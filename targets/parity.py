"""The parity ladder: rungs in order, each blocking the next, and the report that they make.

    report = run_ladder([
        Step("R1", "Exported graph against PyTorch, fp32", "synthetic",
             lambda: r1_export(torch_logits, onnx_logits, ids)),
        Step("R4", "int8 against the fp32 student", "synthetic",
             lambda: r4_int8(fp32_logits, int8_logits, ids, source="synthetic")),
    ])
    report.passed, report.to_dict()

The rungs are exported from here too, so that a caller needs this module only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydistill_edge.errors import InputError
from hydistill_edge.targets.batching import run_in_batches
from hydistill_edge.targets.comparison import Comparison, Worst, compare
from hydistill_edge.targets.gates import combine
from hydistill_edge.targets.metamorphic import r6_metamorphic
from hydistill_edge.targets.pixel_path import Golden, r7_pixel_path
from hydistill_edge.targets.rungs import (
    R1_LIMITS,
    R2_LIMITS,
    R3_LIMITS,
    R4_REAL_LIMITS,
    R4_SYNTHETIC_LIMITS,
    Limits,
    LogitRung,
    Rung,
    Source,
    not_judged,
    r1_export,
    r2_runtime,
    r3_shipped_precision,
    r4_int8,
)
from hydistill_edge.targets.structure import r0_structure

__all__ = [
    "R1_LIMITS",
    "R2_LIMITS",
    "R3_LIMITS",
    "R4_REAL_LIMITS",
    "R4_SYNTHETIC_LIMITS",
    "Comparison",
    "Golden",
    "Limits",
    "LogitRung",
    "ParityReport",
    "Rung",
    "Source",
    "Step",
    "Worst",
    "compare",
    "not_judged",
    "r0_structure",
    "r1_export",
    "r2_runtime",
    "r3_shipped_precision",
    "r4_int8",
    "r6_metamorphic",
    "r7_pixel_path",
    "run_in_batches",
    "run_ladder",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Step:
    """A rung that is still to be judged; title and source are for the case that it is blocked.

    Attributes:
        judge: called only if no earlier rung failed.
    """

    rung: str
    title: str
    source: Source
    judge: Callable[[], Rung]


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What parity.json holds.

    Attributes:
        rungs: in the order of the ladder.
        simulated_by: runtime that ran the artifact in place of its own; None where it was its own.
    """

    rungs: tuple[Rung, ...]
    simulated_by: str | None = None

    @property
    def passed(self) -> bool | None:
        """False where a rung failed, None where one was not judged, else True."""
        return combine(self.rungs)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as it stands in parity.json, schema version 1."""
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "simulated_by": self.simulated_by,
            "rungs": [rung.to_dict() for rung in self.rungs],
        }

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> ParityReport:
        """Read what `to_dict` wrote; `passed` follows from the gates.

        Raises:
            InputError: another schema version, or a field that is missing or unknown.
        """
        version = fields.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"parity report has schema version {version}, expected {SCHEMA_VERSION}; "
                "run the check again with this version of hydistill-edge"
            )
        if not isinstance(fields.get("rungs"), list):
            raise InputError('parity report has no list "rungs"; run the check again')
        return ParityReport(
            rungs=tuple(Rung.from_dict(rung) for rung in fields["rungs"]),
            simulated_by=fields.get("simulated_by"),
        )


def run_ladder(steps: Sequence[Step], *, simulated_by: str | None = None) -> ParityReport:
    """Judge the steps in order; once a rung fails, all later rungs are not judged.

    Steps of the same rung (int8 on synthetic and on real images) do not block each other. A rung
    that was not proven does not block either: only a "no" does.

    Args:
        steps: in the order of the ladder.
        simulated_by: the runtime that stands in, such as "onnxruntime" for TensorRT's graph.
    """
    rungs: list[Rung] = []
    failed: str | None = None
    for step in steps:
        if failed is not None and failed != step.rung:
            why = f"{failed} failed, and each rung stands on those before it"
            rungs.append(not_judged(step.rung, step.title, step.source, why))
            continue
        rung = step.judge()
        rungs.append(rung)
        if rung.passed is False:
            failed = failed or step.rung
    return ParityReport(tuple(rungs), simulated_by)
