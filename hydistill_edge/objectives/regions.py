"""Objectives that make a student look at the image regions its teacher looks at.

Source: Yu et al. 2023, "Data-Free Knowledge Distillation via Feature Exchange and Activation Region
Constraint", CVPR 2023 (multi-scale spatial activation region consistency).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.widening import widened


def class_activation_maps(final_map: Tensor, weight: Tensor) -> Tensor:
    """Return how much each place of the last map speaks for each class, without the bias.

    Args:
        final_map: shape (N, C, h, w); gradients flow here.
        weight: of the linear classifier, shape (classes, C); held constant.

    Returns:
        Shape (N, classes, h, w), float32; the mean over space is the logits less their bias.

    Raises:
        ShapeError: the channels differ.

    Source: Zhou et al. 2016, arXiv:1512.04150, section 2.
    """
    if final_map.dim() != 4 or weight.dim() != 2 or final_map.shape[1] != weight.shape[1]:
        raise ShapeError(
            f"map {tuple(final_map.shape)} and classifier weight {tuple(weight.shape)}; expected "
            "(N, C, h, w) and (classes, C)"
        )
    wide = widened(final_map)
    return F.conv2d(wide, weight.detach().to(wide.dtype)[:, :, None, None])


def grad_cam(logits: Tensor, features: Sequence[Tensor], *, classes: Tensor) -> list[Tensor]:
    """Return where each tapped stage holds what speaks for a class, without ReLU or scaling.

    A map is the sum over channels, each weighted with the mean over space of the logit's gradient.
    The weights are held constant; gradients flow through the features.

    Args:
        logits: shape (N, classes), computed from the features.
        features: per stage, shape (N, C, h, w), part of the logits' graph.
        classes: shape (N,) int64, the class looked at in each image.

    Returns:
        Per stage, shape (N, h, w), float32.

    Raises:
        ShapeError: not one class per image.

    Source: Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2, without the ReLU.
    """
    if classes.shape != logits.shape[:1]:
        raise ShapeError(
            f"classes {tuple(classes.shape)} for logits {tuple(logits.shape)}; expected one class "
            "per image, (N,)"
        )
    chosen = logits.gather(1, classes[:, None]).sum()
    gradients = torch.autograd.grad(chosen, list(features), retain_graph=True)
    return [
        (widened(gradient).mean(dim=(2, 3), keepdim=True) * widened(stage)).sum(dim=1)
        for gradient, stage in zip(gradients, features, strict=True)
    ]


def region_difference(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return the mean squared difference of two activation maps, the larger averaged down.

    Args:
        student_map: shape (N, ..., h, w); gradients flow here.
        teacher_map: shape (N, ..., H, W); detached.

    Returns:
        Scalar, shape (), computed in float32.

    Raises:
        ShapeError: the maps differ in more than height and width.
    """
    if student_map.dim() < 3 or student_map.shape[:-2] != teacher_map.shape[:-2]:
        raise ShapeError(
            f"activation maps {tuple(student_map.shape)} and {tuple(teacher_map.shape)}; expected "
            "the same images and classes, (N, ..., h, w)"
        )
    size = (
        min(student_map.shape[-2], teacher_map.shape[-2]),
        min(student_map.shape[-1], teacher_map.shape[-1]),
    )
    student = F.adaptive_avg_pool2d(widened(student_map), size)
    teacher = F.adaptive_avg_pool2d(widened(teacher_map.detach()), size)
    return (student - teacher).square().mean()


def region_consistency(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Return the sum over stages of `region_difference`.

    Args:
        student_maps: of `grad_cam`, per stage; gradients flow here.
        teacher_maps: of the same stages; detached.

    Returns:
        Scalar, shape ().

    Raises:
        ShapeError: not one map of each network per stage, or no stage.
    """
    if len(student_maps) != len(teacher_maps) or not student_maps:
        raise ShapeError(
            f"{len(student_maps)} student maps and {len(teacher_maps)} teacher maps; expected one "
            "of each per stage, and at least one stage"
        )
    pairs = zip(student_maps, teacher_maps, strict=True)
    return torch.stack([region_difference(*pair) for pair in pairs]).sum()
