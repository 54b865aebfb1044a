"""The prior on penultimate features that a classifier's weights imply."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.output_prior import output_prior

WEIGHT = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
SURE = torch.tensor([0.9, 0.9], dtype=torch.float64)
ONE_EACH = torch.eye(2, dtype=torch.float64)


def test_output_prior_is_zero_when_features_are_the_implied_ones() -> None:
    length = math.log(9.0) / 2 / 2  # centered logit ln(9) / 2 at a row of length 2
    features = torch.tensor([[length, 0.0], [-length, 0.0]], dtype=torch.float64)
    assert output_prior(features + 5.0, ONE_EACH, SURE, weight=WEIGHT).item() == pytest.approx(0.0)
    assert F.softmax(features @ WEIGHT.T, dim=1).diagonal().tolist() == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize(("factor", "cost"), [(0.0, 1.0), (2.0, 1.0), (3.0, 4.0)], ids=str)
def test_output_prior_grows_with_the_square_of_the_distance(factor: float, cost: float) -> None:
    length = factor * math.log(9.0) / 4
    features = torch.tensor([[length, 0.0], [-length, 0.0]], dtype=torch.float64)
    found = output_prior(features, ONE_EACH, SURE, weight=WEIGHT)
    assert found.item() == pytest.approx(cost)


def test_output_prior_pulls_features_towards_their_class() -> None:
    features = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(output_prior(features, ONE_EACH, SURE, weight=WEIGHT))
    assert features.grad is not None
    assert features.grad[0, 0] < 0 < features.grad[1, 0]
    assert features.grad[:, 1].abs().max() == 0


def test_output_prior_wants_equal_mixtures_in_the_middle() -> None:
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    length = math.log(9.0) / 4
    features = torch.tensor([[length, 1.0], [-length, 1.0], [0.0, 1.0]], dtype=torch.float64)
    sure = torch.full((3,), 0.9, dtype=torch.float64)
    assert output_prior(features, wanted, sure, weight=WEIGHT).item() == pytest.approx(0.0)


def test_output_prior_does_not_change_when_units_of_the_features_do() -> None:
    generator = torch.Generator().manual_seed(0)
    features, weight = (
        torch.randn(6, 4, generator=generator),
        torch.randn(3, 4, generator=generator),
    )
    wanted = F.one_hot(torch.arange(6) % 3, 3).float()
    sure = torch.full((6,), 0.95)
    plain = output_prior(features, wanted, sure, weight=weight)
    scaled = output_prior(features * 10, wanted, sure, weight=weight / 10)
    torch.testing.assert_close(plain, scaled)


def test_output_prior_is_refused_when_shapes_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3\).*expected \(N, D\)"):
        output_prior(torch.zeros(2, 3), ONE_EACH, SURE, weight=WEIGHT)
