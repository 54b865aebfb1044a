"""What each image shall be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hydistill_edge.synthesis.class_prior import NO_CLASS, Asked, ask, class_surprise


def asked(boundary: float, seed: int = 0) -> Asked:
    return ask(
        np.arange(40) % 4,
        classes=4,
        boundary=boundary,
        confidence=(0.8, 0.9),
        choice=np.random.default_rng(seed),
        mixing=np.random.default_rng([seed, 1]),
    )


def test_every_image_has_one_class_when_none_is_on_a_boundary() -> None:
    plain = asked(0.0)
    np.testing.assert_array_equal(plain.distributions(4), np.eye(4)[plain.first])
    assert (plain.second == NO_CLASS).all()


@pytest.mark.parametrize("boundary", [0.1, 0.25, 1.0], ids=str)
def test_boundary_images_have_two_classes_and_the_first_leads(boundary: float) -> None:
    mixed = asked(boundary)
    found = mixed.distributions(4)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert ((found > 0).sum(axis=1) == 2).sum() == 40 * boundary
    np.testing.assert_array_equal(found.argmax(axis=1), mixed.first)


def test_confidences_stay_when_boundary_images_are_added() -> None:
    np.testing.assert_array_equal(asked(0.0).confidence, asked(0.5).confidence)


def test_either_class_is_a_hit_when_an_image_is_on_a_boundary() -> None:
    pair = Asked(np.array([0, 0]), np.array([1, NO_CLASS]), np.array([0.5, 1]), np.ones(2))
    assert pair.hits(np.array([1, 1])).tolist() == [True, False]


def test_class_surprise_is_cross_entropy_beyond_patience_when_one_class_is_wanted() -> None:
    logits, wanted = torch.zeros(1, 4), torch.eye(4)[:1]
    found = class_surprise(logits, wanted, torch.tensor([0.5]))
    assert found.item() == pytest.approx(math.log(4) - 0.5)


def test_class_surprise_is_zero_when_the_mixture_is_met() -> None:
    wanted = torch.tensor([[0.6, 0.4]])
    logits = wanted.log().requires_grad_()
    assert class_surprise(logits, wanted, torch.zeros(1)).item() == pytest.approx(0.0, abs=1e-6)


def test_class_surprise_has_a_gradient_when_the_network_is_too_sure() -> None:
    logits = torch.tensor([[4.0, 0.0]], requires_grad=True)
    wanted = torch.tensor([[0.5, 0.5]])
    torch.autograd.backward(class_surprise(logits, wanted, torch.tensor([0.01])))
    assert logits.grad is not None
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]
