"""A gate answers yes, no, or "not judged here", and agreement has to be proven."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest

from hydistill_edge.errors import InputError
from hydistill_edge.targets.gates import (
    Gate,
    agreement_gate,
    agreement_lower_bound,
    at_least,
    at_most,
    combine,
    exactly,
    exit_code,
    images_needed,
)

YES, NO = exactly("yes", 1, 1), exactly("no", 1, 2)
UNKNOWN = Gate("unknown", None, None, None, why="no images")


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        pytest.param(at_least("SNR", 20.0, 20.0), True, id="at-least-on-the-limit"),
        pytest.param(at_least("SNR", 19.9, 20.0), False, id="at-least-below"),
        pytest.param(at_most("error", 1e-4, 1e-4), True, id="at-most-on-the-limit"),
        pytest.param(at_most("error", 2e-4, 1e-4), False, id="at-most-above"),
        pytest.param(exactly("NaN", 0, 0), True, id="exactly"),
        pytest.param(at_least("SNR", None, 20.0), None, id="no-number"),
        pytest.param(at_most("error", math.nan, 1.0), False, id="nan-fails"),
        pytest.param(at_most("error", -math.inf, 1.0), False, id="infinity-fails"),
    ],
)
def test_gate_answers_by_value_and_limit(gate: Gate, passed: bool | None) -> None:
    assert gate.passed is passed


def test_gate_survives_strict_json_when_the_value_was_not_finite() -> None:
    gate = at_most("largest difference", math.inf, 1e-4, unit="of scale", worst="img-7")

    text = json.dumps(gate.to_dict(), allow_nan=False)

    assert Gate.from_dict(json.loads(text)) == gate
    assert "inf" in gate.why


def test_gate_refuses_foreign_fields_when_read() -> None:
    with pytest.raises(InputError, match="not a gate"):
        Gate.from_dict({"name": "SNR", "threshold": 3})


@pytest.mark.parametrize(
    ("judged", "passed", "code"),
    [
        pytest.param([YES, YES], True, 0, id="all-passed"),
        pytest.param([YES, UNKNOWN], None, 0, id="one-unknown"),
        pytest.param([UNKNOWN, NO, YES], False, 1, id="no-beats-unknown"),
        pytest.param([], None, 0, id="nothing-judged"),
    ],
)
def test_combine_lets_the_worst_answer_win(
    judged: list[Gate], passed: bool | None, code: int
) -> None:
    assert combine(judged) is passed
    assert exit_code(combine(judged)) == code


@dataclass(frozen=True)
class Agreement:
    id: str
    agree: int
    n: int
    passed: bool | None


@pytest.mark.parametrize(
    "case",
    [
        Agreement("no-miss-in-299", 299, 299, True),
        Agreement("no-miss-in-298", 298, 298, None),
        Agreement("one-miss-in-473", 472, 473, True),
        Agreement("one-miss-in-300", 299, 300, None),
        Agreement("exactly-the-limit", 99, 100, None),
        Agreement("seen-below-the-limit", 49, 50, False),
        Agreement("far-below", 0, 10, False),
        Agreement("no-images", 0, 0, None),
    ],
    ids=lambda case: case.id,
)
def test_agreement_gate_answers_when_the_limit_is_99_percent(case: Agreement) -> None:
    gate = agreement_gate(case.agree, case.n, 0.99)

    assert gate.passed is case.passed
    assert gate.why


def test_agreement_gate_tells_how_many_images_would_prove_it_when_there_are_too_few() -> None:
    gate = agreement_gate(100, 100, 0.99, worst=None)

    assert "299 images would" in gate.why
    assert gate.value == pytest.approx(0.05 ** (1 / 100))


def test_agreement_gate_asks_for_a_lower_limit_when_nothing_can_prove_it() -> None:
    assert "lower the limit" in agreement_gate(100, 100, 1.0).why


@pytest.mark.parametrize(
    ("misses", "limit", "n"),
    [(0, 0.99, 299), (1, 0.99, 473), (0, 0.985, 199), (0, 0.995, 598), (0, 0.5, 5)],
)
def test_images_needed_is_the_smallest_number_that_proves_the_limit(
    misses: int, limit: float, n: int
) -> None:
    assert images_needed(misses, limit) == n
    assert agreement_lower_bound(n - misses, n) >= limit
    assert agreement_lower_bound(n - 1 - misses, n - 1) < limit


def test_agreement_lower_bound_refuses_counts_that_cannot_be() -> None:
    with pytest.raises(InputError, match="5 of 4 images agree"):
        agreement_lower_bound(5, 4)
