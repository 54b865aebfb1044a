"""The pilot set: which collected images a first, small investment starts from, and why each.

Four ways to choose `count` of the candidates. Labels are never needed: a class is what the teacher
says.

- `random`: as the released code of HiDFD does.
- `confident`: the same number of each class, the teacher's surest first, above a threshold.
- `selected`: the selector of KD3 with the teacher alone (a bar per class, lower for rare classes),
  then the same number of each class, the surest first.
- `strategic`: for a second round, when synthetic images exist: more images of the classes that the
  generator makes too rarely, that the teacher is unsure about, or whose candidates lie where no
  synthetic image is; within a class, one after another, the image farthest from all synthetic and
  all chosen ones.

Near-duplicates of chosen images are left out everywhere but in `random`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import MethodError, ShapeError
from hydistill_edge.images.selection import Scores, select
from hydistill_edge.images.thumbnails import thumbnails as make_thumbnails

Rows = NDArray[np.int64]
PilotKind = Literal["random", "confident", "selected", "strategic"]

CONFIDENCE = 0.95
"""Bar of the teacher's probability; candidates of a web pool are plenty."""

STRATEGIC_CONFIDENCE = 0.5
"""Bar of a strategic choice, whose point is images the teacher is not yet sure of."""

NEAR_LEVELS = 4.0
"""Thumbnails whose pixels differ by less than this in the mean, of 255, show the same image."""

_ROWS = 512  # of a distance matrix at once


@dataclass(frozen=True)
class Candidates:
    """What a choice knows of images: about 0.8 KB each, and the features where they are asked for.

    Attributes:
        classes: shape (N,) int64, by the teacher.
        confidences: shape (N,) float64, its probability of that class.
        thumbnails: shape (N, d) float32.
        features: the teacher's penultimate ones, shape (N, D); None where they are not needed.
        total: number of classes.
    """

    classes: NDArray[np.int64]
    confidences: NDArray[np.float64]
    thumbnails: NDArray[np.float32]
    features: NDArray[np.floating] | None
    total: int

    def __len__(self) -> int:
        return len(self.classes)

    @staticmethod
    def of(
        images: NDArray[np.uint8],
        logits: NDArray[np.floating],
        features: NDArray[np.floating] | None = None,
    ) -> Candidates:
        """Return what is known of some images.

        Args:
            images: shape (N, H, W, C) uint8.
            logits: the teacher's, shape (N, classes).
            features: its penultimate ones, shape (N, D).

        Raises:
            ShapeError: arrays that do not fit each other.
        """
        if images.ndim != 4 or logits.ndim != 2 or len(images) != len(logits):
            raise ShapeError(
                f"images {images.shape} and logits {logits.shape}; expected (N, H, W, C) and "
                "(N, classes)"
            )
        probabilities = _softmax(logits)
        return Candidates(
            probabilities.argmax(axis=1),
            probabilities.max(axis=1),
            make_thumbnails(images),
            features,
            logits.shape[1],
        )

    @staticmethod
    def join(parts: Sequence[Candidates]) -> Candidates:
        """Return parts as one, in their order; at least one."""
        features = [part.features for part in parts if part.features is not None]
        return Candidates(
            np.concatenate([part.classes for part in parts]),
            np.concatenate([part.confidences for part in parts]),
            np.concatenate([part.thumbnails for part in parts]),
            np.concatenate(features) if features else None,
            parts[0].total,
        )


@dataclass(frozen=True)
class Synthetic:
    """What a strategic choice knows about the synthetic images made so far.

    Attributes:
        logits: the teacher's, shape (M, classes).
        features: the teacher's penultimate ones, shape (M, D).
        asked: shape (M,) int64, the class that was asked for.
    """

    logits: NDArray[np.floating]
    features: NDArray[np.floating]
    asked: NDArray[np.int64]


@dataclass(frozen=True)
class Need:
    """Why a class gets its share of a strategic choice; each part is in [0, 1].

    Attributes:
        deficit: how far the share of synthetic images the teacher puts in this class stays below
            an even share, over that share.
        entropy: of the teacher's answer for synthetic images asked of this class, over the largest
            possible; 1 where there is none.
        gap: share of the candidates of this class that no synthetic image lies near.
    """

    deficit: float
    entropy: float
    gap: float

    @property
    def weight(self) -> float:
        """Relative share of the choice: 1 where nothing is lacking, 4 where everything is."""
        return 1.0 + self.deficit + self.entropy + self.gap


@dataclass(frozen=True)
class Pilot:
    """The chosen images.

    Attributes:
        kind: how they were chosen.
        rows: shape (n,) places among the candidates, in the order of choice.
        classes: shape (n,) int64, by the teacher.
        confidences: shape (n,) float64, the teacher's probability of that class.
        reasons: one sentence per image.
        quotas: images wanted of each class; None where classes were not looked at.
        needs: per class, for a strategic choice; None otherwise.
        near_duplicates: candidates that were left out as such.
        notes: sentences on what is odd: missing classes, quotas that were not met.
    """

    kind: PilotKind
    rows: Rows
    classes: NDArray[np.int64]
    confidences: NDArray[np.float64]
    reasons: tuple[str, ...]
    quotas: tuple[int, ...] | None
    needs: tuple[Need, ...] | None
    near_duplicates: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self, *, ids: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
        """Return plain values: the choice, per class and per image.

        Args:
            ids: of all candidates.
            class_names: of the teacher.
        """
        chosen = np.bincount(self.classes, minlength=len(class_names)).tolist()
        return {
            "kind": self.kind,
            "count": len(self),
            "near_duplicates": self.near_duplicates,
            "notes": list(self.notes),
            "per_class": [
                {
                    "class": name,
                    "wanted": None if self.quotas is None else self.quotas[place],
                    "chosen": chosen[place],
                    "need": None if self.needs is None else vars(self.needs[place]),
                }
                for place, name in enumerate(class_names)
            ],
            "images": [
                {
                    "id": ids[row],
                    "class": class_names[place],
                    "confidence": confidence,
                    "reason": reason,
                }
                for row, place, confidence, reason in zip(
                    self.rows.tolist(),
                    self.classes.tolist(),
                    self.confidences.tolist(),
                    self.reasons,
                    strict=True,
                )
            ],
        }


def choose_pilot(
    kind: PilotKind,
    images: NDArray[np.uint8],
    logits: NDArray[np.floating],
    *,
    count: int,
    seed: int = 0,
    threshold: float | None = None,
    features: NDArray[np.floating] | None = None,
    synthetic: Synthetic | None = None,
    class_names: Sequence[str] | None = None,
) -> Pilot:
    """Choose a pilot set among candidates.

    Args:
        kind: `random`, `confident`, `selected` or `strategic`.
        images: candidates, shape (N, H, W, C) uint8.
        logits: the teacher's, shape (N, classes).
        count: images to choose, at least one per class.
        seed: of the random choice.
        threshold: of the teacher's probability; None for 0.95, and 0.5 for `strategic`.
        features: the teacher's penultimate ones, shape (N, D); for `strategic`.
        synthetic: what exists already; for `strategic`.
        class_names: for the notes.

    Raises:
        MethodError: fewer images asked for than classes, fewer candidates than that, no candidate
            passes the threshold, or `strategic` lacks features or synthetic images.
        ShapeError: arrays that do not fit each other.
    """
    return choose_among(
        kind,
        Candidates.of(images, logits, features),
        count=count,
        seed=seed,
        threshold=threshold,
        synthetic=synthetic,
        class_names=class_names,
    )


def choose_among(
    kind: PilotKind,
    candidates: Candidates,
    *,
    count: int,
    seed: int = 0,
    threshold: float | None = None,
    synthetic: Synthetic | None = None,
    class_names: Sequence[str] | None = None,
) -> Pilot:
    """Choose a pilot set, as `choose_pilot`, by what is known of the candidates.

    Args:
        kind: as there.
        candidates: may be joined from pieces of a pool that is too large to be held.
        count: as there.
        seed: as there.
        threshold: as there.
        synthetic: as there.
        class_names: as there.

    Raises:
        MethodError: as there.
    """
    total, features = candidates.total, candidates.features
    classes, confidences = candidates.classes, candidates.confidences
    names = _names(class_names, total)
    if count < total:
        raise MethodError(
            f"a pilot set of {count} images for {total} classes; expected at least one per class"
        )
    if len(candidates) < total:
        raise MethodError(
            f"{len(candidates)} candidates for {total} classes; expected at least one per class: "
            "collect more images"
        )
    notes = _absent(classes, names)
    if kind == "random":
        rows = np.random.default_rng(seed).permutation(len(candidates))[:count]
        reason = f"drawn at random from {len(candidates)} candidates, seed {seed}"
        if count > len(candidates):
            notes.append(f"{len(candidates)} candidates, fewer than the {count} asked for")
        reasons = (reason,) * len(rows)
        return Pilot(
            kind, rows, classes[rows], confidences[rows], reasons, None, None, 0, tuple(notes)
        )
    needs: tuple[Need, ...] | None = None
    distances = np.zeros(len(candidates))
    bar = threshold
    if kind == "strategic":
        if features is None or synthetic is None:
            raise MethodError(
                "a strategic choice compares candidates with synthetic images: it needs features "
                "and synthetic images; make some first, or choose confident"
            )
        bar = STRATEGIC_CONFIDENCE if bar is None else bar
        passing = confidences > bar
        distances = _nearest(features, synthetic.features)
        needs = _needs(features, classes, passing, distances, synthetic)
    else:
        bar = CONFIDENCE if bar is None else bar
        passing = confidences > bar
        if kind == "selected":
            passing = _selected(confidences, classes, total, bar)
    if not passing.any():
        raise MethodError(
            f"no candidate of {len(candidates)} passes the threshold {bar}; the teacher's surest "
            f"has {confidences.max():.3f}: lower the threshold, or collect images nearer to the "
            "teacher's classes"
        )
    quotas = _quotas(
        np.ones(total) if needs is None else np.array([need.weight for need in needs]),
        count,
        None if needs is None else np.bincount(classes[passing], minlength=total),
    )
    thumbnails = candidates.thumbnails
    chosen: list[int] = []
    told: list[str] = []
    dropped = 0
    for place in range(total):
        members = np.flatnonzero(passing & (classes == place))
        members = members[np.lexsort((members, -confidences[members]))]
        if needs is None or features is None:
            taken, doubles = _apart(members, thumbnails, quotas[place])
            told += [
                f"{names[place]}: number {rank + 1} by the teacher's probability, "
                f"{confidences[row]:.3f}"
                for rank, row in enumerate(taken)
            ]
        else:
            taken, doubles, gaps = _farthest_first(
                members, features, distances, thumbnails, quotas[place]
            )
            why = _told(names[place], needs[place], quotas[place])
            told += [f"{why}; {gap}" for gap in gaps]
        dropped += doubles
        chosen += taken
        if len(taken) < quotas[place] and len(members):
            notes.append(
                f"{names[place]}: {len(taken)} of {quotas[place]} wanted images, no more pass"
            )
    rows = np.array(chosen, np.int64)
    return Pilot(
        kind,
        rows,
        classes[rows],
        confidences[rows],
        tuple(told),
        tuple(int(quota) for quota in quotas),
        needs,
        dropped,
        tuple(notes),
    )


def _needs(
    features: NDArray[np.floating],
    classes: NDArray[np.int64],
    passing: NDArray[np.bool_],
    distances: NDArray[np.float64],
    synthetic: Synthetic,
) -> tuple[Need, ...]:
    """Return what each class lacks in the synthetic images."""
    answers = _softmax(synthetic.logits)
    total = answers.shape[1]
    frequency = np.bincount(answers.argmax(axis=1), minlength=total) / max(1, len(answers))
    entropy = -(answers * np.log(np.maximum(answers, 1e-12))).sum(axis=1) / np.log(total)
    found = []
    for place in range(total):
        asked = entropy[synthetic.asked == place]
        members = np.flatnonzero(passing & (classes == place))
        found.append(
            Need(
                deficit=max(0.0, 1.0 - float(frequency[place]) * total),
                entropy=float(asked.mean()) if len(asked) else 1.0,
                gap=_gap(features[members], distances[members]),
            )
        )
    return tuple(found)


def _gap(features: NDArray[np.floating], distances: NDArray[np.float64]) -> float:
    """Return the share of images nearer to their fifth own neighbour than to any synthetic one."""
    neighbours = min(5, len(features) - 1)
    if neighbours < 1:
        return 1.0 if len(features) else 0.0
    radius = np.concatenate(
        [
            # The nearest of each is itself.
            np.partition(_distances(part, features), neighbours, axis=1)[:, neighbours]
            for part in _parts(features)
        ]
    )
    return float((distances > radius).mean())


def _farthest_first(
    members: Rows,
    features: NDArray[np.floating],
    distances: NDArray[np.float64],
    thumbnails: NDArray[np.float32],
    quota: int,
) -> tuple[list[int], int, list[str]]:
    """Take images one after another, each the farthest from all synthetic and chosen ones."""
    left = distances[members].copy()
    taken: list[int] = []
    gaps: list[str] = []
    doubles = 0
    while len(taken) < quota and np.isfinite(left).any() and left.max() > -np.inf:
        place = int(left.argmax())
        row, gap = int(members[place]), float(left[place])
        left[place] = -np.inf
        if _shows_the_same(thumbnails[row], thumbnails[taken]):
            doubles += 1
            continue
        taken.append(row)
        nearest = "synthetic" if gap == distances[row] else "synthetic or chosen"
        gaps.append(f"this one is {gap:.3g} away from the nearest {nearest} image")
        own = _distances(features[members], features[row : row + 1])[:, 0]
        left = np.where(np.isneginf(left), left, np.minimum(left, own))
    return taken, doubles, gaps


def _apart(members: Rows, thumbnails: NDArray[np.float32], quota: int) -> tuple[list[int], int]:
    """Return the first rows that do not show what an earlier one shows, and how many did."""
    taken: list[int] = []
    doubles = 0
    for row in members.tolist():
        if len(taken) == quota:
            break
        if _shows_the_same(thumbnails[row], thumbnails[taken]):
            doubles += 1
        else:
            taken.append(row)
    return taken, doubles


def _shows_the_same(thumbnail: NDArray[np.float32], others: NDArray[np.float32]) -> bool:
    return bool((np.abs(others - thumbnail).mean(axis=1) < NEAR_LEVELS).any())


def _selected(
    confidences: NDArray[np.float64], classes: NDArray[np.int64], total: int, threshold: float
) -> NDArray[np.bool_]:
    """Return which candidates the selector of KD3 lets pass when the teacher decides alone."""
    scores = Scores(
        np.arange(len(classes)),
        confidences.astype(np.float32),
        classes,
        np.zeros(len(classes), np.float32),
        1.0,
        total,
    )
    passing = np.zeros(len(classes), np.bool_)
    passing[select(scores, threshold=threshold, fallback_share=0.0).rows] = True
    return passing


def _quotas(
    weights: NDArray[np.float64], count: int, available: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Share `count` out by weight, largest remainders first; what a class lacks goes to others.

    Args:
        weights: of each class.
        count: to share out.
        available: candidates of each class; None to let a class keep a quota it cannot fill.
    """
    quotas = np.zeros(len(weights), np.int64)
    room = np.full(len(weights), count) if available is None else available
    while (left := count - int(quotas.sum())) > 0 and (open_ := quotas < room).any():
        shares = np.where(open_, weights, 0.0)
        shares = left * shares / shares.sum()
        step = np.floor(shares).astype(np.int64)
        largest = np.argsort(step - shares, kind="stable")[: left - int(step.sum())]
        step[largest] += 1
        quotas = np.minimum(quotas + np.where(open_, step, 0), room)
    return quotas


def _told(name: str, need: Need, quota: int) -> str:
    return (
        f"{name}: quota {quota}, as its synthetic images are {need.deficit:.0%} short, the "
        f"teacher's entropy on them is {need.entropy:.2f} of the largest, and {need.gap:.0%} of "
        "its candidates have none near"
    )


def _nearest(features: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the distance of each row to the nearest of the others; infinite without any."""
    if len(others) == 0:
        return np.full(len(features), np.finfo(np.float64).max)
    return np.concatenate([_distances(part, others).min(axis=1) for part in _parts(features)])


def _distances(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return Euclidean distances, shape (n, m)."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * a @ b.T
    found: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))
    return found


def _parts(features: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    return [features[start : start + _ROWS] for start in range(0, len(features), _ROWS)]


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return found


def _names(names: Sequence[str] | None, total: int) -> Sequence[str]:
    return names if names is not None else [f"class {place}" for place in range(total)]


def _absent(classes: NDArray[np.int64], names: Sequence[str]) -> list[str]:
    absent = [name for place, name in enumerate(names) if not (classes == place).any()]
    return [f"no candidate is of class {', '.join(absent)} for the teacher"] if absent else []
