"""Choice of the range estimator: who wins, who is only a row, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from hydistill_edge.calibration.select import Selection, select_by_parity
from hydistill_edge.errors import InputError, ShapeError, TargetUnavailableError
from hydistill_edge.targets.base import Logits, Scheme

SIGNS = np.random.default_rng(1).choice([-1.0, 1.0], (200, 2)).astype(np.float32)
REFERENCE = (np.array([[3.0, -3.0]], np.float32) * np.sign(SIGNS[:, :1])).astype(np.float32)


def scheme(estimator: str) -> Scheme:
    return Scheme("s", "onnxruntime", "uint8", "int8", False, True, False, estimator, "")


def off_by(noise: float, flips: int = 0) -> Logits:
    """The reference, every logit off by the same size, some decisions turned over."""
    logits = REFERENCE + np.float32(noise) * SIGNS
    logits[:flips] = -0.01 * REFERENCE[:flips]
    return logits.astype(np.float32)


def choose(found: Mapping[str, Any]) -> Selection[str]:
    def evaluate(estimator: str) -> Logits:
        logits: Logits = found[estimator]
        return logits

    return select_by_parity(
        [scheme(name) for name in found], lambda one: one.range_estimator, evaluate, REFERENCE
    )


def test_highest_snr_wins_when_decisions_are_equal() -> None:
    chosen = choose({"minmax": off_by(0.3), "mse": off_by(0.1), "entropy": off_by(0.2)})

    assert chosen.chosen.range_estimator == chosen.built == "mse"
    assert "mse: 29.5 dB on 200 images, 6.0 dB above entropy" in chosen.reason


@pytest.mark.parametrize(
    ("noise", "winner"), [(0.125, "minmax"), (0.127, "mse")], ids=["1.94 dB", "2.08 dB"]
)
def test_minmax_wins_when_clipping_gains_less_than_two_decibels(noise: float, winner: str) -> None:
    chosen = choose({"mse": off_by(0.1), "minmax": off_by(noise)})

    assert chosen.chosen.range_estimator == winner


def test_reason_names_the_rival_when_minmax_wins_a_tie() -> None:
    chosen = choose({"mse": off_by(0.1), "minmax": off_by(0.102)})

    assert "mse is 0.2 dB above, too little to change for" in chosen.reason


@pytest.mark.parametrize(("flips", "winner"), [(1, "entropy"), (2, "minmax")], ids=["one", "two"])
def test_candidate_that_turns_over_more_decisions_loses(flips: int, winner: str) -> None:
    chosen = choose({"minmax": off_by(1.5), "entropy": off_by(0.05, flips)})

    assert chosen.chosen.range_estimator == winner
    assert ("turns over more decisions" in chosen.reason) == (winner == "minmax")


def test_first_candidate_wins_when_equal() -> None:
    chosen = choose({"percentile": off_by(0.1), "entropy": off_by(0.1)})

    assert chosen.chosen.range_estimator == "percentile"


def test_numbers_of_rows_by_hand() -> None:
    chosen = choose({"minmax": off_by(0.3, flips=10)})

    (row,) = chosen.rows
    difference = off_by(0.3, flips=10) - REFERENCE
    assert row.snr_db == pytest.approx(
        10 * np.log10(np.square(REFERENCE).sum() / np.square(difference).sum()), abs=1e-4
    )
    assert row.agreement == 190 / 200
    assert row.mean_kl is not None
    assert 0 < row.mean_kl < 1
    assert chosen.reason.endswith("the only one that worked")


def failing(error: Exception) -> Callable[[str], Logits]:
    def evaluate(estimator: str) -> Logits:
        if estimator == "mse":
            raise error
        return off_by(0.1)

    return evaluate


def test_candidate_that_cannot_be_built_is_a_row() -> None:
    candidates = [scheme("minmax"), scheme("mse")]

    chosen = select_by_parity(
        candidates, lambda one: one.range_estimator, failing(MemoryError("bins")), REFERENCE
    )

    assert chosen.chosen.range_estimator == "minmax"
    assert chosen.to_dict()["rows"][1] == {"estimator": "mse", "failed": "MemoryError: bins"}
    assert chosen.reason.endswith("(mse failed)")


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.full_like(REFERENCE, np.nan), "200 of 200 images"),
        (REFERENCE[:3], r"shape \(3, 2\)"),
    ],
    ids=["not-finite", "too-few"],
)
def test_candidate_with_unusable_logits_is_a_row(logits: Logits, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose({"minmax": logits})


def test_missing_runtime_is_an_error() -> None:
    with pytest.raises(TargetUnavailableError):
        select_by_parity(
            [scheme("mse")],
            lambda one: one.range_estimator,
            failing(TargetUnavailableError()),
            REFERENCE,
        )


def test_selection_is_the_same_twice() -> None:
    found = {"minmax": off_by(0.2), "mse": off_by(0.1, 1), "entropy": off_by(0.3)}

    assert choose(found).to_dict() == choose(found).to_dict()


def test_selection_refuses_no_candidates() -> None:
    with pytest.raises(InputError, match="no scheme to choose from"):
        choose({})


def test_selection_refuses_a_reference_without_images() -> None:
    with pytest.raises(ShapeError, match="expected finite"):
        select_by_parity([scheme("mse")], str, lambda _: REFERENCE, REFERENCE[:0])
