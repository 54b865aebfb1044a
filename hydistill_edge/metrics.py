"""Accuracy, confusion, per-class accuracy, ROC-AUC and agreement of one model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ShapeError

AUC_NEEDS_ALL_CLASSES = "one-versus-rest ROC-AUC needs labelled images of every class; none of: "


def score(
    name: str,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    *,
    teacher: NDArray[np.float32] | None = None,
    student: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Return one model's entry of evaluation.json.

    Args:
        name: the model's name in the report.
        logits: shape (N, C).
        labels: shape (N,), true class indices.
        classes: C names.
        teacher: logits of the teacher on the same images, shape (N, C).
        student: logits of the float student on the same images, shape (N, C).

    Returns:
        Fractions in [0, 1]; `roc_auc` is one-versus-rest, macro average, or None with the reason
        in `roc_auc_note`. A class without images has accuracy None.

    Raises:
        ShapeError: logits and labels do not belong together.
    """
    if logits.shape != (len(labels), len(classes)):
        raise ShapeError(
            f"{name}: logits of shape {logits.shape} for {len(labels)} labels and "
            f"{len(classes)} classes; expected ({len(labels)}, {len(classes)})"
        )
    decisions = logits.argmax(axis=1)
    table = confusion(labels, decisions, len(classes))
    totals = table.sum(axis=1)
    auc, note = roc_auc(logits, labels, classes)
    return {
        "name": name,
        "accuracy": float((decisions == labels).mean()),
        "per_class": [
            {
                "class": class_name,
                "n": int(total),
                "accuracy": float(table[index, index] / total) if total else None,
            }
            for index, (class_name, total) in enumerate(zip(classes, totals, strict=True))
        ],
        "confusion": table.tolist(),
        "roc_auc": auc,
        "roc_auc_note": note,
        "agreement_with_teacher": agreement(logits, teacher),
        "agreement_with_student": agreement(logits, student),
    }


def gap(
    logits: NDArray[np.float32], other: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[float, float]:
    """Return how far one model's accuracy is above another's, and the paired standard error.

    Args:
        logits: shape (N, C).
        other: of the other model on the same images, shape (N, C).
        labels: shape (N,), true class indices.

    Returns:
        Both in percent points; the error is 0 for a single image.
    """
    difference = (logits.argmax(axis=1) == labels).astype(np.float64)
    difference -= other.argmax(axis=1) == labels
    spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return 100 * float(difference.mean()), 100 * float(spread / np.sqrt(len(difference)))


def confusion(
    labels: NDArray[np.int64], decisions: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Return the counts of (true class, decided class), shape (classes, classes)."""
    flat = np.bincount(labels * classes + decisions, minlength=classes * classes)
    return flat.reshape(classes, classes)


def agreement(logits: NDArray[np.float32], reference: NDArray[np.float32] | None) -> float | None:
    """Return the share of images on which both decide alike; None without a reference."""
    if reference is None:
        return None
    return float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())


def roc_auc(
    logits: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str]
) -> tuple[float | None, str]:
    """Return the one-versus-rest macro ROC-AUC of the softmax, or None and why."""
    absent = [name for index, name in enumerate(classes) if not (labels == index).any()]
    if absent:
        return None, AUC_NEEDS_ALL_CLASSES + ", ".join(absent)
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        return None, 'scikit-learn is not installed; run pip install "hydistill-edge[build]"'
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    if len(classes) == 2:
        return float(roc_auc_score(labels, probabilities[:, 1])), ""
    return float(roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")), ""
