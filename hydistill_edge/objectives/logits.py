"""Objectives on logits: distillation by softened probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.shapes import check_same_shape
from hydistill_edge.objectives.widening import widened


def kd_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened class probabilities, batch mean.

    Args:
        student_logits: shape (N, C), any float dtype; gradients flow here.
        teacher_logits: shape (N, C); detached.
        temperature: softening T > 0; the factor T² keeps gradient size comparable across T.

    Returns:
        Scalar, shape (), in nats, computed in float32; zero when the distributions agree.

    Raises:
        ShapeError: the two shapes differ.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    check_same_shape(student_logits, teacher_logits)
    log_p = F.log_softmax(widened(student_logits) / temperature, dim=-1)
    log_q = F.log_softmax(widened(teacher_logits.detach()) / temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def kd_kl_mixed(
    student_logits: Tensor,
    teacher_logits: Tensor,
    partner_logits: Tensor,
    *,
    share: Tensor,
    temperature: float = 4.0,
) -> Tensor:
    """Return `kd_kl` towards a mixture of two teacher distributions, batch mean.

    For MixUp with stored logits: the student sees `share · a + (1 - share) · b`, the teacher has
    answered for `a` and `b` only, so its softened probabilities are mixed like the pixels.

    Args:
        student_logits: shape (N, C), of the mixed images; gradients flow here.
        teacher_logits: shape (N, C), of the images `a`; detached.
        partner_logits: shape (N, C), of the images `b`; detached.
        share: shape (N,), weight of `a` in each image, in [0, 1].
        temperature: softening T > 0.

    Returns:
        Scalar, shape (), in nats, computed in float32; zero when the student answers with the
        mixture.

    Raises:
        ShapeError: the shapes differ.

    Source: Zhang et al. 2018, arXiv:1710.09412, section 2 (labels mixed like inputs).
    """
    check_same_shape(student_logits, teacher_logits)
    check_same_shape(student_logits, partner_logits)
    check_same_shape(student_logits[:, 0], share)
    log_p = F.log_softmax(widened(student_logits) / temperature, dim=-1)
    target = torch.lerp(
        F.softmax(widened(partner_logits.detach()) / temperature, dim=-1),
        F.softmax(widened(teacher_logits.detach()) / temperature, dim=-1),
        share[:, None],
    )
    return F.kl_div(log_p, target, reduction="batchmean") * temperature**2


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the cross entropy of the logits against soft targets, batch mean.

    Args:
        logits: shape (N, C), any float dtype; gradients flow here.
        probabilities: shape (N, C), rows that sum to 1; detached.

    Returns:
        Scalar, shape (), in nats, computed in float32; at least the mean entropy of the targets.

    Raises:
        ShapeError: the two shapes differ.
    """
    check_same_shape(logits, probabilities)
    log_p = F.log_softmax(widened(logits), dim=-1)
    return -(widened(probabilities.detach()) * log_p).sum(dim=-1).mean()


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the share of images on which both name the same class first.

    Args:
        student_logits: shape (N, C), N at least 1.
        teacher_logits: shape (N, C).

    Returns:
        Scalar, shape (), float32 in [0, 1]; no gradient.

    Raises:
        ShapeError: the two shapes differ, or there is no image.
    """
    check_same_shape(student_logits, teacher_logits)
    if len(student_logits) == 0:
        raise ShapeError("agreement of no images is undefined; expected at least 1")
    same = student_logits.detach().argmax(dim=-1) == teacher_logits.detach().argmax(dim=-1)
    return same.float().mean()
