"""The hint at every factored layer: by hand, its gradients, and whom it is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError
from hydistill_edge.models import layer_hint
from hydistill_edge.models.factoring import factor
from hydistill_edge.models.layer_hint import LayerHint
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.seeding import seeded

SPEC = InputSpec(height=8, width=8, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
CLASSES = ("a", "b", "c")


class Network(nn.Module):
    """One convolution that the next layer writes over, and one linear layer of many tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 16, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.mix = nn.Linear(16, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.wide(self.stem(images)))
        tokens = self.mix(maps.flatten(2).transpose(1, 2))
        logits: Tensor = self.last(tokens.mean(dim=1))
        return logits


@pytest.fixture
def teacher() -> Teacher:
    with seeded(0):
        return Teacher(Network().eval(), classes=CLASSES, spec=SPEC, architecture="wrapped")


@pytest.fixture
def student(teacher: Teacher) -> Student:
    return factor(teacher, macs_share=0.6)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_loss_by_hand(teacher: Teacher, student: Student, images: Tensor) -> None:
    hint = LayerHint(student, teacher, images)
    assert hint.teacher_layers == ["wide", "mix"]
    seen = teacher.features(images, hint.teacher_layers).taps
    own = {name: value.clone() for name, value in seen.items()}
    own["wide"][:, 3] += 0.5  # one channel of the map, and one of the tokens
    own["mix"][..., 5] -= 2.0
    variance = {
        "wide": seen["wide"].transpose(0, 1).flatten(1).var(dim=1, correction=0),
        "mix": seen["mix"].flatten(0, 1).var(dim=0, correction=0),
    }
    expected = (0.25 / variance["wide"][3] / 16 + 4.0 / variance["mix"][5] / 16) / 2
    torch.testing.assert_close(hint.loss(own, seen), expected)


def test_a_layer_is_read_before_the_next_one_writes_over_it(
    teacher: Teacher, student: Student, images: Tensor
) -> None:
    hint = LayerHint(student, teacher, images)
    assert float(teacher.features(images, hint.teacher_layers).taps["wide"].min()) < 0
    assert float(student.features(images, hint.student_layers).taps["wide"].detach().min()) < 0


def test_every_factor_gets_a_gradient_and_the_teacher_none(
    teacher: Teacher, student: Student, images: Tensor
) -> None:
    hint = LayerHint(student, teacher, images)
    seen = teacher.features(images, hint.teacher_layers).taps
    torch.autograd.backward(hint.loss(student.features(images, hint.student_layers).taps, seen))
    gradients = {name: weight.grad for name, weight in student.network.named_parameters()}
    for name, gradient in gradients.items():
        if name.startswith("last"):
            assert gradient is None
        else:
            assert gradient is not None
            assert float(gradient.abs().max()) > 0, name
    assert all(weight.grad is None for weight in teacher.parameters())


def test_it_is_nothing_where_all_layers_give_the_same(
    teacher: Teacher, student: Student, images: Tensor
) -> None:
    hint = LayerHint(student, teacher, images)
    seen = teacher.features(images, hint.teacher_layers).taps
    assert float(hint.loss(seen, seen)) == 0.0


def test_a_channel_that_hardly_moves_does_not_lead(
    teacher: Teacher, student: Student, images: Tensor
) -> None:
    with torch.no_grad():
        teacher.network.get_submodule("mix").weight[2] = 0.0  # type: ignore[index]
    hint = LayerHint(student, teacher, images)
    seen = teacher.features(images, hint.teacher_layers).taps
    own = {**seen, "mix": seen["mix"].clone()}
    own["mix"][..., 2] += 0.01
    assert 0 < float(hint.loss(own, seen)) < 1


def test_a_student_that_is_not_factored_is_refused(teacher: Teacher, images: Tensor) -> None:
    student = Student.create("convnet3", classes=CLASSES, channels=3, size=(8, 8))
    with pytest.raises(MethodError, match=r"convnet3.*leave layer_weight out"):
        LayerHint(student, teacher, images)


def test_few_of_many_large_images_give_the_scale(
    teacher: Teacher, student: Student, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_hint, "PIXELS", 9 * 8 * 8)
    many, few = LayerHint(student, teacher, images), LayerHint(student, teacher, images[:9])
    seen = teacher.features(images, many.teacher_layers).taps
    own = student.features(images, many.student_layers).taps
    torch.testing.assert_close(many.loss(own, seen), few.loss(own, seen), rtol=0, atol=0)
