"""Objectives of a conditional GAN whose discriminator learns from a teacher.

Three heads of the discriminator are trained: `adv` tells real from generated, `adc` tells the class
along with it, and a map head repeats the teacher's penultimate features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.shapes import check_same_shape
from hydistill_edge.objectives.widening import widened


def hinge_discriminator(real: Tensor, generated: Tensor) -> Tensor:
    """Return the hinge loss of a discriminator, batch means.

    Args:
        real: its scores of real images, shape (N,); gradients flow here.
        generated: its scores of generated images, shape (M,); gradients flow here.

    Returns:
        Scalar, shape (), at least 0; zero once real scores reach 1 and the others -1.

    Source: Lim and Ye 2017, arXiv:1705.02894.
    """
    return F.relu(1.0 - widened(real)).mean() + F.relu(1.0 + widened(generated)).mean()


def hinge_generator(generated: Tensor) -> Tensor:
    """Return the negative mean score of generated images, shape ().

    Args:
        generated: the discriminator's scores, shape (M,); gradients flow here.
    """
    return -widened(generated).mean()


def adc_discriminator(
    real: Tensor, real_classes: Tensor, generated: Tensor, generated_classes: Tensor
) -> Tensor:
    """Return the cross entropy of the auxiliary discriminative classifier, over both batches.

    Output 2 y stands for "real of class y", output 2 y + 1 for "generated of class y".

    Args:
        real: shape (N, 2 classes); gradients flow here.
        real_classes: shape (N,) int64.
        generated: shape (M, 2 classes); gradients flow here.
        generated_classes: shape (M,) int64, what was asked for.

    Returns:
        Scalar, shape (), in nats: the sum of both batch means.

    Raises:
        ShapeError: not one class per image.

    Source: Hou et al. 2022 (ADC-GAN), arXiv:2107.10060.
    """
    _check_classes(real, real_classes)
    _check_classes(generated, generated_classes)
    return F.cross_entropy(widened(real), 2 * real_classes) + F.cross_entropy(
        widened(generated), 2 * generated_classes + 1
    )


def adc_generator(generated: Tensor, generated_classes: Tensor) -> Tensor:
    """Return how far the classifier is from taking generated images for real ones of their class.

    Args:
        generated: shape (M, 2 classes); gradients flow here.
        generated_classes: shape (M,) int64, what was asked for.

    Returns:
        Scalar, shape (): cross entropy against 2 y less that against 2 y + 1; may be negative.

    Raises:
        ShapeError: not one class per image.

    Source: Hou et al. 2022 (ADC-GAN), arXiv:2107.10060.
    """
    _check_classes(generated, generated_classes)
    scores = widened(generated)
    # The normaliser of both cross entropies is the same, and cancels.
    as_real = scores.gather(1, 2 * generated_classes[:, None])
    as_generated = scores.gather(1, 2 * generated_classes[:, None] + 1)
    return (as_generated - as_real).mean()


class Integration(NamedTuple):
    """The two terms of feature integration, each a scalar.

    Attributes:
        transfer: each image's own teacher features against its own mapped ones.
        blend: the same crossed, the i-th real image with the i-th generated one.
    """

    transfer: Tensor
    blend: Tensor


def feature_integration(
    real_mapped: Tensor, real_teacher: Tensor, generated_mapped: Tensor, generated_teacher: Tensor
) -> Integration:
    """Return the distances of a discriminator's mapped features from the teacher's, batch means.

    Transfer gives the discriminator the teacher's representation; blending makes real and generated
    images harder to tell apart, so that it does not become sure of itself on a few images.

    Args:
        real_mapped: the map head's output for real images, shape (N, D); gradients flow here.
        real_teacher: the teacher's penultimate features of them, shape (N, D); detached.
        generated_mapped: for generated images, shape (N, D); gradients flow here.
        generated_teacher: shape (N, D); detached.

    Returns:
        Both terms: sums of two means of L2 norms (not squared).

    Raises:
        ShapeError: the four shapes differ.

    Source: Tang, Chen and Gong 2024, arXiv:2412.13525, equations 8 and 9.
    """
    for other in (real_teacher, generated_mapped, generated_teacher):
        check_same_shape(real_mapped, other)
    return Integration(
        transfer=_distance(real_teacher, real_mapped)
        + _distance(generated_teacher, generated_mapped),
        blend=_distance(real_teacher, generated_mapped) + _distance(generated_teacher, real_mapped),
    )


def _distance(teacher: Tensor, mapped: Tensor) -> Tensor:
    difference = widened(teacher.detach()) - widened(mapped)
    norms: Tensor = difference.norm(dim=1)
    return norms.mean()


def _check_classes(scores: Tensor, classes: Tensor) -> None:
    if scores.dim() != 2 or scores.shape[1] % 2 or classes.shape != scores.shape[:1]:
        raise ShapeError(
            f"scores {tuple(scores.shape)} and classes {tuple(classes.shape)}; expected "
            "(N, 2 classes) and (N,)"
        )
