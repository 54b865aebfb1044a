"""What int8 costs, by images that set no range: the artifact's own signal to noise.

What a set of calibration images costs depends on the runtime that quantizes by it, so no score of
the set alone can tell; the artifact can. It is held against the float student on images that are
like those of training, whatever set the ranges.

The signal of one image is that of its logits without their mean over the classes, which no decision
depends on. Over the images the median counts: one image far out, as inversion gives now and then,
has most of the energy of all logits, and says nothing of the others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.calibration.select import EQUAL_SNR_DB
from hydistill_edge.errors import ShapeError
from hydistill_edge.targets.base import Logits


@dataclass(frozen=True, slots=True)
class Control:
    """The artifact beside the float student.

    Attributes:
        images: how many.
        signal_db: median over the images of 10 log10(energy of the student's logits / energy of
            the difference), both without their mean over the classes.
        agreement: share of images with the student's top-1 class.
    """

    images: int
    signal_db: float
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def judge_control(reference: Logits, found: Logits) -> Control:
    """Hold an artifact's logits against the float student's.

    Args:
        reference: of the student, shape (N, classes), N >= 1.
        found: of the artifact, the same shape.

    Raises:
        ShapeError: the shapes differ, or there is no image.
    """
    if reference.shape != found.shape or reference.ndim != 2 or not len(reference):
        raise ShapeError(
            f"control logits have shapes {reference.shape} and {found.shape}; expected the same "
            "(N, classes) with N >= 1"
        )
    exact, other = _centered(reference), _centered(found)
    with np.errstate(all="ignore"):  # what is not finite, or 0, is told apart below
        signal = (exact**2).sum(axis=1)
        noise = ((other - exact) ** 2).sum(axis=1)
        decibels = 10 * np.log10(signal / noise)
    decibels = np.where(
        noise == 0, EQUAL_SNR_DB, np.where(np.isfinite(decibels), decibels, -EQUAL_SNR_DB)
    )
    same = reference.argmax(axis=1) == found.argmax(axis=1)
    return Control(
        images=len(reference),
        signal_db=float(np.median(np.clip(decibels, -EQUAL_SNR_DB, EQUAL_SNR_DB))),
        agreement=float((same & np.isfinite(found).all(axis=1)).mean()),
    )


def _centered(logits: Logits) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(values - values.mean(axis=1, keepdims=True))
