"""Objectives of the GAN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.gan_losses import (
    adc_discriminator,
    adc_generator,
    feature_integration,
    hinge_discriminator,
    hinge_generator,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hinge_is_right_when_worked_by_hand() -> None:
    real, generated = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert hinge_discriminator(real, generated).item() == pytest.approx(0.25 + 0.5)
    assert hinge_generator(generated).item() == pytest.approx(1.5)


def nll(scores: NDArray[np.float64], places: list[int]) -> float:
    log_sum = np.log(np.exp(scores).sum(axis=1))
    return float((log_sum - scores[np.arange(len(scores)), places]).mean())


def test_classifier_of_real_and_generated_equals_numpy() -> None:
    real, generated = random(3, 6), random(3, 6, seed=1)
    real_classes, asked = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 0])
    found = adc_discriminator(real, real_classes, generated, asked).item()
    wanted = nll(real.numpy(), [0, 4, 2]) + nll(generated.numpy(), [3, 3, 1])
    assert found == pytest.approx(wanted)


def test_generators_term_is_the_difference_of_two_cross_entropies() -> None:
    generated, asked = random(3, 6), torch.tensor([1, 1, 0])
    wanted = nll(generated.numpy(), [2, 2, 0]) - nll(generated.numpy(), [3, 3, 1])
    assert adc_generator(generated, asked).item() == pytest.approx(wanted)


def test_integration_is_right_when_worked_by_hand() -> None:
    d_real, t_real = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    d_made, t_made = torch.tensor([[6.0, 8.0]]), torch.tensor([[0.0, 8.0]])
    found = feature_integration(d_real, t_real, d_made, t_made)
    assert found.transfer.item() == pytest.approx(5.0 + 6.0)
    assert found.blend.item() == pytest.approx(10.0 + 5.0)


def test_integration_is_zero_only_where_all_features_agree() -> None:
    same = random(4, 3)
    found = feature_integration(same, same, same, same)
    assert (found.transfer.item(), found.blend.item()) == (0.0, 0.0)


@pytest.mark.parametrize("term", [0, 1], ids=["transfer", "blend"])
def test_integration_has_a_gradient_in_the_mapped_features_and_none_in_the_teachers(
    term: int,
) -> None:
    tensors = [random(4, 3, seed=seed).requires_grad_() for seed in range(4)]
    torch.autograd.backward(feature_integration(*tensors)[term])
    for mapped in (tensors[0], tensors[2]):
        assert mapped.grad is not None
        assert mapped.grad.abs().min() > 0
    assert tensors[1].grad is None
    assert tensors[3].grad is None


def test_gradients_flow_through_every_score() -> None:
    real, generated = random(3, 6).requires_grad_(), random(3, 6, seed=1).requires_grad_()
    classes = torch.tensor([0, 1, 2])
    assert torch.autograd.gradcheck(
        lambda a, b: adc_discriminator(a, classes, b, classes), (real, generated)
    )
    assert torch.autograd.gradcheck(lambda b: adc_generator(b, classes), (generated,))


def test_unfitting_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="2 classes"):
        adc_generator(random(3, 5), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="differ in shape"):
        feature_integration(random(3, 5), random(3, 4), random(3, 5), random(3, 5))
