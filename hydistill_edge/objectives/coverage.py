"""How much of the teacher's feature space synthetic images reach, and a term that widens it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.objectives.widening import widened

FLAG_BELOW = 0.6
"""A class whose images reach a smaller share of the bins is flagged."""

_ROWS = 1024  # of a distance matrix at once


@dataclass(frozen=True)
class CoverageTable:
    """What share of the bins of real features the synthetic ones reach.

    Attributes:
        shares: per class and channel, shape (classes, D) float32; NaN for a class without real
            images.
        per_class: mean over channels, shape (classes,); NaN likewise.
        flagged: classes with real images that reach less than the limit.
        missing: classes without a real image, about which nothing can be said.
    """

    shares: Tensor
    per_class: Tensor
    flagged: tuple[int, ...]
    missing: tuple[int, ...]


@torch.no_grad()
def coverage_table(
    real: Tensor,
    real_classes: Tensor,
    synthetic: Tensor,
    synthetic_classes: Tensor,
    *,
    classes: int,
    bins: int = 10,
    flag_below: float = FLAG_BELOW,
) -> CoverageTable:
    """Return the share of quantile bins, per class and channel, that synthetic images reach.

    The bins are quantiles of a class's real images, the outer ones open. Where values coincide
    (a channel that is often 0, or a handful of images), some bins hold no real image; only those
    that do are counted.

    Args:
        real: penultimate features of the real images, shape (N, D).
        real_classes: shape (N,) int64.
        synthetic: of the synthetic images, shape (M, D).
        synthetic_classes: shape (M,) int64.
        classes: number of classes.
        bins: per channel, at least 2.
        flag_below: share below which a class is flagged.

    Raises:
        ShapeError: features and classes do not fit.
        UsageError: fewer than 2 bins.
    """
    _check_features(real, real_classes)
    _check_features(synthetic, synthetic_classes)
    if bins < 2:
        raise UsageError(f"{bins} bins; expected at least 2")
    shares = torch.full((classes, real.shape[1]), float("nan"), device=real.device)
    inner = torch.arange(1, bins, device=real.device, dtype=torch.float32) / bins
    for number in range(classes):
        own = real[real_classes == number].float()
        made = synthetic[synthetic_classes == number].float()
        if len(own):
            edges = torch.quantile(own, inner, dim=0).T.contiguous()
            occupied = _occupied(own, edges, bins)
            reached = occupied & _occupied(made, edges, bins)
            shares[number] = reached.sum(dim=1) / occupied.sum(dim=1)
    per_class = shares.mean(dim=1)
    listed = per_class.tolist()
    return CoverageTable(
        shares,
        per_class,
        flagged=tuple(number for number, share in enumerate(listed) if share < flag_below),
        missing=tuple(number for number, share in enumerate(listed) if share != share),
    )


@torch.no_grad()
def density_and_coverage(
    real: Tensor, synthetic: Tensor, *, neighbours: int = 5
) -> dict[str, float]:
    """Return how densely, and how completely, synthetic images lie among real ones.

    Args:
        real: features, shape (N, D), more than `neighbours`.
        synthetic: features, shape (M, D), at least 1.
        neighbours: a real image's ball reaches to its nearest real neighbour of this number.

    Returns:
        `density`: mean number of balls around a synthetic image over `neighbours`, 1 in the mean
        where both are alike, unbounded; `coverage`: share of the balls with a synthetic image.

    Raises:
        ShapeError: lengths of features differ, or there are too few images.

    Source: Naeem et al. 2020, arXiv:2002.09797, equations 5 and 6.
    """
    if real.dim() != 2 or synthetic.dim() != 2 or real.shape[1] != synthetic.shape[1]:
        raise ShapeError(
            f"features {tuple(real.shape)} and {tuple(synthetic.shape)}; expected (N, D), (M, D)"
        )
    if len(real) <= neighbours or len(synthetic) == 0:
        raise ShapeError(
            f"{len(real)} real and {len(synthetic)} synthetic images; expected more than "
            f"{neighbours} real and at least 1 synthetic"
        )
    balls, covered = 0, 0
    for rows in torch.split(real.float(), _ROWS):
        # The nearest real image of each is itself, so one more is asked for.
        radius = torch.cdist(rows, real.float()).kthvalue(neighbours + 1, dim=1).values
        inside = torch.cdist(rows, synthetic.float()) < radius[:, None]
        balls += int(inside.sum())
        covered += int(inside.any(dim=1).sum())
    return {
        "density": balls / (neighbours * len(synthetic)),
        "coverage": covered / len(real),
    }


@dataclass(frozen=True)
class ClassStatistics:
    """Mean and deviation of features, per class.

    Attributes:
        mean: shape (classes, D) float32; 0 for a class that is not there.
        deviation: shape (classes, D) float32, with the divisor N - 1; 0 below two images.
        count: shape (classes,) int64.
    """

    mean: Tensor
    deviation: Tensor
    count: Tensor


def class_statistics(features: Tensor, classes: Tensor, *, count: int) -> ClassStatistics:
    """Return mean and deviation per class; gradients flow.

    Args:
        features: shape (N, D).
        classes: shape (N,) int64.
        count: number of classes.

    Raises:
        ShapeError: features and classes do not fit.
    """
    _check_features(features, classes)
    wide = widened(features)
    places = torch.arange(count, device=classes.device)
    member = (classes[:, None] == places).to(wide.dtype)  # one_hot would wait for a GPU
    images = member.sum(dim=0)[:, None]
    mean = member.T @ wide / images.clamp_min(1.0)
    squares = member.T @ (wide - mean[classes]).square()
    variance = squares / (images - 1.0).clamp_min(1.0)
    # The root's slope is infinite at 0, where a class has one image or none.
    deviation = torch.where(variance > 0, variance.clamp_min(1e-12).sqrt(), variance)
    return ClassStatistics(mean, deviation, images[:, 0].long())


def class_statistics_distance(
    features: Tensor, classes: Tensor, *, real: ClassStatistics
) -> Tensor:
    """Return how far features of synthetic images are from the real ones' statistics per class.

    Args:
        features: of the synthetic images, shape (N, D); gradients flow here.
        classes: shape (N,) int64, what was asked for.
        real: of the real images; detached.

    Returns:
        Scalar, shape (): the mean squared difference of the means over classes that both have and
        channels, plus that of the deviations over classes with two images of each; zero where no
        class qualifies.

    Raises:
        ShapeError: features and classes do not fit.
    """
    made = class_statistics(features, classes, count=len(real.count))
    both = (made.count > 0) & (real.count > 0)
    spread = (made.count > 1) & (real.count > 1)
    means = (made.mean - real.mean.detach()).square().mean(dim=1) * both
    spreads = (made.deviation - real.deviation.detach()).square().mean(dim=1) * spread
    return means.sum() / both.sum().clamp_min(1) + spreads.sum() / spread.sum().clamp_min(1)


def _occupied(values: Tensor, edges: Tensor, bins: int) -> Tensor:
    """Return which bins of each channel hold a value, shape (D, bins) bool."""
    found = torch.zeros((len(edges), bins), dtype=torch.bool, device=edges.device)
    if len(values):
        places = torch.searchsorted(edges, values.T.contiguous(), right=True)
        found.scatter_(1, places, True)
    return found


def _check_features(features: Tensor, classes: Tensor) -> None:
    if features.dim() != 2 or classes.shape != features.shape[:1]:
        raise ShapeError(
            f"features {tuple(features.shape)} and classes {tuple(classes.shape)} do not fit; "
            "expected (N, D) and (N,)"
        )
