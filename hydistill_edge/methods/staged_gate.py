"""Is it worth collecting more? The gate between one stage of an investment and the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydistill_edge.errors import UsageError
from hydistill_edge.methods.hidfd import ARMS, Arm


@dataclass(frozen=True)
class StagedGate:
    """The verdict on one stage.

    Attributes:
        passed: whether the hybrid arm beats both others and is near enough to the teacher.
        accuracies: of the arms, in [0, 1], on the same images.
        teacher: the teacher's, on these images.
        gap_points: how far below the teacher the hybrid arm may lie, in percent points.
        reasons: what is missing, in sentences; empty where it passed.
    """

    passed: bool
    accuracies: Mapping[Arm, float]
    teacher: float
    gap_points: float
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "passed": self.passed,
            "arms": dict(self.accuracies),
            "teacher": self.teacher,
            "gap_points": self.gap_points,
            "reasons": list(self.reasons),
        }


def staged_gate(
    accuracies: Mapping[Arm, float], *, teacher: float, gap_points: float = 2.0
) -> StagedGate:
    """Judge a stage by its three arms, trained under one budget.

    Args:
        accuracies: of every arm, in [0, 1], on one hold-out.
        teacher: the teacher's accuracy on it; 1 where agreement with the teacher is measured.
        gap_points: how far below the teacher the hybrid arm may lie, in percent points.

    Raises:
        UsageError: an arm is missing.
    """
    missing = [arm for arm in ARMS if arm not in accuracies]
    if missing:
        raise UsageError(
            f"the gate compares three arms, and {', '.join(missing)} is missing; train all of "
            f"{', '.join(ARMS)}"
        )
    hybrid = accuracies["hybrid"]
    reasons = [
        f"the hybrid arm ({hybrid:.1%}) does not beat the arm {arm} ({accuracies[arm]:.1%})"
        for arm in ARMS
        if arm != "hybrid" and hybrid <= accuracies[arm]
    ]
    gap = 100.0 * (teacher - hybrid)
    if gap > gap_points:
        reasons.append(
            f"the hybrid arm lies {gap:.1f} points below the teacher; {gap_points:g} are agreed"
        )
    return StagedGate(not reasons, dict(accuracies), teacher, gap_points, tuple(reasons))


def data_reduction(collected: int, *, usual: int) -> float:
    """Return the share of the usual number of real images that was needed, e.g. 1/120.

    Args:
        collected: real images used.
        usual: real images that the comparison needs, such as 600,000 web images.

    Raises:
        UsageError: a number below 1.
    """
    if collected < 1 or usual < 1:
        raise UsageError(f"{collected} of {usual} images; expected at least 1 of each")
    return collected / usual
