"""Which natural images a set is built on: sets of one image per class, called slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import MethodError, ShapeError
from hydistill_edge.synthesis.infer_budget import least_ipc


@dataclass(frozen=True)
class Natural:
    """The natural images of a set, ordered by slot and then by class.

    Attributes:
        rows: places among all real images, shape (B,) int64, each once.
        classes: what each stands for, shape (B,) int64.
        slots: the slot of each, shape (B,) int64; a slot has at most one image per class.
    """

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    slots: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


def draw_natural(
    labels: NDArray[np.int64],
    counts: NDArray[np.int64],
    *,
    networks: int,
    class_names: Sequence[str],
    seed: int,
    confidences: NDArray[np.float32] | None = None,
) -> Natural:
    """Draw natural images of every class.

    Args:
        labels: class of every real image, shape (N,); -1 is never drawn.
        counts: images wanted of each class, shape (C,).
        networks: that the budget was planned for; only an error's advice depends on it.
        class_names: C names.
        seed: of the draw.
        confidences: shape (N,); the highest of each class are drawn then, instead of any.

    Raises:
        MethodError: a class has fewer images.
        ShapeError: lengths differ.
    """
    if len(counts) != len(class_names):
        raise ShapeError(f"{len(counts)} counts for {len(class_names)} classes; expected one each")
    choice = np.random.default_rng([seed, 0x1AFE2])
    order = choice.permutation(len(labels))
    if confidences is not None:
        if len(confidences) != len(labels):
            raise ShapeError(f"{len(confidences)} confidences for {len(labels)} images")
        order = order[np.argsort(-confidences[order], kind="stable")]
    available = np.bincount(labels[labels >= 0], minlength=len(counts))[: len(counts)]
    _check_available(available, counts, class_names, networks)
    rows, classes, slots = [], [], []
    for place, count in enumerate(counts.tolist()):
        rows.append(order[labels[order] == place][:count])
        classes.append(np.full(count, place))
        slots.append(np.arange(count))
    found = Natural(np.concatenate(rows), np.concatenate(classes), np.concatenate(slots))
    by_slot = np.lexsort((found.classes, found.slots))
    return Natural(found.rows[by_slot], found.classes[by_slot], found.slots[by_slot])


def noisy_labels(
    labels: NDArray[np.int64], *, share: float, classes: int, seed: int
) -> NDArray[np.int64]:
    """Return labels of which a share was replaced by another class, drawn evenly; a stress test.

    Args:
        labels: shape (N,); -1, unknown, stays.
        share: of the known labels, in [0, 1].
        classes: number of classes, at least 2.
        seed: of the choice.
    """
    choice = np.random.default_rng([seed, 0x2015E])
    known = np.flatnonzero(labels >= 0)
    changed = choice.permutation(known)[: round(share * len(known))]
    noisy: NDArray[np.int64] = labels.copy()
    noisy[changed] = (labels[changed] + choice.integers(1, classes, len(changed))) % classes
    return noisy


def _check_available(
    available: NDArray[np.int64],
    counts: NDArray[np.int64],
    class_names: Sequence[str],
    networks: int,
) -> None:
    short = np.flatnonzero(available < counts)
    if not len(short):
        return
    told = ", ".join(
        f"{class_names[place]} {available[place]} of {counts[place]}" for place in short[:8]
    )
    more = f" and {len(short) - 8} more" if len(short) > 8 else ""
    least = int(available[short].min())
    remedy = "add real images of them"
    if least:
        ipc = least_ipc(least, classes=len(counts), networks=networks)
        remedy += f", or lower ipc to {ipc}"
    raise MethodError(f"too few real images of some classes: {told}{more}; {remedy}")
