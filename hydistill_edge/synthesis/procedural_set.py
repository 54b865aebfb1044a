"""Which images from formulas a student learns from: fitting ones, as many of each class.

Most textures are of one class to a teacher: a steel network takes three of four for patches, and
most of those are like nothing it was trained on. So an image is kept where its class still lacks
some and it fits the teacher's memory (`objectives/misfit.py`). What is rare in drawings is then
crossed out of the few that were found (`crossing.py`).

On 1,200 real images a quarter of that steel teacher came to agree with it for 89 % by as many of
each class, for 90 % by fitting ones, for 92 % with crossed ones. On CIFAR-10 (3,000 images, beside
inverted ones) the same steps brought 86, 86 and 87 %. Images of which the teacher is sure brought
88 % there in a short training, and no more in a long one: `confidence` is off by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import UsageError
from hydistill_edge.synthesis.crossing import cross
from hydistill_edge.synthesis.procedural import Images, draw

PIECE = 1024
"""Images that are drawn before the teacher is asked about them."""

FITTING = 1.0
"""Highest misfit of an image that fits: the most that training images have in the mean."""

_CROSSINGS = 1
"""Keeps the crossings' randomness apart from the drawings', whose seed is (seed, number)."""

Logits = NDArray[np.float32]


class Answer(NamedTuple):
    """What a network says of images.

    Attributes:
        logits: shape (N, classes).
        misfit: how little each is like the training images, shape (N,); zeros where the network
            does not remember them.
    """

    logits: Logits
    misfit: NDArray[np.float32]


@dataclass(frozen=True)
class ProceduralSettings:
    """How images are drawn from formulas.

    Attributes:
        count: images to keep, the same number of each class; 0 draws none.
        draws: images to draw at most, as a multiple of `count`, while a class lacks some.
        crosses: images to cross at most, as a multiple of `count`, out of the drawings of a class
            that still lacks some; 0 for none.
        only_fitting: keep images that fit the teacher's BatchNorm memory only; without BatchNorm
            all do.
        confidence: the teacher's probability of its class, in [0, 1], from which an image is kept
            at once. Those below wait, and fill in the end what a class still lacks. 0 takes all.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    count: int = 0
    draws: int = 4
    crosses: int = 4
    only_fitting: bool = True
    confidence: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if self.count < 0:
            problems.append(f"count is {self.count}; expected at least 0")
        if self.draws < 1:
            problems.append(f"draws is {self.draws}; expected at least 1")
        if self.crosses < 0:
            problems.append(f"crosses is {self.crosses}; expected at least 0")
        if not 0 <= self.confidence <= 1:
            problems.append(f"confidence is {self.confidence}; expected in [0, 1]")
        if problems:
            raise UsageError("procedural settings: " + "; ".join(problems))


@dataclass(frozen=True)
class ProceduralSet:
    """Images that were kept.

    Attributes:
        images: shape (N, H, W, C) uint8; N is less than was asked for where classes lack some.
        logits: the teacher's, shape (N, classes).
        ids: "procedural-" and the number of the drawing, or "crossed-" and that of the crossing.
        drawn: images that were drawn.
        seen: of all that were drawn, those of each class, shape (classes,).
        kept: of each class, crossed ones included, shape (classes,).
        wanted: of each class, shape (classes,).
        misfits: drawings and crossings of a class that lacked some, left out since they do not fit.
    """

    images: Images
    logits: Logits
    ids: list[str]
    drawn: int
    seen: NDArray[np.int64]
    kept: NDArray[np.int64]
    wanted: NDArray[np.int64]
    misfits: int

    def note(self, class_names: Sequence[str]) -> str:
        """Return what the reader must know; empty where every class has its share."""
        lacking = [
            f"{name} ({kept} of {wanted})"
            for name, kept, wanted in zip(class_names, self.kept, self.wanted, strict=True)
            if kept < wanted
        ]
        if not lacking:
            return ""
        return (
            f"the teacher saw too little of {', '.join(lacking)} in {self.drawn:,} drawings: raise "
            "draws, or make more inverted images"
        )

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return {
            "count": len(self.images),
            "drawn": self.drawn,
            "crossed": sum(name.startswith("crossed") for name in self.ids),
            "misfits": self.misfits,
            "seen": dict(zip(class_names, self.seen.tolist(), strict=True)),
            "kept": dict(zip(class_names, self.kept.tolist(), strict=True)),
            "note": self.note(class_names),
        }


def draw_set(
    ask: Callable[[Images], Answer],
    settings: ProceduralSettings,
    *,
    classes: int,
    size: tuple[int, int],
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProceduralSet:
    """Draw images from formulas until there is every class's share of them.

    Args:
        ask: returns what the teacher says of images (n, H, W, C) uint8.
        settings: how many, and how long to go on.
        classes: of the teacher.
        size: height and width in pixels.
        channels: 1 or 3.
        mean: of the teacher's normalization; see `procedural.draw`.
        std: the same.
        seed: of the drawings and crossings.
        progress: told how many are kept, and how many are wanted.

    Raises:
        UsageError: fewer images than classes.
    """
    count = settings.count
    if count < classes:
        raise UsageError(f"{count} procedural images cannot cover {classes} classes")
    wanted = np.full(classes, count // classes)
    wanted[: count % classes] += 1
    basket = _Basket(wanted, settings)
    seen = np.zeros(classes, np.int64)
    drawn = 0
    for piece in _pieces(settings.draws * count):
        if not basket.lacking.any():
            break
        found = draw(drawn, piece, size=size, channels=channels, mean=mean, std=std, seed=seed)
        labels = basket.add(found, ask(found), "procedural", drawn)
        seen += np.bincount(labels, minlength=classes)
        drawn += piece
        if progress is not None:
            progress(int(basket.kept.sum()), count)

    choice = np.random.default_rng([seed, _CROSSINGS, 0])
    parents = basket.parents()
    crossed = 0
    for turn, piece in enumerate(_pieces(settings.crosses * count)):
        open_classes = [place for place in parents if basket.lacking[place]]
        if not open_classes:
            break
        # In turns: a class whose crossings are all of another one must not use up the budget.
        found = cross(parents[open_classes[turn % len(open_classes)]], piece, choice)
        basket.add(found, ask(found), "crossed", crossed)
        crossed += piece
        if progress is not None:
            progress(int(basket.kept.sum()), count)
    basket.fill()
    return ProceduralSet(
        *basket.images_and_logits(),
        ids=basket.ids,
        drawn=drawn,
        seen=seen,
        kept=basket.kept,
        wanted=wanted,
        misfits=basket.misfits,
    )


class _Basket:
    """Images that were kept so far, and how many each class still lacks."""

    def __init__(self, wanted: NDArray[np.int64], settings: ProceduralSettings) -> None:
        self.lacking = wanted.copy()
        self.kept = np.zeros_like(wanted)
        self.ids: list[str] = []
        self.misfits = 0
        self._settings = settings
        self._images: list[Images] = []
        self._logits: list[Logits] = []
        self._reserve: dict[int, _Reserve] = {}

    def add(self, images: Images, answer: Answer, word: str, first: int) -> NDArray[np.int64]:
        """Keep fitting ones of classes that lack some; return the class of each image.

        Those of which the teacher is not confident wait in reserve.
        """
        labels = np.asarray(answer.logits.argmax(axis=1), np.int64)
        confidence = _confidences(answer.logits)
        fits = np.full(len(images), True)
        if self._settings.only_fitting:
            fits = answer.misfit <= FITTING
        self.misfits += int((~fits & (self.lacking[labels] > 0)).sum())
        ids = [f"{word}-{first + row:06d}" for row in range(len(images))]
        chosen = []
        for place, lacking in enumerate(self.lacking):
            rows = np.flatnonzero(fits & (labels == place))
            confident = confidence[rows] >= self._settings.confidence
            chosen.append(rows[confident][:lacking])
            unsure, left = rows[~confident], int(lacking - len(chosen[-1]))
            reserve = self._reserve.setdefault(place, _Reserve(images[:0], answer.logits[:0]))
            reserve.add(
                images[unsure], answer.logits[unsure], [ids[row] for row in unsure], most=left
            )
        self._keep(np.sort(np.concatenate(chosen)), images, answer.logits, ids)
        return labels

    def fill(self) -> None:
        """Take what classes still lack from the reserve, the most confident first."""
        for place, reserve in self._reserve.items():
            rows = np.arange(min(len(reserve.ids), self.lacking[place]))
            if len(rows):
                self._keep(rows, reserve.images, reserve.logits, reserve.ids)

    def images_and_logits(self) -> tuple[Images, Logits]:
        """Return all that was kept, in order."""
        return np.concatenate(self._images), np.concatenate(self._logits)

    def parents(self) -> dict[int, Images]:
        """Return the images of every class that lacks some and has any, those in reserve too."""
        images, logits = self.images_and_logits()
        labels = logits.argmax(axis=1)
        every = {
            place: np.concatenate([images[labels == place], self._reserve[place].images])
            for place in np.flatnonzero(self.lacking).tolist()
        }
        return {place: found for place, found in every.items() if len(found)}

    def _keep(
        self, rows: NDArray[np.int64], images: Images, logits: Logits, ids: Sequence[str]
    ) -> None:
        self._images.append(images[rows])
        self._logits.append(logits[rows])
        self.ids += [ids[row] for row in rows]
        added = np.bincount(logits[rows].argmax(axis=1), minlength=len(self.lacking))
        self.kept += added
        self.lacking -= added


class _Reserve:
    """The most confident of one class's images that are not confident enough, best first.

    Args:
        images: none of them, in their shape.
        logits: the same.
    """

    def __init__(self, images: Images, logits: Logits) -> None:
        self.images, self.logits = images, logits
        self.ids: list[str] = []

    def add(self, images: Images, logits: Logits, ids: Sequence[str], *, most: int) -> None:
        """Add images, and forget all but `most`."""
        if not len(ids) and len(self.ids) <= most:
            return
        every_logits = np.concatenate([self.logits, logits])
        order = np.argsort(-_confidences(every_logits), kind="stable")[:most]
        every_id = [*self.ids, *ids]
        self.ids = [every_id[place] for place in order]
        self.images = np.concatenate([self.images, images])[order]
        self.logits = every_logits[order]


def _confidences(logits: Logits) -> NDArray[np.float32]:
    """Return the probability of the most probable class, shape (n,)."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(1 / odds.sum(axis=1), np.float32)


def _pieces(total: int) -> Iterator[int]:
    for start in range(0, total, PIECE):
        yield min(PIECE, total - start)
