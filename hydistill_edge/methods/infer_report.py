"""`infer.json`: what a student learned from, how thin its boundaries are, a map of some classes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.images.transfer_set import Indices, TransferSet
from hydistill_edge.methods.infer_baseline import ClassSpecific
from hydistill_edge.methods.pool import Pool, is_real
from hydistill_edge.models.teacher import Teacher

DOCUMENT = "infer.json"

MAP_CLASSES = 7
CLOSEST_PAIRS = 5

Logits = NDArray[np.float32]


def boundary(logits: Logits, *, margin: float) -> dict[str, float]:
    """Return how many images lie on a boundary between classes.

    Args:
        logits: shape (N, C), N at least 1.
        margin: images count whose two largest probabilities differ by less.

    Returns:
        `share` of the images, in [0, 1], and `images`, their number in all.
    """
    two = np.sort(_probabilities(logits), axis=1)[:, -2:]
    return {"share": float((two[:, 1] - two[:, 0] < margin).mean()), "images": len(logits)}


def closest_pairs(
    student: Logits, teacher: Logits, class_names: Sequence[str], *, count: int = CLOSEST_PAIRS
) -> list[dict[str, Any]]:
    """Return the pairs of classes that the teacher tells apart least, and how the student does.

    Args:
        student: shape (N, C).
        teacher: shape (N, C), of the same images.
        class_names: C names.
        count: pairs at most.

    Returns:
        Per pair: `classes`; `images` that the teacher names as one of both; `nearness`, the mean
        probability that it leaves to the other one; `confused`, the share of these images on which
        the student names the other one.
    """
    probabilities = _probabilities(teacher)
    named, decided = teacher.argmax(axis=1), student.argmax(axis=1)
    images = np.bincount(named, minlength=len(class_names))
    left = np.zeros((len(class_names), len(class_names)))
    np.add.at(left, named, probabilities)
    both = images[:, None] + images
    nearness = np.triu(left + left.T, k=1) / np.maximum(both, 1)
    found: list[dict[str, Any]] = []
    for place in np.argsort(-nearness, axis=None, kind="stable")[:count]:
        first, second = divmod(int(place), len(class_names))
        if first >= second or not both[first, second]:
            continue
        rows = np.flatnonzero((named == first) | (named == second))
        other = np.where(named[rows] == first, second, first)
        found.append(
            {
                "classes": [class_names[first], class_names[second]],
                "images": len(rows),
                "nearness": float(nearness[first, second]),
                "confused": float((decided[rows] == other).mean()),
            }
        )
    return found


@torch.no_grad()
def class_map(
    teacher: Teacher,
    transfer: TransferSet,
    pool: Pool,
    *,
    labels: NDArray[np.int64],
    per_class: int,
    margin: float,
    seed: int,
    baseline: ClassSpecific | None = None,
) -> dict[str, Any] | None:
    """Return a t-SNE of the teacher's features for images of a few classes.

    Args:
        teacher: on the pool's device.
        transfer: the set.
        pool: its images.
        labels: the class that each image stands for, shape (N,).
        per_class: images of each class and kind (natural, compensated, class-specific), at most.
        margin: as for `boundary`.
        seed: of the choice.
        baseline: images that were made class by class; None for none.

    Returns:
        `classes`, `x`, `y`, `class` (a place in `classes`) and `kind` of each point; `kinds`, what
        the teacher says of the images of each kind (`kind_line`); None where fewer than four images
        are there, none are asked for, or scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        return None
    choice = np.random.default_rng([seed, 0x75E])
    real = is_real(transfer)
    present = np.unique(labels)
    classes = np.sort(choice.permutation(present)[:MAP_CLASSES])
    rows = [
        choice.permutation(np.flatnonzero((labels == label) & (real == natural)))[:per_class]
        for label in classes
        for natural in (True, False)
    ]
    chosen: Indices = np.concatenate(rows)
    if len(chosen) < 4:
        return None
    kinds = np.where(real[chosen], "natural", "compensated").astype(object)
    wanted = labels[chosen]
    images = [pool.images(chosen)]
    if baseline is not None:
        rows = [
            choice.permutation(np.flatnonzero(baseline.classes == label))[:per_class]
            for label in classes
        ]
        added: Indices = np.concatenate(rows)
        pixels = torch.from_numpy(baseline.images[added]).permute(0, 3, 1, 2)
        images.append((pixels.float() / 255.0).to(images[0].device))
        kinds = np.concatenate([kinds, np.full(len(added), "class-specific", object)])
        wanted = np.concatenate([wanted, baseline.classes[added]])
    told = [teacher.features(part) for part in images if len(part)]
    points = np.round(_on_a_plane(_joined([one.penultimate.flatten(1) for one in told])), 3)
    logits = _joined([one.logits for one in told])
    return {
        "classes": [transfer.classes[label] for label in classes],
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "class": np.searchsorted(classes, wanted).tolist(),
        "kind": kinds.tolist(),
        "kinds": [
            {"kind": kind, **kind_line(logits[kinds == kind], wanted[kinds == kind], margin=margin)}
            for kind in dict.fromkeys(kinds.tolist())
        ],
    }


def kind_line(logits: Logits, classes: NDArray[np.int64], *, margin: float) -> dict[str, float]:
    """Return what a network says of images of one kind.

    Args:
        logits: shape (N, C), N at least 1.
        classes: what the images stand for, shape (N,).
        margin: as for `boundary`.

    Returns:
        `images`, their number; `named_as_intended` and `on_boundary`, shares of them.
    """
    return {
        "images": len(logits),
        "named_as_intended": float((logits.argmax(axis=1) == classes).mean()),
        "on_boundary": boundary(logits, margin=margin)["share"],
    }


def _joined(parts: Sequence[Tensor]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = torch.cat([part.float().cpu() for part in parts]).numpy()
    return found


def _on_a_plane(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return t-SNE's places of points (N, D), N at least 4, shape (N, 2); the same each time."""
    from sklearn.manifold import TSNE

    if np.ptp(features, axis=0).max() == 0.0:  # equal points, which t-SNE cannot start from
        return np.zeros((len(features), 2), np.float32)
    reducer = TSNE(
        perplexity=min(30.0, (len(features) - 1) / 3),
        init="pca" if features.shape[1] > 1 else "random",
        random_state=0,
    )
    places: NDArray[np.float32] = reducer.fit_transform(features)
    return places


def _probabilities(logits: Logits) -> NDArray[np.float64]:
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = exponents / exponents.sum(axis=1, keepdims=True)
    return found
