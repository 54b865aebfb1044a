"""The term against frequent and missing classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.objectives.frequency import (
    START_COUNT,
    category_weights,
    refreshed_counts,
    weighted_negative_entropy,
)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def one_against_nine(first: float, others: float) -> Tensor:
    return torch.tensor([first] + [others] * 9, dtype=torch.float64)


@pytest.mark.parametrize(
    ("first", "others", "wanted"),
    [(10, 100, (4.24, 0.64)), (500, 1000, (1.006, 0.999))],
    ids=["short-window", "long-window"],
)
def test_weights_are_those_of_the_published_table(
    first: float, others: float, wanted: tuple[float, float]
) -> None:
    weights = category_weights(one_against_nine(first, others))
    assert weights[0].item() == pytest.approx(wanted[0], abs=0.005)
    assert weights[1].item() == pytest.approx(wanted[1], abs=0.005)


@pytest.mark.parametrize("weighting", ["effective", "inverse"])
def test_weights_sum_to_the_number_of_classes(weighting: str) -> None:
    weights = category_weights(one_against_nine(3, 70), weighting=weighting)  # type: ignore[arg-type]
    assert weights.sum().item() == pytest.approx(10.0)


def test_weights_are_one_before_the_first_refresh() -> None:
    torch.testing.assert_close(category_weights(torch.full((4,), START_COUNT)), torch.ones(4))


def test_inverse_weights_keep_their_contrast_at_any_count() -> None:
    few = category_weights(one_against_nine(10, 100), weighting="inverse")
    many = category_weights(one_against_nine(1000, 10_000), weighting="inverse")
    torch.testing.assert_close(few, many)


def test_counts_forget_half_and_stay_at_one_or_more() -> None:
    found = refreshed_counts(torch.tensor([50.0, 1.0]), torch.tensor([30.0, 0.0]))
    assert found.tolist() == [40.0, 1.0]


def test_term_equals_numpy() -> None:
    logits, weights = random(5, 3), torch.tensor([0.5, 2.0, 0.5], dtype=torch.float64)
    exponentials = np.exp(logits.numpy())
    mean = (exponentials / exponentials.sum(axis=1, keepdims=True)).mean(axis=0)
    wanted = (weights.numpy() * mean * np.log(mean)).sum()
    assert weighted_negative_entropy(logits, weights=weights).item() == pytest.approx(wanted)


def test_term_is_lowest_when_classes_are_equally_frequent() -> None:
    even = weighted_negative_entropy(torch.eye(4) * 50, weights=torch.ones(4)).item()
    assert even == pytest.approx(-math.log(4))
    assert weighted_negative_entropy(random(4, 4) * 3, weights=torch.ones(4)).item() > even


def test_term_and_gradient_are_finite_when_a_class_never_comes() -> None:
    logits = torch.tensor([[0.0, -200.0]] * 3).requires_grad_()
    loss = weighted_negative_entropy(logits, weights=torch.ones(2))
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_gradient_flows_through_the_teachers_answer() -> None:
    logits = random(5, 3).requires_grad_()
    torch.autograd.backward(weighted_negative_entropy(logits, weights=torch.ones(3)))
    assert logits.grad is not None
    assert logits.grad.abs().min() > 0


def test_unfitting_inputs_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected"):
        weighted_negative_entropy(random(5, 3), weights=torch.ones(2))
    with pytest.raises(UsageError, match="beta is 1"):
        category_weights(torch.ones(2), beta=1.0)
    with pytest.raises(UsageError, match="unknown"):
        category_weights(torch.ones(2), weighting="square")  # type: ignore[arg-type]
