"""The reject rule: honest temperatures, thresholds that keep the error, and honest refusals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from hydistill_edge.bundle.manifest import Reject
from hydistill_edge.bundle.reject import (
    NEVER,
    Fit,
    apply_reject,
    fit_reject,
    fit_temperature,
    softmax,
)
from hydistill_edge.errors import ShapeError

CLASSES = ("a", "b", "c")


def drawn(count: int, temperature: float, spread: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels are drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, spread, (count, 3))
    cumulative = softmax(logits / temperature).cumsum(axis=1)
    return logits, (rng.random((count, 1)) > cumulative).sum(axis=1)


def fitted(logits: np.ndarray, labels: np.ndarray, **options: Any) -> Fit:
    fields: dict[str, Any] = {
        "origins": ["real"] * len(labels),
        "classes": CLASSES,
        "fitted_on": "labels",
    }
    return fit_reject(logits, labels, **{**fields, **options})


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_found_when_labels_follow_it(temperature: float) -> None:
    assert fit_temperature(*drawn(6000, temperature)) == pytest.approx(temperature, rel=0.1)


def test_temperature_minimizes_the_likelihood_on_a_fine_grid() -> None:
    logits, labels = drawn(200, 2.0)
    smooth = np.full((200, 3), 1 / 202 / 3)
    smooth[np.arange(200), labels] += 1 - 1 / 202
    grid = np.geomspace(0.05, 20, 4000)
    losses = [-(smooth * np.log(softmax(logits / t))).sum(axis=1).mean() for t in grid]

    assert fit_temperature(logits, labels) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_temperature_stays_inside_the_limits_when_no_answer_is_wrong() -> None:
    logits = np.eye(3)[np.arange(60) % 3]

    temperature = fit_temperature(logits, np.arange(60) % 3)

    assert 0.1 < temperature < 1


def test_thresholds_keep_the_wanted_error_when_classes_have_enough_images() -> None:
    logits, labels = drawn(3000, 2.0, spread=12.0)

    reject, why = fitted(logits, labels, target_error=0.02)

    assert reject is not None
    assert why == "fitted on 3000 real hold-out images"
    probabilities, accepted = apply_reject(logits, reject)
    assert accepted is not None
    wrong = probabilities.argmax(axis=1) != labels
    for index in range(3):
        mine = accepted & (probabilities.argmax(axis=1) == index)
        assert wrong[mine].mean() <= 0.02
    assert reject.coverage == accepted.mean()
    assert reject.coverage > 0.3
    assert reject.risk == wrong[accepted].mean()
    assert reject.risk_upper is not None
    assert reject.risk_upper > wrong[accepted].mean()
    assert reject.pooled == ()


def test_rule_accepts_what_it_would_gain_nothing_from_rejecting() -> None:
    labels = np.arange(120) % 3
    logits = np.eye(3)[labels] * np.linspace(3, 6, 120)[:, None]

    reject, _ = fitted(logits, labels)

    assert reject is not None
    assert reject.coverage == 1.0
    assert reject.risk == 0.0
    _, accepted = apply_reject(np.array([[2.0, 0.0, 0.0], [6.0, 0.0, 0.0]]), reject)
    assert accepted is not None
    assert accepted.tolist() == [False, True]  # less sure than anything seen


def test_class_shares_a_threshold_when_it_has_too_few_images() -> None:
    logits, labels = drawn(600, 1.0)
    rare = logits.argmax(axis=1) == 2
    keep = ~rare | (np.cumsum(rare) <= 5)

    reject, _ = fitted(logits[keep], labels[keep], target_error=0.05)

    assert reject is not None
    assert reject.pooled == ("c",)
    assert "1 of 3 classes have fewer and share one" in reject.note


def test_class_is_never_accepted_when_it_is_always_wrong() -> None:
    labels = np.repeat([0, 1], 50)
    logits = np.zeros((100, 3))
    logits[:50, 0] = np.linspace(5, 6, 50)
    logits[50:, 2] = np.linspace(5, 6, 50)

    reject, _ = fitted(logits, labels)

    assert reject is not None
    assert reject.thresholds[2] == NEVER
    assert "are never accepted" in reject.note
    _, accepted = apply_reject(np.array([[0.0, 0.0, 1e9]]), reject)
    assert accepted is not None
    assert not accepted[0]


@pytest.mark.parametrize(
    ("origins", "labels"),
    [(["synthetic"] * 100, [0] * 100), (["real"] * 100, [-1] * 100), (["web"] * 100, [0] * 100)],
    ids=["synthetic", "unlabelled", "web"],
)
def test_no_rule_is_fitted_when_there_are_no_real_images_to_judge_by(
    origins: list[str], labels: list[int]
) -> None:
    reject, why = fitted(np.zeros((100, 3)), np.array(labels), origins=origins)

    assert reject is None
    assert "0 real hold-out images with a known decision; at least 30" in why


def test_synthetic_images_change_nothing_when_they_stand_beside_real_ones() -> None:
    logits, labels = drawn(200, 2.0)
    more = np.concatenate([logits, -logits])

    mixed = fitted(more, np.tile(labels, 2), origins=["real"] * 200 + ["synthetic"] * 200)

    assert mixed == fitted(logits, labels)


def test_rule_is_the_same_when_images_come_in_another_order() -> None:
    logits, labels = drawn(300, 2.0)
    order = np.random.default_rng(1).permutation(300)

    first, second = fitted(logits, labels).reject, fitted(logits[order], labels[order]).reject

    assert first is not None
    assert second is not None
    assert first.thresholds == pytest.approx(second.thresholds, rel=1e-9)


def test_probabilities_are_the_plain_ones_when_there_is_no_rule() -> None:
    probabilities, accepted = apply_reject(np.array([[0.0, np.log(3.0)]], np.float32), None)

    assert probabilities == pytest.approx(np.array([[0.25, 0.75]]))
    assert accepted is None


def test_row_is_not_accepted_when_it_is_not_finite() -> None:
    rule = Reject(1.0, (0.0, 0.0), 0.01, "labels", 30, 1.0, 0.0, 0.1)

    _, accepted = apply_reject(np.array([[np.nan, 0.0], [np.inf, 0.0], [1.0, 0.0]]), rule)

    assert accepted is not None
    assert accepted.tolist() == [False, False, True]


def test_rule_survives_json_when_it_is_written() -> None:
    reject, _ = fitted(*drawn(300, 2.0))
    assert reject is not None

    loaded = json.loads(json.dumps(vars(reject)))

    assert tuple(loaded["thresholds"]) == reject.thresholds
    assert loaded["temperature"] == reject.temperature


def test_fit_is_refused_when_the_columns_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="expected \\(N, 3\\), N and N"):
        fitted(np.zeros((5, 2)), np.zeros(5, int))
