"""Distillation by softened probabilities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.logits import agreement, kd_kl, kd_kl_mixed, soft_cross_entropy

STUDENT = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
TEACHER = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.5, 1.0]])
PARTNER = TEACHER.flip(0)
SHARES = torch.tensor([0.4, 0.9], dtype=torch.float64)
SINGLE = 3e-4  # float32: at T = 30 the divergence is a difference of nearly equal logarithms


def softmax(logits: Tensor, temperature: float) -> NDArray[np.float64]:
    scaled = logits.double().numpy() / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))


def random_logits(seed: int, rows: int = 5, classes: int = 4) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 3


def test_kd_kl_equals_hand_computation_for_two_classes() -> None:
    # Teacher p = (3/4, 1/4), student p = (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2).
    teacher = torch.tensor([[float(np.log(3.0)), 0.0]])
    loss = kd_kl(torch.zeros(1, 2), teacher, temperature=1.0)
    assert loss.item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 30.0])
def test_kd_kl_matches_numpy_when_temperature_varies(temperature: float) -> None:
    p, q = softmax(STUDENT, temperature), softmax(TEACHER, temperature)
    expected = temperature**2 * (q * np.log(q / p)).sum(axis=1).mean()
    assert kd_kl(STUDENT, TEACHER, temperature=temperature).item() == pytest.approx(
        expected, rel=SINGLE
    )


@pytest.mark.parametrize("shares", [(0.0, 1.0), (0.3, 0.9)], ids=str)
def test_kd_kl_mixed_matches_numpy_when_share_varies(shares: tuple[float, float]) -> None:
    p, share = softmax(STUDENT, 4.0), np.array(shares)[:, None]
    q = share * softmax(TEACHER, 4.0) + (1 - share) * softmax(PARTNER, 4.0)
    expected = 16.0 * (q * np.log(q / p)).sum(axis=1).mean()
    assert kd_kl_mixed(
        STUDENT, TEACHER, PARTNER, share=torch.tensor(shares)
    ).item() == pytest.approx(expected, rel=SINGLE)


def test_soft_cross_entropy_matches_numpy() -> None:
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    expected = -(targets.double().numpy() * np.log(softmax(STUDENT, 1.0))).sum(axis=1).mean()
    assert soft_cross_entropy(STUDENT, targets).item() == pytest.approx(expected, rel=1e-6)


def test_agreement_counts_equal_first_classes() -> None:
    assert agreement(STUDENT, TEACHER).item() == 0.5


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: kd_kl(s, TEACHER.double()),
        lambda s: kd_kl_mixed(s, TEACHER.double(), PARTNER.double(), share=SHARES),
        lambda s: soft_cross_entropy(s, torch.full((2, 3), 1 / 3, dtype=torch.float64)),
    ],
    ids=["kd_kl", "kd_kl_mixed", "soft_cross_entropy"],
)
def test_gradient_is_exact_and_not_zero(loss: Callable[[Tensor], Tensor]) -> None:
    student = STUDENT.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (student,))
    (grad,) = torch.autograd.grad(loss(student), student)
    assert grad.abs().sum() > 1e-3


def test_teacher_gets_no_gradient() -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    torch.autograd.backward(kd_kl(student, teacher))
    assert teacher.grad is None


def test_kd_kl_gradient_size_stays_when_temperature_grows() -> None:
    sizes = []
    for temperature in (10.0, 100.0):
        student = STUDENT.clone().requires_grad_()
        torch.autograd.backward(kd_kl(student, TEACHER, temperature=temperature))
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), shift=st.floats(-5, 5))
def test_kd_kl_is_zero_when_logits_differ_by_a_constant(seed: int, shift: float) -> None:
    logits = random_logits(seed)
    assert kd_kl(logits + shift, logits).item() == pytest.approx(0.0, abs=1e-4)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_kd_kl_ignores_batch_order_and_is_positive(seed: int) -> None:
    student, teacher = random_logits(seed), random_logits(seed + 1)
    loss = kd_kl(student, teacher).item()
    assert loss > 0
    assert kd_kl(student.flip(0), teacher.flip(0)).item() == pytest.approx(loss, rel=1e-5)


def test_kd_kl_is_computed_wide_when_logits_are_bfloat16() -> None:
    student, teacher = STUDENT.bfloat16(), TEACHER.bfloat16()
    loss = kd_kl(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(kd_kl(student.float(), teacher.float()).item())


@pytest.mark.parametrize("loss", [kd_kl, soft_cross_entropy, agreement])
def test_loss_is_refused_when_shapes_differ(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(3, 3\)"):
        loss(torch.zeros(2, 3), torch.zeros(3, 3))


def test_agreement_is_refused_when_there_is_no_image() -> None:
    with pytest.raises(ShapeError, match="at least 1"):
        agreement(torch.zeros(0, 3), torch.zeros(0, 3))
