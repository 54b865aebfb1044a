"""Objectives that make a student's projected feature map equal to its teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.shapes import check_same_shape
from hydistill_edge.objectives.widening import widened


def feature_alignment(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return the mean squared difference of two feature maps.

    Args:
        student_map: projected to the teacher's channels, shape (N, C, h, w); gradients flow here.
        teacher_map: shape (N, C, h, w); detached.

    Returns:
        Scalar, shape (), computed in float32: the mean over batch, channels and space.

    Raises:
        ShapeError: the two shapes differ.

    Source: Tang, Chen and Gong 2024, arXiv:2412.13525; Chen et al. 2022, arXiv:2203.14001.
    """
    check_same_shape(student_map, teacher_map)
    return (widened(student_map) - widened(teacher_map.detach())).square().mean()


def disagreement_weights(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return how much each image counts: sigmoid of the distance between both logit vectors.

    An image counts more the more the two disagree, at most twice as much as one they agree on.

    Args:
        student_logits: shape (N, C); detached.
        teacher_logits: shape (N, C); detached.

    Returns:
        Shape (N,), float32, in [0.5, 1] (1 is reached by rounding); no gradient.

    Raises:
        ShapeError: the two shapes differ.

    Source: Tang et al. 2023, arXiv:2307.11469.
    """
    check_same_shape(student_logits, teacher_logits)
    difference = widened(student_logits.detach()) - widened(teacher_logits.detach())
    return torch.sigmoid(difference.flatten(1).norm(dim=1))


def weighted_alignment(student_map: Tensor, teacher_map: Tensor, *, weights: Tensor) -> Tensor:
    """Return the mean squared difference of two feature maps, each image times its weight.

    The weights are not normalised: equal weights w give w times `feature_alignment`.

    Args:
        student_map: projected to the teacher's channels, shape (N, C, h, w); gradients flow here.
        teacher_map: shape (N, C, h, w); detached.
        weights: shape (N,), from `disagreement_weights`; detached.

    Returns:
        Scalar, shape (), computed in float32: the mean over batch, channels and space.

    Raises:
        ShapeError: the shapes differ, or there is not one weight per image.

    Source: Tang et al. 2023, arXiv:2307.11469.
    """
    check_same_shape(student_map, teacher_map)
    if weights.shape != student_map.shape[:1]:
        raise ShapeError(
            f"weights {tuple(weights.shape)} for maps {tuple(student_map.shape)}; expected one per "
            "image, (N,)"
        )
    per_image = (
        (widened(student_map) - widened(teacher_map.detach())).square().flatten(1).mean(dim=1)
    )
    return (widened(weights.detach()) * per_image).mean()
