"""A term that keeps a generator from making some classes often and others never.

Source: Rangwani et al. 2021, "Class Balancing GAN with a Classifier in the Loop", arXiv:2106.09402,
as taken over by Tang, Chen and Gong 2024, arXiv:2412.13525. The classifier is the teacher.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.objectives.widening import widened

FLOOR = 1e-8
"""Below this a mean probability has no logarithm worth having."""

START_COUNT = 50.0
"""Images of each class that are taken for made before the first refresh: weights start at 1."""

Weighting = Literal["effective", "inverse"]


def weighted_negative_entropy(teacher_logits: Tensor, *, weights: Tensor) -> Tensor:
    """Return the weighted negative entropy of the teacher's mean prediction over a batch.

    Args:
        teacher_logits: of generated images, shape (N, classes); gradients flow here.
        weights: shape (classes,), from `category_weights`; detached.

    Returns:
        Scalar, shape (), in nats, computed in float32: the sum over classes of w p log p, at most
        0; with equal weights lowest where all classes are equally frequent.

    Raises:
        ShapeError: not one weight per class.
    """
    if teacher_logits.dim() != 2 or weights.shape != teacher_logits.shape[1:]:
        raise ShapeError(
            f"logits {tuple(teacher_logits.shape)} and weights {tuple(weights.shape)}; expected "
            "(N, classes) and (classes,)"
        )
    mean = F.softmax(widened(teacher_logits), dim=1).mean(dim=0)
    return (weights.detach().to(mean.dtype) * mean * mean.clamp_min(FLOOR).log()).sum()


def category_weights(
    counts: Tensor, *, beta: float = 0.99, weighting: Weighting = "effective"
) -> Tensor:
    """Return how much each class counts: rare ones more; they sum to the number of classes.

    Args:
        counts: smoothed number of images of each class, shape (classes,), each at least 1.
        beta: of the effective number of samples, in [0, 1). Near 500 images per class and beyond,
            0.99 gives equal weights: counts must be of a short time.
        weighting: `effective` for (1 - beta) / (1 - beta^count); `inverse` for 1 / count, which
            keeps its contrast at any count.

    Returns:
        Shape (classes,), the counts' type.

    Raises:
        UsageError: beta is out of range, or the weighting is unknown.

    Source: Cui et al. 2019, arXiv:1901.05555.
    """
    if not 0.0 <= beta < 1.0:
        raise UsageError(f"beta is {beta}; expected at least 0 and below 1")
    if weighting == "effective":
        weights = (1.0 - beta) / (1.0 - beta**counts)
    elif weighting == "inverse":
        weights = 1.0 / counts
    else:
        raise UsageError(f'weighting "{weighting}" is unknown; expected "effective", "inverse"')
    return weights * (len(counts) / weights.sum())


def refreshed_counts(counts: Tensor, seen: Tensor) -> Tensor:
    """Return counts that forget half of what they knew: max(1, (counts + seen) / 2).

    Args:
        counts: smoothed number of images of each class, shape (classes,).
        seen: images the teacher put into each class since the last refresh, shape (classes,).
    """
    return (0.5 * counts + 0.5 * seen).clamp_min(1.0)
