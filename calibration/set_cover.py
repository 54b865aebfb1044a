"""The fewest images that show what all of them show: greedy set cover over activation bins.

Every image answers a few thousand questions: in which bin of all images' peaks does this channel's
highest value lie, does the tensor hold values beyond its 99.9 % quantile, ... A bin is covered when
a chosen image lies in it. Bins are narrow towards the tails, for the tails set int8 ranges. Images
are taken one by one, each from a class that has fewest so far, each the one that covers most that
is still open; every tensor weighs the same, however many channels it has.

Source of the greedy rule and its bound (within ln n of the fewest): Chvátal 1979,
doi:10.1287/moor.4.3.233.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.calibration.coverage import Activations, TensorActivations

Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]

PEAK_SHARES = (0.5, 0.9, 0.98)
"""Where bins of the images' extremes end: half of them, the next 40 %, the next 8 %, the tail."""

VALUE_SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
"""Where bins of a tensor's values end."""

OUTLIER_FACTOR = 16.0
"""An image that peaks this much over the others takes four of eight bits from them all. Less is
kept: real photographs of steel peak 10 and 17 times over the others behind squeeze-and-excitation
layers, cost the others 1.4 dB, and come again."""

USUAL_SHARE = 0.95
"""The peak that this share of the images stays under is what an outlier is held against. What more
than 5 % of the images do is no outlier, whatever its size."""

FEWEST_TO_JUDGE = 8
"""With fewer images (or fewer of a class) nobody can say what is usual."""

_ABSENT = 255  # the answer of an image that has none
_UNIT_WEIGHT = 1_000_000  # whole numbers, so that a sum does not depend on the order
_CHUNK = 1024  # questions compared at once: bounds memory


@dataclass(frozen=True, slots=True)
class Outlier:
    """An image that would set a range by itself.

    Attributes:
        image: its place among the candidates.
        tensor: where it stands out most.
        peak: its greatest magnitude there.
        usual: the magnitude that 95 % of the images stay under there.
    """

    image: int
    tensor: str
    peak: float
    usual: float

    @property
    def why(self) -> str:
        """The reason in words."""
        return (
            f"peaks at {self.peak:.4g} in {self.tensor}, {self.peak / self.usual:.0f} times what "
            f"{USUAL_SHARE:.0%} of the images stay under"
        )


@dataclass(frozen=True, slots=True)
class Pick:
    """A chosen image, and what it was taken for.

    Attributes:
        image: its place among the candidates.
        bins: tensor name to the number of bins that it was the first to cover.
        tails: tensor name to the tails among those bins: "low", "high" or both.
    """

    image: int
    bins: dict[str, int] = field(default_factory=dict)
    tails: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """The reason in words: tails first, then the layers with the most bins."""
        if not self.bins:
            return "taken to balance the classes"
        ranked = sorted(self.bins, key=lambda name: (name not in self.tails, -self.bins[name]))
        parts = [
            f"{' and '.join(self.tails[name])} tail of {name}"
            if name in self.tails
            else f"{self.bins[name]} bins of {name}"
            for name in ranked[:3]
        ]
        rest = f" and {len(ranked) - 3} more layers" if len(ranked) > 3 else ""
        return f"first in {sum(self.bins.values())} bins: {', '.join(parts)}{rest}"


@dataclass(frozen=True, slots=True)
class Cover:
    """Chosen images in the order in which they were taken.

    Attributes:
        picks: the images.
        covered: tensor name to its bins covered and its bins in all.
        complete: whether every bin is covered.
    """

    picks: tuple[Pick, ...]
    covered: dict[str, tuple[int, int]]
    complete: bool

    @property
    def images(self) -> NDArray[np.int64]:
        """Places of the images among the candidates, in the order of the picks."""
        return np.array([pick.image for pick in self.picks], np.int64)


def find_outliers(
    activations: Activations, labels: Labels, *, factor: float = OUTLIER_FACTOR
) -> tuple[Outlier, ...]:
    """Return the images that peak far over what is usual, by image.

    What most images of a class do is usual for the class, however rare it is: those stay.

    Args:
        activations: of N candidates.
        labels: class of each, shape (N,).
        factor: how far over the usual peak an image must be.
    """
    found: dict[int, Outlier] = {}
    if len(activations) < FEWEST_TO_JUDGE:
        return ()
    for tensor in activations.tensors:
        peaks = tensor.peaks
        usual = float(np.quantile(peaks, USUAL_SHARE, method="lower"))
        flagged = (peaks > factor * usual) & (usual > 0)
        for label in np.unique(labels[flagged]):
            of_class = labels == label
            if of_class.sum() >= FEWEST_TO_JUDGE and flagged[of_class].mean() > 0.5:
                flagged &= ~of_class
        for image in np.flatnonzero(flagged):
            worst = found.get(int(image))
            if worst is None or peaks[image] / usual > worst.peak / worst.usual:
                found[int(image)] = Outlier(int(image), tensor.name, float(peaks[image]), usual)
    return tuple(found[image] for image in sorted(found))


def cover(
    activations: Activations,
    labels: Labels,
    *,
    count: int,
    without: Sequence[int] = (),
    times: int = 1,
) -> Cover:
    """Return the fewest images, classes as equal as can be, that lie in every bin.

    Ties go to the image that comes first: sort the candidates by content for a choice that does
    not depend on their order.

    Args:
        activations: of N candidates.
        labels: class of each, shape (N,).
        count: most images; where they do not cover every bin, `complete` is False.
        without: candidates that are neither taken nor counted when bins are cut, e.g. outliers.
        times: images that each bin is to have (all that it has, where they are fewer).
    """
    usable = np.ones(len(activations), np.bool_)
    usable[list(without)] = False
    questions = _Questions.of(activations, usable)
    search = _Search(questions, labels, usable, times)
    picks: list[Pick] = []
    while len(picks) < min(count, int(usable.sum())) and not search.finished():
        picks.append(search.take_next())
    covered = questions.per_tensor(search.counts > 0)
    filled = questions.per_tensor(questions.members > 0)
    return Cover(
        tuple(picks),
        {name: (covered[name], filled[name]) for name in questions.names},
        complete=sum(covered.values()) == sum(filled.values()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Questions:
    """What is asked of every image.

    Attributes:
        names: of the tensors.
        answers: shape (Q, N) uint8: the bin an image lies in, or `_ABSENT`.
        tensor: place of each question's tensor, shape (Q,), rising.
        tails: which tail each bin is, shape (Q, bins): 0 none, 1 low, 2 high.
        members: usable images per bin, shape (Q, bins).
    """

    names: tuple[str, ...]
    answers: NDArray[np.uint8]
    tensor: NDArray[np.int64]
    tails: NDArray[np.uint8]
    members: NDArray[np.int64]

    @staticmethod
    def of(activations: Activations, usable: Flags) -> _Questions:
        """Ask about the extremes of every unit and the values of every tensor."""
        bins = len(PEAK_SHARES) + 1
        answers, tensor, tails = [], [], []
        for place, held in enumerate(activations.tensors):
            for asked, tail in _asked(held, usable, bins):
                asked[:, ~usable] = _ABSENT
                # Where all images give one answer, there is nothing to choose by.
                known = asked[:, usable]
                differ = (known != known[:, :1]).any(axis=1) if known.size else np.zeros(0, bool)
                answers.append(asked[differ])
                tensor.append(np.full(int(differ.sum()), place))
                tails.append(tail[differ])
        all_answers = np.concatenate(answers)
        members = [(all_answers == answer).sum(axis=1) for answer in range(bins)]
        return _Questions(
            activations.names,
            all_answers,
            np.concatenate(tensor),
            np.concatenate(tails),
            np.stack(members, axis=1),
        )

    def per_tensor(self, bins: Flags) -> dict[str, int]:
        """Return how many of the flagged bins, shape (Q, bins), each tensor has."""
        found = np.bincount(self.tensor, bins.sum(axis=1), len(self.names))
        return {name: int(number) for name, number in zip(self.names, found, strict=True)}

    def weights(self) -> NDArray[np.int64]:
        """Return the weight of a bin of each tensor: all bins of a tensor weigh the same."""
        total = np.bincount(self.tensor, (self.members > 0).sum(axis=1), len(self.names))
        return (_UNIT_WEIGHT // np.maximum(total, 1)).astype(np.int64)


def _asked(
    held: TensorActivations, usable: Flags, bins: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield answers, shape (questions, N), and which tail each bin is, shape (questions, bins)."""
    for tail, extremes in ((1, -held.low), (2, held.high)):
        values = np.ascontiguousarray(extremes.T)
        ranked = np.sort(values[:, usable], axis=1)
        answers = np.zeros(values.shape, np.uint8)
        for share in PEAK_SHARES:  # the edge is an image's own value: ties stay together
            edge = ranked[:, int(share * (ranked.shape[1] - 1))] if ranked.size else ranked[:, :0]
            answers += values > edge.reshape(-1, 1)
        tails = np.zeros((len(answers), bins), np.uint8)
        tails[:, -1] = tail
        yield answers, tails
    occupied = _occupied(held, usable)
    tails = np.zeros((len(occupied), bins), np.uint8)
    tails[:1, 0], tails[-1:, 0] = 1, 2
    yield np.where(occupied, 0, _ABSENT).astype(np.uint8), tails


def _occupied(held: TensorActivations, usable: Flags) -> Flags:
    """Return which images have values in which quantile bin of all values: (bins, N)."""
    if not usable.any():
        return np.zeros((0, len(held)), np.bool_)
    below = held.take(usable).cumulative()
    # Bins begin at whole buckets: the one in which the quantile lies begins the bin above it.
    cuts = np.searchsorted(below, VALUE_SHARES, side="right") - 1
    starts = np.unique(np.clip([0, *cuts], 0, held.shares.shape[1] - 1))
    occupied: Flags = np.logical_or.reduceat(held.shares > 0, starts, axis=1).T
    return occupied


class _Search:
    """The greedy search: what each image would still add is kept up to date, pick by pick.

    A bin is closed once, and then taken off the gain of every image that lies in it. So the whole
    search costs one comparison per image and bin, however many images are picked.
    """

    def __init__(self, questions: _Questions, labels: Labels, usable: Flags, times: int) -> None:
        self.questions = questions
        self.counts = np.zeros(questions.members.shape, np.int64)
        self._needed = np.minimum(questions.members, times)
        self._weights = questions.weights()
        self._free = usable.copy()
        _, self._labels = np.unique(labels, return_inverse=True)
        self._per_class = np.zeros(int(self._labels.max(initial=-1)) + 1, np.int64)
        self._gains = np.zeros(len(usable), np.int64)
        for answer in range(questions.members.shape[1]):
            everyone = np.arange(len(questions.answers))
            self._gains += self._worth(everyone, np.full(len(everyone), answer, np.uint8))

    def finished(self) -> bool:
        """Return whether every bin is covered and every class that can be is there."""
        waiting = np.unique(self._labels[self._free])
        return bool((self.counts >= self._needed).all() and (self._per_class[waiting] > 0).all())

    def take_next(self) -> Pick:
        """Take the image that adds most, of the classes with fewest images."""
        waiting = np.unique(self._labels[self._free])
        fewest = self._per_class[waiting].min()
        eligible = self._free & (self._per_class[self._labels] == fewest)
        image = int(np.argmax(np.where(eligible, self._gains, -1)))
        self._free[image] = False
        self._per_class[self._labels[image]] += 1
        answers = self.questions.answers[:, image]
        asked = np.flatnonzero(answers != _ABSENT)
        self.counts[asked, answers[asked]] += 1
        reached = self.counts[asked, answers[asked]]
        closed = asked[reached == self._needed[asked, answers[asked]]]
        self._gains -= self._worth(closed, answers[closed])
        return self._described(image, asked[reached == 1])

    def _worth(
        self, rows: NDArray[np.int64], answers: NDArray[np.integer[Any]]
    ) -> NDArray[np.int64]:
        """Return the weight of the given bins that each image lies in, shape (N,)."""
        total = np.zeros(len(self._gains), np.int64)
        for place in np.unique(self.questions.tensor[rows]):
            of_tensor = self.questions.tensor[rows] == place
            inside = np.zeros(len(total), np.int64)
            for start in range(0, int(of_tensor.sum()), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                lies = (
                    self.questions.answers[rows[of_tensor][chunk]]
                    == (answers[of_tensor][chunk, None])
                )
                inside += lies.sum(axis=0)
            total += inside * self._weights[place]
        return total

    def _described(self, image: int, first_in: NDArray[np.int64]) -> Pick:
        bins: dict[str, int] = {}
        tails: dict[str, tuple[str, ...]] = {}
        answers = self.questions.answers[first_in, image]
        kinds = self.questions.tails[first_in, answers]
        for place in np.unique(self.questions.tensor[first_in]):
            of_tensor = self.questions.tensor[first_in] == place
            name = self.questions.names[place]
            bins[name] = int(of_tensor.sum())
            sides = tuple(
                word for kind, word in ((1, "low"), (2, "high")) if kind in kinds[of_tensor]
            )
            if sides:
                tails[name] = sides
        return Pick(image, bins, tails)
