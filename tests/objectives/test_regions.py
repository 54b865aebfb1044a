"""Objectives on the image regions that networks look at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.regions import (
    class_activation_maps,
    grad_cam,
    region_consistency,
    region_difference,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_activation_maps_average_to_the_logits_without_bias() -> None:
    final_map, weight = random(2, 5, 3, 4), random(3, 5, seed=1)
    maps = class_activation_maps(final_map, weight)
    assert maps.shape == (2, 3, 3, 4)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), final_map.mean(dim=(2, 3)) @ weight.T)


def test_activation_maps_have_a_gradient_in_the_features_only() -> None:
    final_map, weight = random(1, 5, 2, 2).requires_grad_(), random(3, 5, seed=1).requires_grad_()
    torch.autograd.backward(class_activation_maps(final_map, weight).sum())
    assert final_map.grad is not None
    assert final_map.grad.abs().min() > 0
    assert weight.grad is None


def test_grad_cam_weighs_channels_with_the_logits_slope() -> None:
    features = random(2, 3, 2, 2).requires_grad_()
    weight = torch.tensor([[1.0, 2.0, -3.0], [4.0, 0.0, 1.0]], dtype=torch.float64)
    logits = features.mean(dim=(2, 3)) @ weight.T
    (found,) = grad_cam(logits, [features], classes=torch.tensor([0, 1]))
    # The slope of a mean over 4 pixels is a quarter of the weight, at every pixel.
    plain = features.detach().numpy()
    wanted = np.stack([np.tensordot(weight.numpy()[i] / 4, plain[i], axes=1) for i in (0, 1)])
    np.testing.assert_allclose(found.detach().numpy(), wanted)


def test_grad_cam_holds_its_weights_constant() -> None:
    features = random(1, 2, 1, 1).requires_grad_()
    logits = torch.stack([features.square().sum(), features.sum()])[None]
    (found,) = grad_cam(logits, [features], classes=torch.tensor([0]))
    torch.autograd.backward(found.sum())
    # d/dF of a * F with a = 2 F held constant is 2 F, not 4 F.
    assert features.grad is not None
    torch.testing.assert_close(features.grad, 2 * features.detach())


def test_difference_averages_the_larger_map_down() -> None:
    student = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(1, 2, 2)
    assert region_difference(student, torch.ones(1, 1, 1)).item() == pytest.approx(9.0)
    assert region_difference(torch.ones(1, 1, 1), student).item() == pytest.approx(9.0)


def test_consistency_is_the_sum_over_stages() -> None:
    pairs = [(random(2, 4, 4), random(2, 4, 4, seed=1)), (random(2, 2, 2), random(2, 2, 2, seed=2))]
    wanted = sum(np.square(a.numpy() - b.numpy()).mean() for a, b in pairs)
    students, teachers = zip(*pairs, strict=True)
    assert region_consistency(students, teachers).item() == pytest.approx(wanted)


def test_consistency_has_a_gradient_in_the_student_only() -> None:
    student, teacher = random(2, 4, 4).requires_grad_(), random(2, 2, 2, seed=1).requires_grad_()
    torch.autograd.backward(region_consistency([student], [teacher]))
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_unfitting_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="classifier weight"):
        class_activation_maps(random(1, 4, 2, 2), random(3, 5))
    with pytest.raises(ShapeError, match="one class per image"):
        grad_cam(random(2, 3), [], classes=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="same images"):
        region_difference(random(2, 2, 2), random(3, 2, 2))
    with pytest.raises(ShapeError, match="at least one stage"):
        region_consistency([], [])
