"""Smoothness priors, shifts and the spread of a class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.diversity import same_class_similarity
from hydistill_edge.objectives.image_priors import (
    circular_shift,
    distance_to_mean,
    total_variation,
)

MEAN = torch.tensor([0.5, 0.25])
CLASSES = torch.tensor([0, 1, 0, 1, 0])


def pixels(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_total_variation_equals_hand_computation() -> None:
    image = torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 0.5, 1.0]]]])
    vertical, horizontal = 0.25 / 3, (1 + 0 + 0.25 + 0.25) / 4
    assert total_variation(image).item() == pytest.approx(vertical + horizontal)


def test_total_variation_matches_numpy() -> None:
    batch = pixels(2, 3, 4, 5)
    rows, columns = np.diff(batch.numpy(), axis=2), np.diff(batch.numpy(), axis=3)
    expected = np.square(rows).mean() + np.square(columns).mean()
    assert total_variation(batch).item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 1, 1, 4), (2, 1, 4, 1)], ids=str)
def test_total_variation_is_finite_when_a_side_is_one_pixel(shape: tuple[int, ...]) -> None:
    assert total_variation(pixels(*shape)).isfinite()


def test_total_variation_is_zero_for_flat_images() -> None:
    assert total_variation(torch.full((2, 3, 4, 4), 0.7)).item() == 0.0


def test_distance_to_mean_equals_hand_computation() -> None:
    image = torch.tensor([0.5, 0.75]).view(1, 2, 1, 1)
    assert distance_to_mean(image, mean=MEAN).item() == pytest.approx(0.25 / 2)


def test_shift_wraps_around_and_keeps_the_pixels() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3)
    shifted = circular_shift(image, rows=1, columns=-1)
    assert shifted.flatten().tolist() == [4.0, 5.0, 3.0, 1.0, 2.0, 0.0]


def test_similarity_equals_hand_computation() -> None:
    # Class 0 centers to (±1, 0): cosine -1, nothing to pay. Class 1 has one image.
    features = torch.tensor([[2.0, 5.0], [0.0, 5.0], [3.0, 3.0]])
    classes = torch.tensor([0, 0, 1])
    assert same_class_similarity(features, classes).item() == 0.0


def test_similarity_is_higher_when_images_of_a_class_are_alike() -> None:
    classes = torch.zeros(4, dtype=torch.int64)
    spread = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    paired = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    assert same_class_similarity(paired, classes) > same_class_similarity(spread, classes) + 0.1


def test_similarity_is_zero_when_every_class_has_one_image() -> None:
    assert same_class_similarity(pixels(3, 4), torch.tensor([0, 1, 2])).item() == 0.0


@pytest.mark.parametrize(
    ("term", "shape"),
    [
        (total_variation, (2, 2, 3, 3)),
        (lambda x: distance_to_mean(x, mean=MEAN), (2, 2, 3, 3)),
        (lambda x: same_class_similarity(x, CLASSES), (5, 3)),
        (lambda x: circular_shift(x, rows=1, columns=2).square().sum(), (1, 2, 3, 3)),
    ],
    ids=["total_variation", "distance_to_mean", "same_class_similarity", "circular_shift"],
)
def test_gradient_is_exact_and_not_zero(
    term: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    batch = pixels(*shape).requires_grad_()
    assert torch.autograd.gradcheck(term, (batch,))
    (grad,) = torch.autograd.grad(term(batch), batch)
    assert grad.abs().sum() > 1e-3


def test_terms_ignore_batch_order() -> None:
    batch, features = pixels(4, 2, 3, 3), pixels(5, 3)
    assert total_variation(batch.flip(0)).item() == pytest.approx(total_variation(batch).item())
    assert same_class_similarity(features.flip(0), CLASSES.flip(0)).item() == pytest.approx(
        same_class_similarity(features, CLASSES).item()
    )


def test_priors_are_refused_when_pixels_are_uint8() -> None:
    with pytest.raises(ShapeError, match="uint8"):
        total_variation(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


def test_distance_to_mean_is_refused_when_channels_differ() -> None:
    with pytest.raises(ShapeError, match=r"\(2,\).*\(3,\)"):
        distance_to_mean(pixels(1, 3, 2, 2), mean=MEAN)


def test_similarity_is_refused_when_counts_differ() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 3\)"):
        same_class_similarity(pixels(4, 3), CLASSES)
