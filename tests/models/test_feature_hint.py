"""The hint on the penultimate vector: by hand, its gradients, and where it ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydistill_edge.models.feature_hint import FeatureHint
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher

CLASSES = ("a", "b", "c")


def network(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    ).eval()


@pytest.fixture
def teacher() -> Teacher:
    return Teacher.wrap(network(5), classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))


@pytest.fixture
def student() -> Student:
    return Student(network(3), architecture="", classes=CLASSES, channels=1, size=(8, 8))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_loss_by_hand(teacher: Teacher, student: Student, images: torch.Tensor) -> None:
    hint = FeatureHint(student, teacher, images)
    seen = teacher.features(images).penultimate
    torch.testing.assert_close(hint.scale, seen.std(dim=0, correction=0).mean())
    with torch.no_grad():
        hint.map.weight.zero_()
        hint.map.bias.zero_()
    own = torch.ones(2, 3)
    theirs = torch.tensor([[1.0, 0, 0, 0, 0], [0, 2.0, 0, 0, 0]])
    expected = (1 + 4) / 10 / hint.scale.square()
    torch.testing.assert_close(hint.loss(own, theirs), expected)


def test_it_starts_at_the_teachers_mean(
    teacher: Teacher, student: Student, images: torch.Tensor
) -> None:
    hint = FeatureHint(student, teacher, images)
    torch.testing.assert_close(hint.map.bias, teacher.features(images).penultimate.mean(dim=0))


def test_gradients_reach_student_and_map_and_not_the_teacher(
    teacher: Teacher, student: Student, images: torch.Tensor
) -> None:
    hint = FeatureHint(student, teacher, images)
    theirs = teacher.features(images).penultimate.requires_grad_()
    hint.loss(student.features(images).penultimate, theirs).backward()
    assert theirs.grad is None
    for weights in (*hint.parameters(), next(student.parameters())):
        assert weights.grad is not None
        assert weights.grad.abs().sum() > 0
    # The classifier comes after the vector.
    assert list(student.parameters())[-1].grad is None


def test_a_vector_that_says_what_the_teachers_says_ends_it(
    teacher: Teacher, images: torch.Tensor
) -> None:
    twin = Student(network(5), architecture="", classes=CLASSES, channels=1, size=(8, 8))
    hint = FeatureHint(twin, teacher, images)
    with torch.no_grad():
        hint.map.weight.copy_(torch.eye(5))
        hint.map.bias.zero_()
    vector = teacher.features(images).penultimate
    assert hint.loss(vector, vector).item() == pytest.approx(0, abs=1e-10)


def test_the_seed_gives_the_map_and_batch_norms_stay(
    teacher: Teacher, student: Student, images: torch.Tensor
) -> None:
    before = student.digest
    first, again, other = (FeatureHint(student, teacher, images, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.map.weight, again.map.weight)
    assert not torch.equal(first.map.weight, other.map.weight)
    assert student.digest == before
