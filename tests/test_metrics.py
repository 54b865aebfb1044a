"""Accuracy, confusion and ROC-AUC, by hand and by property."""

from __future__ import annotations

import numpy as np
import pytest

from hydistill_edge.errors import ShapeError
from hydistill_edge.metrics import confusion, gap, roc_auc, score

CLASSES = ("bolt", "nut")


def test_score_counts_right_decisions_by_class() -> None:
    logits = np.array([[2, 1], [0, 3], [5, 4], [1, 2]], np.float32)
    labels = np.array([0, 1, 1, 1])

    result = score("student", logits, labels, CLASSES, teacher=-logits, student=logits)

    assert result["accuracy"] == 0.75
    assert result["per_class"][1] == {"class": "nut", "n": 3, "accuracy": pytest.approx(2 / 3)}
    assert result["confusion"] == [[1, 0], [1, 2]]
    assert result["agreement_with_teacher"] == 0
    assert result["agreement_with_student"] == 1


def test_gap_is_paired_image_by_image() -> None:
    labels = np.array([0, 1, 1, 1])
    three_right = np.array([[2, 1], [0, 3], [5, 4], [1, 2]], np.float32)
    one_right = np.array([[2, 1], [3, 0], [5, 4], [2, 1]], np.float32)
    points, error = gap(three_right, one_right, labels)
    assert points == pytest.approx(50)
    assert error == pytest.approx(100 * np.std([0, 1, 0, 1], ddof=1) / 2)
    assert gap(one_right, three_right, labels) == (-points, error)
    assert gap(one_right[:1], three_right[:1], labels[:1]) == (0, 0)


def test_confusion_rows_are_true_classes() -> None:
    labels, decisions = np.array([0, 0, 2]), np.array([1, 0, 2])
    assert confusion(labels, decisions, 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_roc_auc_equals_pair_counting_when_binary() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 2)).astype(np.float32)
    labels = rng.integers(0, 2, 60)
    margin = logits[:, 1] - logits[:, 0]
    pairs = margin[labels == 1][:, None] - margin[labels == 0][None, :]

    found, _ = roc_auc(logits, labels, CLASSES)

    assert found == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-6)


def test_roc_auc_is_none_with_reason_when_a_class_is_absent() -> None:
    found, why = roc_auc(np.zeros((3, 2), np.float32), np.zeros(3, np.int64), CLASSES)
    assert found is None
    assert "nut" in why


def test_score_refuses_logits_of_another_class_count() -> None:
    with pytest.raises(ShapeError, match="expected"):
        score("student", np.zeros((3, 5), np.float32), np.zeros(3, np.int64), CLASSES)
