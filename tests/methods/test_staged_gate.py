"""The gate between two stages."""

from __future__ import annotations

import json

import pytest

from hydistill_edge.errors import UsageError
from hydistill_edge.methods.hidfd import Arm
from hydistill_edge.methods.staged_gate import data_reduction, staged_gate


def arms(synthetic: float, collected: float, hybrid: float) -> dict[Arm, float]:
    return {"synthetic": synthetic, "collected": collected, "hybrid": hybrid}


@pytest.mark.parametrize(
    ("accuracies", "reasons"),
    [
        (arms(0.80, 0.85, 0.93), ()),
        (arms(0.93, 0.85, 0.93), ("does not beat the arm synthetic (93.0%)",)),
        (arms(0.80, 0.94, 0.93), ("does not beat the arm collected (94.0%)",)),
        (arms(0.80, 0.85, 0.90), ("5.0 points below the teacher; 2 are agreed",)),
        (arms(0.95, 0.85, 0.90), ("the arm synthetic", "points below the teacher")),
    ],
    ids=["passes", "synthetic", "collected", "gap", "both"],
)
def test_gate_passes_when_hybrid_beats_both_arms_and_is_near_the_teacher(
    accuracies: dict[Arm, float], reasons: tuple[str, ...]
) -> None:
    gate = staged_gate(accuracies, teacher=0.95)
    assert gate.passed == (not reasons)
    assert len(gate.reasons) == len(reasons)
    assert all(part in told for part, told in zip(reasons, gate.reasons, strict=True))
    assert json.loads(json.dumps(gate.to_dict()))["arms"] == accuracies


def test_gate_is_refused_when_an_arm_is_missing() -> None:
    with pytest.raises(UsageError, match="collected is missing"):
        staged_gate({"synthetic": 0.8, "hybrid": 0.9}, teacher=0.95)


def test_data_reduction_is_the_published_one() -> None:
    assert data_reduction(5000, usual=600_000) == pytest.approx(1 / 120)
    with pytest.raises(UsageError, match="at least 1"):
        data_reduction(0, usual=5)
