"""Distillation of spatial maps between layers, weighted by attention; choice of the teacher's keys.

A layer's map is the mean of its squared channels, flattened and of length 1. So channels need not
match, and the student's maps are average-pooled to the size of each teacher layer.

- AFD: all teacher layers, each weighted over the student's layers.
- RTK: only the representative teacher keys, those whose influence (how much the student's layers
  turn to them) reaches a threshold.

Source: Ji, Heo and Park 2021, arXiv:2102.02973, section 3 (AFD); Yang, Kao and Huang 2022,
arXiv:2206.12788 (RTK; threshold, top-k and renormalization are our reading, its equations are not
published in what we could read).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.objectives.widening import widened


def afd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], attention: Tensor) -> Tensor:
    """Return the sum over t and s of attention · mean squared distance of maps, batch mean.

    Args:
        student: S feature maps (N, C_s, H_s, W_s); gradients flow here.
        teacher: T feature maps (N, C_t, H_t, W_t); detached.
        attention: shape (N, T, S), teacher layers as rows; gradients flow here.

    Returns:
        Scalar, shape (), in float32; zero when all maps agree.

    Raises:
        ShapeError: the attention is not of these layers.
    """
    count, layers = len(teacher), len(student)
    _check_attention(attention, (len(teacher[0]), count, layers))
    distances = map_distances(student, teacher)
    return (attention * distances).sum(dim=(1, 2)).mean()


def rtk_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    attention: Tensor,
    *,
    kept: Sequence[int] | None = None,
    channels: Sequence[Tensor | None] | None = None,
    renormalize: bool = True,
) -> Tensor:
    """Return the sum over kept keys t and all s of attention · mean squared distance, batch mean.

    Args:
        student: S feature maps (N, C_s, H_s, W_s); gradients flow here.
        teacher: T feature maps (N, C_t, H_t, W_t); detached, and not read unless kept.
        attention: shape (N, S, T), student layers as rows; gradients flow here.
        kept: places of the representative keys in `teacher`; None for all.
        channels: per teacher layer, places of the channels that count; None for all of them.
        renormalize: let each student layer's weights over the kept keys sum to 1. Otherwise the
            attention could lower the loss by turning to keys that are not in it.

    Returns:
        Scalar, shape (), in float32; zero when the kept keys' maps agree with the student's.

    Raises:
        ShapeError: the attention is not of these layers.
        UsageError: no key is kept.
    """
    _check_attention(attention, (len(teacher[0]), len(student), len(teacher)))
    places = list(range(len(teacher))) if kept is None else list(kept)
    if not places:
        raise UsageError("no teacher key is kept; expected at least one of them")
    if len(places) < len(teacher):  # with all keys kept nothing is touched, not even a rounding
        attention = attention[:, :, places]
        if renormalize:
            tiny = torch.finfo(attention.dtype).tiny
            attention = attention / attention.sum(dim=2, keepdim=True).clamp_min(tiny)
    distances = map_distances(
        student,
        [teacher[t] for t in places],
        channels=None if channels is None else [channels[t] for t in places],
    )
    return (attention * distances.transpose(1, 2)).sum(dim=(1, 2)).mean()


def map_distances(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    channels: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Return the mean over space of (teacher map - student map)², shape (N, T, S), float32.

    Args:
        student: S feature maps (N, C_s, H_s, W_s); gradients flow here.
        teacher: T feature maps (N, C_t, H_t, W_t); detached.
        channels: per teacher layer, places of the channels that count; None for all of them.

    Raises:
        ShapeError: something that is no feature map (N, C, H, W).
    """
    squares = [mean_square(features) for features in student]
    pooled: dict[tuple[int, int], Tensor] = {}
    rows = []
    for place, features in enumerate(teacher):
        chosen = None if channels is None else channels[place]
        target = mean_square(features.detach(), channels=chosen)
        size = (int(target.shape[1]), int(target.shape[2]))
        if size not in pooled:  # teacher layers of one size share the student's pooled maps
            pooled[size] = torch.stack(
                [unit_map(F.adaptive_avg_pool2d(square, size)) for square in squares], dim=1
            )
        rows.append((unit_map(target)[:, None] - pooled[size]).square().mean(dim=2))
    return torch.stack(rows, dim=1)


def mean_square(features: Tensor, *, channels: Tensor | None = None) -> Tensor:
    """Return the mean over channels of the squared features, shape (N, H, W), float32.

    Args:
        features: shape (N, C, H, W).
        channels: places of the channels that count; None for all.

    Raises:
        ShapeError: another number of dimensions.
    """
    if features.dim() != 4:
        raise ShapeError(
            f"got features of shape {tuple(features.shape)}; expected a feature map (N, C, H, W): "
            "tap a convolution, a norm or a block"
        )
    if channels is not None:
        features = features[:, channels]
    return widened(features).square().mean(dim=1)


def unit_map(squares: Tensor) -> Tensor:
    """Return the maps flattened and of length 1, shape (N, H·W); a map of zeros stays zero.

    Args:
        squares: shape (N, H, W).
    """
    return F.normalize(squares.flatten(start_dim=1), dim=1)


def influences(attention: Tensor, *, top_k: int | None = None) -> Tensor:
    """Return how much each teacher key matters to each image, shape (N, T); no gradient.

    It is the mean of the k largest weights in the key's column. With k = S the influences' mean
    over the keys is exactly 1/T; with a smaller k it is larger.

    Args:
        attention: shape (N, S, T), student layers as rows that sum to 1.
        top_k: from 1 to S; None for half of S, rounded up.

    Raises:
        UsageError: `top_k` is out of range.
    """
    rows = attention.shape[1]
    count = math.ceil(rows / 2) if top_k is None else top_k
    if not 1 <= count <= rows:
        raise UsageError(
            f"top_k is {count} with {rows} student layers; expected a number from 1 to {rows}"
        )
    return attention.detach().topk(count, dim=1).values.mean(dim=1)


def representative(scores: Sequence[float], *, factor: float) -> tuple[tuple[int, ...], float]:
    """Return the places of the keys whose influence reaches the threshold, and the threshold.

    The threshold is factor · mean influence, so that it does not depend on the number of layers. If
    no key reaches it, the most influential one is kept.

    Args:
        scores: influences, one per teacher key, at least one.
        factor: c of the threshold; 0 keeps all keys.
    """
    threshold = factor * math.fsum(scores) / len(scores)
    kept = tuple(place for place, score in enumerate(scores) if score >= threshold)
    if not kept:
        kept = (max(range(len(scores)), key=lambda place: scores[place]),)
    return kept, threshold


def largest_channels(mean_squares: Tensor, *, share: float) -> Tensor:
    """Return the places of the channels with the largest mean square, in their own order.

    Args:
        mean_squares: one per channel, shape (C,).
        share: of the channels that are kept, in (0, 1]; at least one is.
    """
    count = max(1, math.ceil(share * len(mean_squares)))
    return mean_squares.topk(count).indices.sort().values


def _check_attention(attention: Tensor, expected: tuple[int, int, int]) -> None:
    if tuple(attention.shape) != expected:
        raise ShapeError(
            f"attention of shape {tuple(attention.shape)} does not fit the layers; expected "
            f"{expected} (images, rows, columns)"
        )
