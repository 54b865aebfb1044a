"""Which class each image shall be of: balanced, and in part on the border of two classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

NO_CLASS = -1
_LARGEST_SHARE = 0.65  # of the first class of a boundary image; the smallest is a half


@dataclass(frozen=True)
class Asked:
    """What each of N images shall be.

    Attributes:
        first: shape (N,) int64, the class that was asked for, or the larger one of two.
        second: shape (N,) int64, the other class of a boundary image, -1 for a plain one.
        share: shape (N,) float64, probability of the first class; 1 for a plain image.
        confidence: shape (N,) float64, probability at which an image stops paying.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    share: NDArray[np.float64]
    confidence: NDArray[np.float64]

    def distributions(self, classes: int) -> NDArray[np.float64]:
        """Return the target probabilities, shape (N, classes)."""
        rows = np.arange(len(self.first))
        wanted = np.zeros((len(rows), classes))
        wanted[rows, self.first] = self.share
        mixed = self.second != NO_CLASS
        wanted[rows[mixed], self.second[mixed]] = 1.0 - self.share[mixed]
        return wanted

    def hits(self, predicted: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which predictions, shape (N,), are a class that was asked for."""
        found: NDArray[np.bool_] = (predicted == self.first) | (predicted == self.second)
        return found


def ask(
    first: NDArray[np.int64],
    *,
    classes: int,
    boundary: float,
    confidence: tuple[float, float],
    choice: np.random.Generator,
    mixing: np.random.Generator,
) -> Asked:
    """Draw what each image shall be, apart from its first class.

    Args:
        first: shape (N,).
        classes: of the network.
        boundary: share of the images that lie between two classes.
        confidence: lowest and highest; drawn evenly.
        choice: draws confidences.
        mixing: draws boundary images; apart, so that plain images stay the same without any.
    """
    count = len(first)
    confidences = choice.uniform(*confidence, count)
    second, share = np.full(count, NO_CLASS), np.ones(count)
    rows = mixing.permutation(count)[: round(boundary * count)]
    second[rows] = (first[rows] + mixing.integers(1, classes, len(rows))) % classes
    share[rows] = mixing.uniform(0.5, _LARGEST_SHARE, len(rows))
    return Asked(first, second, share, confidences)


def class_surprise(logits: Tensor, wanted: Tensor, patience: Tensor) -> Tensor:
    """Return how far the network's answers are from the wanted ones, beyond what is tolerated.

    Args:
        logits: shape (N, C); gradients flow here.
        wanted: shape (N, C), target probabilities.
        patience: shape (N,), divergence in nats at which an image stops paying; for a target of
            one class -ln of its confidence.

    Returns:
        Scalar, shape (): mean of the excess of KL(wanted from answered); zero once every image
        is sure enough.
    """
    answered = F.log_softmax(logits, dim=1)
    divergence = (torch.special.xlogy(wanted, wanted) - wanted * answered).sum(dim=1)
    excess: Tensor = (divergence - patience).clamp(min=0.0).mean()
    return excess
