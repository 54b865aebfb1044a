"""Objectives that align feature maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.alignment import (
    disagreement_weights,
    feature_alignment,
    weighted_alignment,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_alignment_is_the_mean_square_when_worked_by_hand() -> None:
    student = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 2)
    teacher = torch.tensor([1.0, 0.0, 3.0, 1.0]).view(1, 2, 1, 2)
    assert feature_alignment(student, teacher).item() == pytest.approx((4 + 9) / 4)


def test_alignment_is_zero_when_maps_are_equal() -> None:
    maps = random(3, 2, 4, 4)
    assert feature_alignment(maps, maps).item() == 0.0


def test_weights_are_the_sigmoid_of_the_distance() -> None:
    student = torch.tensor([[0.0, 0.0], [3.0, 4.0], [30.0, 40.0]])
    weights = disagreement_weights(student, torch.zeros(3, 2))
    wanted = [0.5, 1 / (1 + math.exp(-5)), 1.0]
    assert weights.tolist() == pytest.approx(wanted)


def test_weights_stay_within_a_half_and_one_without_gradient() -> None:
    student = (random(50, 4) * 10).requires_grad_()
    weights = disagreement_weights(student, random(50, 4, seed=1))
    assert weights.min() >= 0.5
    assert weights.max() <= 1.0
    assert not weights.requires_grad


def test_weighted_alignment_equals_a_loop_over_images() -> None:
    student, teacher, weights = random(3, 2, 4, 5), random(3, 2, 4, 5, seed=1), random(3, seed=2)
    wanted = np.mean(
        [
            weights[i].item() * np.square(student[i].numpy() - teacher[i].numpy()).mean()
            for i in range(3)
        ]
    )
    found = weighted_alignment(student, teacher, weights=weights)
    assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_equal_weights_scale_the_plain_alignment() -> None:
    student, teacher = random(3, 2, 4, 4), random(3, 2, 4, 4, seed=1)
    weighted = weighted_alignment(student, teacher, weights=torch.full((3,), 0.7))
    torch.testing.assert_close(weighted, 0.7 * feature_alignment(student, teacher))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_gradient_reaches_the_student_only(weighted: bool) -> None:
    student, teacher = random(2, 3, 2, 2).requires_grad_(), random(2, 3, 2, 2, seed=1)
    teacher.requires_grad_()
    weights = random(2, seed=2).abs().requires_grad_()
    if weighted:
        torch.autograd.backward(weighted_alignment(student, teacher, weights=weights))
    else:
        torch.autograd.backward(feature_alignment(student, teacher))
    assert student.grad is not None
    assert student.grad.abs().min() > 0
    assert teacher.grad is None
    assert weights.grad is None


def test_half_types_are_widened() -> None:
    student = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)
    assert feature_alignment(student, torch.zeros_like(student)).item() == 90_000.0


@pytest.mark.parametrize("weights", [(2, 1), (3,)], ids=["two-dimensions", "too-many"])
def test_weights_are_refused_when_there_is_not_one_per_image(weights: tuple[int, ...]) -> None:
    maps = random(2, 1, 2, 2)
    with pytest.raises(ShapeError, match="one per image"):
        weighted_alignment(maps, maps, weights=torch.ones(weights))


def test_maps_of_different_size_are_refused() -> None:
    with pytest.raises(ShapeError, match="differ in shape"):
        feature_alignment(random(2, 1, 2, 2), random(2, 1, 4, 4))
