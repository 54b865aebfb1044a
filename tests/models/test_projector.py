"""Students that answer through their teacher's classifier."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.counting import count
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.projected import StudentParts, is_projected, project, projected_network
from hydistill_edge.models.projector import Projector, ProjectorForm, match_maps, pool_to
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.targets.graph import export_student

CLASSES = ("ok", "scratch", "dent", "stain")
SPEC = InputSpec(16, 16, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def teacher_of(map_side: int = 4, *, bias: bool = True, signed: bool = False) -> Teacher:
    torch.manual_seed(0)
    layers = [
        nn.AvgPool2d(16 // map_side),
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.Identity() if signed else nn.ReLU(),
    ]
    network = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4, bias=bias)
    )
    return Teacher.wrap(network, classes=CLASSES, spec=SPEC)


def student_of(name: str = "resnet8", size: int = 16) -> Student:
    return Student.create(name, classes=CLASSES, channels=3, size=(size, size), width=0.5, seed=1)


def settled(student: Student) -> Student:
    """Give the norms statistics that are not those of the start."""
    torch.manual_seed(3)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return student.eval()


def pixels(count: int = 3, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).byte()


def test_projector_has_the_published_size_when_512_channels_meet_512() -> None:
    projector = Projector(512, 512)
    sizes = {True: 0, False: 0}
    for parameter in projector.parameters():
        sizes[parameter.dim() > 1] += parameter.numel()
    assert sizes == {True: 851_968, False: 2_048}


@pytest.mark.parametrize(
    ("form", "weights"),
    [
        (ProjectorForm(), 8 * 6 + 6 * 6 * 9 + 6 * 12 + 2 * 24),
        (ProjectorForm(factor=4), 8 * 3 + 3 * 3 * 9 + 3 * 12 + 2 * 18),
        (ProjectorForm(kind="depthwise"), 8 * 6 + 6 * 9 + 6 * 12 + 2 * 24),
        (ProjectorForm(kind="pointwise"), 8 * 12 + 2 * 12),
    ],
    ids=["published", "factor-4", "depthwise", "pointwise"],
)
def test_lighter_projector_has_fewer_weights(form: ProjectorForm, weights: int) -> None:
    projector = Projector(8, 12, form=form)
    assert sum(parameter.numel() for parameter in projector.parameters()) == weights
    assert projector(torch.rand(2, 8, 5, 3)).shape == (2, 12, 5, 3)


@pytest.mark.parametrize("values", [{"factor": 0}, {"kind": "heavy"}], ids=["factor", "kind"])
def test_projector_form_is_refused_when_out_of_range(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        ProjectorForm(**values)  # type: ignore[arg-type]


def test_larger_map_is_averaged_to_the_smaller_one() -> None:
    student_map = torch.arange(16.0).view(1, 1, 4, 4)
    small, same = match_maps(student_map, torch.zeros(1, 2, 2, 2))
    assert small.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert same.shape == (1, 2, 2, 2)
    unchanged, pooled = match_maps(student_map, torch.ones(1, 2, 8, 8))
    assert unchanged is student_map
    assert pooled.shape == (1, 2, 4, 4)


def test_pooling_equals_adaptive_pooling_when_sides_do_not_divide() -> None:
    features = torch.rand(1, 2, 7, 6)
    wanted = nn.functional.adaptive_avg_pool2d(features, (3, 4))
    torch.testing.assert_close(pool_to(features, (3, 4)), wanted)


@pytest.mark.parametrize("map_side", [2, 4, 16], ids=["student-larger", "equal", "teacher-larger"])
def test_logits_are_the_teachers_classifier_of_the_projected_mean(map_side: int) -> None:
    teacher = teacher_of(map_side)
    student = settled(project(student_of(), teacher))
    parts = StudentParts(student)(pixels())
    assert teacher.classifier is not None
    weight, bias = (value.detach().double() for value in teacher.classifier.parameters())
    wanted = parts.projected.detach().double().mean(dim=(2, 3)) @ weight.T + bias
    assert parts.projected.shape[2] == min(map_side, 4)
    torch.testing.assert_close(student(pixels()).double(), wanted, atol=1e-6, rtol=1e-5)


def test_gradient_reaches_backbone_and_projector_but_not_the_classifier() -> None:
    student = project(student_of(), teacher_of()).train()
    torch.autograd.backward(StudentParts(student)(pixels()).projected.square().mean())
    network = projected_network(student)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.backbone.parameters())
    assert all(p.grad is not None for p in network.projector.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in network.classifier.parameters())


def test_own_classifier_is_dropped_and_projector_counted() -> None:
    student = project(student_of(), teacher_of())
    network = projected_network(student)
    parts = [count(student_of().network.features, channels=3, size=(16, 16))]  # type: ignore[arg-type]
    parts.append(count(network.projector, channels=32, size=(4, 4)))
    classifier = 12 * 4
    assert student.count().params == sum(part.params for part in parts) + classifier + 4
    assert student.count().macs == sum(part.macs for part in parts) + classifier


@pytest.mark.parametrize("name", ["resnet8", "convnet3", "shufflenet_v2"])
def test_saved_student_comes_back_without_the_teacher(name: str, tmp_path: Path) -> None:
    student = settled(project(student_of(name), teacher_of(), form=ProjectorForm(4, "depthwise")))
    student.save(tmp_path)
    loaded = Student.load(tmp_path)
    description = json.loads((tmp_path / "student.json").read_text())
    assert description["architecture"] == f"projected:zoo:{name}"
    assert is_projected(loaded)
    assert not projected_network(loaded).classifier.weight.requires_grad
    assert torch.equal(loaded(pixels()), student(pixels()))


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "explicit"])
def test_adopted_backbone_keeps_its_statistics(fold: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = torchvision.models.resnet18(num_classes=4).eval()
    student = Student.adopt(
        network, spec=SPEC, classes=CLASSES, architecture="torchvision:resnet18", fold=fold
    )
    wanted = student.features(pixels()).final_map
    projected = project(student, teacher_of())
    projected.eval().save(tmp_path)
    torch.testing.assert_close(StudentParts(projected)(pixels()).backbone_map, wanted)
    assert "fc" not in str(projected.network.state_dict().keys())
    assert torch.equal(Student.load(tmp_path)(pixels()), projected(pixels()))


def test_student_is_left_as_it_was() -> None:
    student = student_of("shufflenet_v2")
    before = student.digest
    project(student, teacher_of())
    assert student.digest == before


def test_last_relu_is_left_out_when_the_teachers_map_has_negative_values() -> None:
    plain = project(student_of(), teacher_of()).eval()
    signed = project(student_of(), teacher_of(signed=True)).eval()
    assert StudentParts(plain)(pixels()).projected.min() >= 0
    assert StudentParts(signed)(pixels()).projected.min() < 0


def test_classifier_without_bias_is_shared() -> None:
    student = project(student_of(), teacher_of(bias=False))
    assert not projected_network(student).classifier.bias.any()


def test_same_seed_gives_the_same_projector() -> None:
    first, second, other = (project(student_of(), teacher_of(), seed=seed) for seed in (5, 5, 6))
    assert first.digest == second.digest != other.digest


def unshared() -> Teacher:
    network = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten())
    return Teacher.wrap(network, classes=CLASSES, spec=SPEC)


def other_classes() -> Student:
    return Student.create("resnet8", classes=("a", "b"), channels=3, size=(16, 16), width=0.5)


def projected_already() -> Student:
    return project(student_of(), teacher_of())


@pytest.mark.parametrize(
    ("student", "teacher", "error", "message"),
    [
        (student_of, unshared, MethodError, "no linear layer makes the logits"),
        (other_classes, teacher_of, MethodError, "same in the same order"),
        (projected_already, teacher_of, UsageError, "a projector already"),
    ],
    ids=["no-linear-classifier", "classes", "twice"],
)
def test_pair_is_refused_when_it_cannot_share(
    student: Callable[[], Student],
    teacher: Callable[[], Teacher],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        project(student(), teacher())


def test_parts_are_refused_when_there_is_no_projector() -> None:
    with pytest.raises(UsageError, match="no projector"):
        StudentParts(student_of())


@pytest.mark.parametrize(
    ("name", "map_side"),
    [("resnet8", 2), ("convnet3", 4)],
    ids=["pooled", "trunk"],
)
def test_exported_logits_equal_the_students(name: str, map_side: int, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    student = settled(project(student_of(name), teacher_of(map_side)))
    export_student(student, tmp_path / "student.onnx", resize="pillow-bilinear-antialias")
    session = ort.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    images = pixels().permute(0, 2, 3, 1).numpy()
    rows = [session.run(None, {"image": image[None]})[0] for image in images]
    wanted = student(pixels()).detach().numpy()
    np.testing.assert_allclose(np.concatenate(rows), wanted, atol=1e-4 * np.abs(wanted).max())
