"""The ladder: what each rung asks, and that a failed one blocks the rest."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from hydistill_edge.errors import InputError
from hydistill_edge.targets.parity import (
    Limits,
    ParityReport,
    Rung,
    Source,
    Step,
    r0_structure,
    r1_export,
    r2_runtime,
    r3_shipped_precision,
    r4_int8,
    run_ladder,
)

RNG = np.random.default_rng(7)
# Decisive logits: one class in four stands out by 8.
LOGITS = RNG.normal(size=(600, 4)) + 8 * np.eye(4)[np.arange(600) % 4]
IDS = [f"img-{i}" for i in range(600)]


def noisy(relative: float) -> np.ndarray:
    """LOGITS with white noise of this share of their rms."""
    rms = float(np.sqrt(np.mean(LOGITS**2)))
    return LOGITS + np.random.default_rng(1).normal(0, relative * rms, LOGITS.shape)


def failed(rung: Rung) -> list[str]:
    return [gate.name for gate in rung.gates if gate.passed is False]


@pytest.mark.parametrize(
    ("judge", "passing", "failing"),
    [
        pytest.param(r1_export, 1e-6, 1e-3, id="R1"),
        pytest.param(r2_runtime, 1e-5, 1e-2, id="R2"),
        pytest.param(r3_shipped_precision, 0.01, 0.06, id="R3-30-dB"),
        pytest.param(lambda *a: r4_int8(*a, source="synthetic"), 0.05, 0.15, id="R4-20-dB"),
    ],
)
def test_rung_passes_only_within_its_start_values(
    judge: Callable[..., Rung], passing: float, failing: float
) -> None:
    assert judge(LOGITS, noisy(passing), IDS).passed is True
    assert judge(LOGITS, noisy(failing), IDS).passed is False


@pytest.mark.parametrize(
    ("source", "misses", "passed"),
    [
        pytest.param("synthetic", 1, True, id="synthetic-99"),
        pytest.param("synthetic", 7, False, id="synthetic-below-99"),
        pytest.param("real", 3, True, id="real-98.5"),
        pytest.param("real", 7, None, id="real-seen-but-not-proven"),
        pytest.param("real", 10, False, id="real-below-98.5"),
    ],
)
def test_int8_rung_asks_more_of_synthetic_images(
    source: Source, misses: int, passed: bool | None
) -> None:
    candidate = LOGITS.copy()
    candidate[:misses] = np.roll(LOGITS[:misses], 1, axis=1)

    rung = r4_int8(LOGITS, candidate, IDS, source=source)

    agreement = next(gate for gate in rung.gates if gate.name.startswith("top-1"))
    assert agreement.passed is passed
    assert rung.source == source
    assert agreement.worst in IDS[:misses]


def test_rung_fails_when_one_value_is_nan() -> None:
    candidate = LOGITS.copy()
    candidate[17, 0] = np.nan

    rung = r4_int8(LOGITS, candidate, IDS, source="synthetic")

    assert failed(rung) == ["samples with NaN or infinity"]
    assert rung.gates[0].worst == "img-17"


def test_rung_is_not_judged_when_there_are_no_images() -> None:
    rung = r4_int8(np.empty((0, 4)), np.empty((0, 4)), [], source="real")

    assert rung.passed is None
    assert "no real images" in rung.note


def test_rung_judges_only_the_limits_that_are_set() -> None:
    rung = r1_export(LOGITS, noisy(0.05), IDS, limits=Limits(snr_db=20))

    assert [gate.name for gate in rung.gates] == ["samples with NaN or infinity", "SNR"]


def test_structure_passes_when_the_facts_are_equal_and_below_their_ceilings() -> None:
    found = {"input shape": (1, 8, 8, 1), "domains": [""], "opset": 17, "producer": "x"}

    rung = r0_structure(
        {"input shape": [1, 8, 8, 1], "domains": [""]}, found, ceilings={"opset": 17}
    )

    assert rung.passed is True


def test_structure_fails_with_both_values_when_a_fact_differs_or_is_missing() -> None:
    rung = r0_structure(
        {"dtype": "uint8", "batch": 1}, {"dtype": "float32"}, ceilings={"opset": 17}
    )

    assert failed(rung) == ["dtype", "batch", "opset"]
    assert rung.gates[0].why == "the file says float32, expected uint8"
    assert "nothing" in rung.gates[1].why


def step(rung: str, answer: Rung, called: list[str]) -> Step:
    def judge() -> Rung:
        called.append(rung)
        return answer

    return Step(rung, answer.title, answer.source, judge)


def test_ladder_blocks_later_rungs_when_one_fails() -> None:
    called: list[str] = []
    good = r1_export(LOGITS, LOGITS, IDS)
    bad = r2_runtime(LOGITS, -LOGITS, IDS)

    report = run_ladder(
        [step("R1", good, called), step("R2", bad, called), step("R4", good, called)]
    )

    assert called == ["R1", "R2"]
    assert [rung.passed for rung in report.rungs] == [True, False, None]
    assert "R2 failed" in report.rungs[2].note
    assert report.passed is False


def test_ladder_judges_both_sources_of_one_rung_when_the_first_fails() -> None:
    called: list[str] = []
    bad = r4_int8(LOGITS, -LOGITS, IDS, source="synthetic")

    run_ladder([step("R4", bad, called), step("R4", bad, called), step("R6", bad, called)])

    assert called == ["R4", "R4"]


def test_ladder_goes_on_when_a_rung_was_not_proven() -> None:
    few = r4_int8(LOGITS[:20], LOGITS[:20], IDS[:20], source="real")
    called: list[str] = []

    report = run_ladder([step("R4", few, called), step("R6", few, called)])

    assert called == ["R4", "R6"]
    assert report.passed is None


def test_report_survives_json_with_exactly_the_agreed_keys() -> None:
    rungs = (r1_export(LOGITS, noisy(1e-3), IDS), r4_int8(LOGITS, LOGITS, IDS, source="real"))
    report = ParityReport(rungs, simulated_by="onnxruntime")

    fields = json.loads(json.dumps(report.to_dict(), allow_nan=False))

    assert set(fields) == {"schema_version", "passed", "simulated_by", "rungs"}
    assert set(fields["rungs"][0]) == {
        *("rung", "title", "source", "n", "passed", "gates", "metrics", "worst", "note")
    }
    assert set(fields["rungs"][0]["worst"][0]) == {"id", "reference", "candidate", "max_abs"}
    assert ParityReport.from_dict(fields) == report


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"schema_version": 2, "rungs": []}, id="newer"),
        pytest.param({"schema_version": 1}, id="no-rungs"),
        pytest.param({"schema_version": 1, "rungs": [{"rung": "R1"}]}, id="torn-rung"),
    ],
)
def test_report_refuses_fields_that_are_not_its_own(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"expected|run the check again"):
        ParityReport.from_dict(fields)
