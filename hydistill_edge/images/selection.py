"""Which images of a pool can be trusted: chosen by teacher and student together, class by class.

    scores = score_pool(pool, student=student, share=teacher_share(epoch), classes=10)
    selection = select(scores, minimum=2 * batch)

Source: Tang et al. 2023, "Distribution Shift Matters for Knowledge Distillation with Webly
Collected Images", arXiv:2307.11469, dynamic instance selection. With a share of 1 the student is
never asked: the teacher alone chooses, which is how a pilot set is taken from a pool.

Where this departs from the released code, and why:

- An image is scored in one deterministic view, the stored one; random crops made its fate noise.
- Scores carry the row that each image has in its pool, so the order of reading cannot misplace
  them.
- The teacher's logits are read from the transfer set: they never change.
- A selection too small to train on is replaced by the best hundredth of the pool, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.errors import MethodError, ShapeError, UsageError

Rows = NDArray[np.int64]
"""Places of images in a pool, shape (n,) int64."""

Combine = Literal["logits", "probabilities"]

LogitsOf = Callable[[Tensor], Tensor]
"""Pixels, shape (n, C, H, W) uint8, to logits (n, classes); called without gradients."""

THRESHOLD = 0.95
TAKEOVER = 120.0
CURVE = 5.0
CURVE_EPOCHS = 160.0
FALLBACK_SHARE = 0.01


class PoolBatch(NamedTuple):
    """Some images of a pool, and where in it they stand.

    Attributes:
        rows: shape (n,) places in the pool; each place comes once in a pass.
        images: shape (n, C, H, W) uint8, the deterministic view.
        teacher_logits: shape (n, classes) float.
    """

    rows: Rows
    images: Tensor
    teacher_logits: Tensor


@dataclass(frozen=True)
class Scores:
    """How sure teacher and student are of every image of a pool, by rising row.

    Attributes:
        rows: shape (N,) places in the pool, rising.
        confidences: shape (N,) float32, probability of the class below, in [0, 1].
        classes: shape (N,) int64, the class that both together name.
        disagreements: shape (N,) float32, Euclidean distance of the two networks' logits; zero
            where the student was not asked.
        share: the teacher's share of the decision, in [0, 1].
        class_count: how many classes there are.
    """

    rows: Rows
    confidences: NDArray[np.float32]
    classes: NDArray[np.int64]
    disagreements: NDArray[np.float32]
    share: float
    class_count: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Selection:
    """What was selected and why.

    Attributes:
        rows: shape (n,) places in the pool, rising.
        predicted: shape (C,) how many images of the pool are predicted as each class, sure or not.
        ratios: shape (C,) `predicted` over its largest value, in [0, 1].
        thresholds: shape (C,) what a confidence must exceed.
        selected: shape (C,) how many of each class were selected.
        share: the teacher's share of the decision.
        notes: sentences on what is odd: a fallback, classes that no image shows.
        by_threshold: whether the thresholds decided, and not the fallback.
    """

    rows: Rows
    predicted: NDArray[np.int64]
    ratios: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    selected: NDArray[np.int64]
    share: float
    notes: tuple[str, ...] = ()
    by_threshold: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return all but the rows as plain values."""
        columns = (self.predicted, self.ratios, self.thresholds, self.selected)
        names = ("predicted", "ratio", "threshold", "selected")
        per_class = [
            {"class": name, **dict(zip(names, values, strict=True))}
            for name, *values in zip(class_names, *(c.tolist() for c in columns), strict=True)
        ]
        return {
            "pool": int(self.predicted.sum()),
            "selected": len(self),
            "teacher_share": self.share,
            "by_threshold": self.by_threshold,
            "notes": list(self.notes),
            "per_class": per_class,
        }


def teacher_share(
    epoch: float,
    *,
    takeover: float = TAKEOVER,
    curve: float = CURVE,
    curve_epochs: float = CURVE_EPOCHS,
) -> float:
    """Return the teacher's share of the decision: near 1 at first, 0 from the takeover on.

    Args:
        epoch: counted from 1; need not be whole.
        takeover: epoch from which the student decides alone.
        curve: how sharply the share bends.
        curve_epochs: length of the curve, longer than the time until the takeover.

    Source: Tang et al. 2023; 1 - exp(-5 ((e + 1) / 160 - 1)^2) before epoch 120 of 240.
    """
    if epoch >= takeover:
        return 0.0
    return 1.0 - math.exp(-curve * ((epoch + 1.0) / curve_epochs - 1.0) ** 2)


def class_thresholds(
    predicted: NDArray[np.integer], *, threshold: float = THRESHOLD
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ratios and thresholds per class: a rare class gets a lower bar.

    `r = n / max n`, `threshold · r / (2 - r)`. All predictions count, not only sure ones.

    Args:
        predicted: shape (C,) how many images are predicted as each class.
        threshold: that of the most frequent class, in [0, 1).

    Returns:
        Two arrays of shape (C,) float64, each in [0, 1].

    Raises:
        MethodError: no image at all.

    Source: Zhang et al. 2021, "FlexMatch", arXiv:2110.08263, equation 11 (convex mapping).
    """
    highest = int(predicted.max(initial=0))
    if highest == 0:
        raise MethodError("the pool has no image to select from; give a source with images")
    ratios = predicted.astype(np.float64) / highest
    return ratios, threshold * ratios / (2.0 - ratios)


def combined_confidence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    share: float,
    combine: Combine = "logits",
) -> tuple[Tensor, Tensor]:
    """Return probability and place of the class that both networks together name.

    Args:
        student_logits: shape (N, C).
        teacher_logits: shape (N, C).
        share: the teacher's, in [0, 1].
        combine: `logits` mixes scores before the softmax, as published: the network with the
            larger scores then weighs more. `probabilities` mixes after it.

    Returns:
        Shapes (N,) float32 in [0, 1] and (N,) int64; no gradient.

    Raises:
        ShapeError: the two shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            f"student logits have shape {tuple(student_logits.shape)} and the teacher's "
            f"{tuple(teacher_logits.shape)}; expected the same"
        )
    student, teacher = student_logits.detach().float(), teacher_logits.detach().float()
    if combine == "logits":
        mixed = (share * teacher + (1.0 - share) * student).softmax(dim=1)
    else:
        mixed = share * teacher.softmax(dim=1) + (1.0 - share) * student.softmax(dim=1)
    best = mixed.max(dim=1)
    return best.values, best.indices


@torch.no_grad()
def score_pool(
    batches: Iterable[PoolBatch],
    *,
    student: LogitsOf | None,
    share: float,
    classes: int,
    combine: Combine = "logits",
) -> Scores:
    """Score a pool batch by batch; memory holds one batch and 24 bytes an image.

    Args:
        batches: one pass over the pool, in any order.
        student: asked in eval mode by the caller's care; not asked at all where `share` is 1, and
            None then.
        share: the teacher's, in [0, 1].
        classes: how many there are.
        combine: see `combined_confidence`.

    Raises:
        UsageError: a share outside [0, 1], an unknown `combine`, or a share below 1 without a
            student.
        MethodError: no image, a row that comes twice, or scores that are not finite.
    """
    if not 0.0 <= share <= 1.0 or combine not in get_args(Combine):
        raise UsageError(
            f"share {share}, combine {combine!r}; expected a share in [0, 1] and one of "
            f"{', '.join(get_args(Combine))}"
        )
    if share < 1.0 and student is None:
        raise UsageError(f"share {share} asks the student, and there is none; expected share 1")
    rows, confidences, names, distances = [], [], [], []
    for batch in batches:
        teacher = batch.teacher_logits
        own = teacher if share == 1.0 or student is None else student(batch.images)
        best, places = combined_confidence(own, teacher, share=share, combine=combine)
        rows.append(np.asarray(batch.rows, np.int64))
        confidences.append(best.cpu().numpy())
        names.append(places.cpu().numpy())
        distances.append((own.float() - teacher.float()).norm(dim=1).cpu().numpy())
    if not sum(len(part) for part in rows):
        raise MethodError("the pool has no image to select from; give a source with images")
    order, columns = _in_order(rows, confidences, names, distances)
    if not np.isfinite(columns[0]).all():
        broken = int((~np.isfinite(columns[0])).sum())
        raise MethodError(
            f"{broken} of {len(order)} images have scores that are not finite, the first at row "
            f"{order[~np.isfinite(columns[0])][0]}; look for NaN in the teacher's logits and in "
            "the student's weights"
        )
    best_of, place_of, distance = columns
    return Scores(order, best_of, place_of, distance, share, classes)


def _in_order(rows: Sequence[Rows], *columns: Sequence[NDArray[Any]]) -> tuple[Rows, list[Any]]:
    """Join the parts by rising row, and refuse a row that comes twice."""
    joined = np.concatenate(rows)
    order = np.argsort(joined, kind="stable")
    joined = joined[order]
    twice = joined[1:][joined[1:] == joined[:-1]]
    if len(twice):
        raise MethodError(
            f"row {twice[0]} of the pool was scored twice; expected each image once in a pass"
        )
    return joined, [np.concatenate(column)[order] for column in columns]


def select(
    scores: Scores,
    *,
    threshold: float = THRESHOLD,
    minimum: int = 0,
    fallback_share: float = FALLBACK_SHARE,
    accepted: Rows | None = None,
    class_names: Sequence[str] | None = None,
) -> Selection:
    """Select the images whose confidence exceeds the threshold of their class.

    Args:
        scores: of the whole pool.
        threshold: that of the most frequent class.
        minimum: fewer than this are too few to train on; then the best images of the pool are
            taken, whatever their class, where those are more.
        fallback_share: share of the pool that is taken then; 0 refuses to fall back.
        accepted: rows that a person accepted; selected in any case.
        class_names: for the notes.

    Raises:
        MethodError: no image passes, and there is no fallback.
        UsageError: a value out of range.
    """
    if not 0.0 <= threshold < 1.0 or not 0.0 <= fallback_share <= 1.0 or minimum < 0:
        raise UsageError(
            f"threshold {threshold}, fallback_share {fallback_share}, minimum {minimum}; expected "
            "a threshold in [0, 1), a share in [0, 1] and at least 0"
        )
    predicted = np.bincount(scores.classes, minlength=scores.class_count)
    ratios, thresholds = class_thresholds(predicted, threshold=threshold)
    passing = scores.confidences > thresholds[scores.classes]
    if accepted is not None:
        passing |= np.isin(scores.rows, accepted)
    count = int(passing.sum())
    notes = _absent(predicted, class_names)
    best = max(math.ceil(fallback_share * len(scores)), min(2, len(scores)))
    by_threshold = True
    if count < max(minimum, 1) and fallback_share == 0:
        notes.append(f"{count} of {len(scores)} images pass, fewer than {minimum}")
        if count == 0:
            raise MethodError(_nothing_passes(scores, thresholds))
    elif count < max(minimum, 1) and best > count:
        why = "no image passes" if count == 0 else f"only {count} images pass"
        notes.append(
            f"fallback: {why} of {len(scores)} (expected at least {max(minimum, 1)}), so the "
            f"{best} most confident ones are taken"
        )
        passing = np.zeros(len(scores), np.bool_)
        passing[_best(scores, best)] = True
        if accepted is not None:
            passing |= np.isin(scores.rows, accepted)
        by_threshold = False
    elif count < minimum:
        notes.append(
            f"{count} of {len(scores)} images pass, fewer than {minimum}; the fallback would "
            f"take {best}, so they stay"
        )
    return Selection(
        rows=scores.rows[passing],
        predicted=predicted,
        ratios=ratios,
        thresholds=thresholds,
        selected=np.bincount(scores.classes[passing], minlength=scores.class_count),
        share=scores.share,
        notes=tuple(notes),
        by_threshold=by_threshold,
    )


def _best(scores: Scores, count: int) -> NDArray[np.int64]:
    """Return the places of the most confident scores; equal ones by rising row."""
    return np.lexsort((scores.rows, -scores.confidences))[:count]


def _absent(predicted: NDArray[np.int64], class_names: Sequence[str] | None) -> list[str]:
    absent = np.flatnonzero(predicted == 0)
    if not len(absent):
        return []
    names = [class_names[place] if class_names else str(place) for place in absent.tolist()]
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    noun = "the class" if len(names) == 1 else f"{len(names)} classes:"
    return [f"no image of the pool is taken for {noun} {listed}"]


def _nothing_passes(scores: Scores, thresholds: NDArray[np.float64]) -> str:
    place = int(_best(scores, 1)[0])
    return (
        f"no image of {len(scores)} passes its threshold: the most confident one reaches "
        f"{scores.confidences[place]:.3f}, and its class needs more than "
        f"{thresholds[scores.classes[place]]:.3f}; lower the threshold, allow a fallback, or give "
        "images nearer to the teacher's classes"
    )
