"""`compare` by hand, by property, and where numbers are missing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydistill_edge.errors import ShapeError
from hydistill_edge.targets.parity import compare

REFERENCE = np.array([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]], np.float32)


def test_compare_gives_the_numbers_done_by_hand() -> None:
    candidate = np.array([[3.0, 0.0, 0.0], [0.0, 4.0, 3.0]], np.float32)

    found = compare(REFERENCE, candidate, ["a", "b"])

    assert (found.scale, found.max_abs, found.mean_abs) == (3.5, 3.0, 0.5)
    assert found.max_abs_over_scale == pytest.approx(3 / 3.5)
    assert found.cosine_min == pytest.approx(0.8)
    assert found.cosine_mean == pytest.approx(0.9)
    assert found.snr_db == pytest.approx(10 * math.log10(25 / 9))
    assert (found.agree, found.top1_agreement) == (2, 1.0)
    assert found.worst_id == found.worst_cosine_id == "b"
    p = math.exp(4) / (math.exp(4) + 2)
    log_normalizers = math.log((math.exp(4) + math.exp(3) + 1) / (math.exp(4) + 2))
    assert found.max_kl == pytest.approx(log_normalizers - 3 * (1 - p) / 2)


def test_compare_reports_perfect_numbers_when_the_arrays_are_equal() -> None:
    found = compare(REFERENCE, REFERENCE, ["a", "b"])

    assert (found.max_abs, found.snr_db, found.cosine_min, found.mean_kl) == (0, 300, 1, 0)
    assert found.worst_flip_id is None


def test_compare_counts_a_sample_as_disagreement_when_it_is_not_finite() -> None:
    candidate = REFERENCE.copy()
    candidate[1, 2] = np.nan

    found = compare(REFERENCE, candidate, ["a", "b"])

    assert (found.nonfinite_candidate, found.nonfinite_reference, found.agree) == (1, 0, 1)
    assert found.max_abs == 0.0
    assert found.worst[0].id == found.worst_id == "b"
    assert found.worst[0].candidate == "not finite"


def test_compare_has_no_numbers_when_nothing_is_finite() -> None:
    found = compare(REFERENCE, np.full_like(REFERENCE, np.inf), ["a", "b"])

    assert (found.max_abs, found.snr_db, found.mean_kl) == (None, None, None)
    json.dumps(found.metrics(), allow_nan=False)


def test_compare_keeps_near_ties_apart_from_decisive_samples() -> None:
    reference = np.tile(np.array([[5.0, 0.0]]), (100, 1))
    reference[:4] = [0.01, 0.0]
    candidate = reference + np.random.default_rng(0).normal(0, 0.3, reference.shape)
    candidate[:4] = [0.0, 0.01]

    found = compare(reference, candidate, [str(i) for i in range(100)])

    assert found.top1_agreement == 0.96
    assert (found.decisive_n, found.decisive_agreement) == (96, 1.0)
    assert found.largest_flip_margin == pytest.approx(0.01)


def test_compare_puts_turned_over_samples_first_with_their_class_names() -> None:
    candidate = np.array([[9.0, 0.0, 0.0], [0.0, 4.0, 4.5]], np.float32)

    found = compare(REFERENCE, candidate, ["a", "b"], classes=["ok", "scratch", "dent"], worst=1)

    assert found.worst_id == "a"
    assert found.worst_flip_id == "b"
    assert [(w.id, w.reference, w.candidate) for w in found.worst] == [("b", "scratch", "dent")]


def test_compare_has_a_finite_scale_when_the_reference_is_zero() -> None:
    zero = np.zeros((2, 3), np.float32)

    assert compare(zero, zero, ["a", "b"]).max_abs_over_scale == 0.0
    assert compare(zero, zero + 1, ["a", "b"]).snr_db == -300.0


@pytest.mark.parametrize(
    ("candidate", "ids"),
    [
        pytest.param(np.zeros((2, 4)), ["a", "b"], id="other-classes"),
        pytest.param(np.zeros((3, 3)), ["a", "b"], id="other-count"),
        pytest.param(np.zeros((2, 3)), ["a"], id="missing-id"),
    ],
)
def test_compare_refuses_arrays_that_do_not_fit(candidate: np.ndarray, ids: list[str]) -> None:
    with pytest.raises(ShapeError, match="expected"):
        compare(REFERENCE, candidate, ids)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_compare_is_blind_to_the_unit_and_to_the_order_of_the_samples(
    seed: int, factor: float
) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(9, 4))
    candidate = reference + rng.normal(0, 0.1, reference.shape)
    order = rng.permutation(9)
    ids = [str(i) for i in range(9)]

    plain = compare(reference, candidate, ids)
    other = compare(factor * reference[order], factor * candidate[order], [ids[i] for i in order])

    assert other.max_abs_over_scale == pytest.approx(plain.max_abs_over_scale)
    assert other.snr_db == pytest.approx(plain.snr_db)
    assert other.cosine_min == pytest.approx(plain.cosine_min)
    assert (other.agree, other.decisive_n, other.worst_id) == (
        plain.agree,
        plain.decisive_n,
        plain.worst_id,
    )
