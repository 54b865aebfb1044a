"""The teacher with fewer channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, TeacherError, UsageError
from hydistill_edge.models.counting import count
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.projected import project
from hydistill_edge.models.slimming import slim, why_not_slim
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.thinning import thin
from hydistill_edge.models.zoo import create_network
from hydistill_edge.seeding import seeded

SIZE = (16, 16)
# These are the student's own statistics, so that folding them in changes nothing at the border.
SPEC = InputSpec(height=16, width=16, channels=3, mean=(128 / 255,) * 3, std=(64 / 255,) * 3)
CLASSES = ("bolt", "nut", "washer")

FACTORY = """
from torch import nn

def build(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 3),
    )
"""


def teacher_of(network: nn.Module, name: str = "wrapped", **options: object) -> Teacher:
    return Teacher(
        network.eval(), classes=CLASSES, spec=SPEC, architecture=name, options=dict(options)
    )


def zoo_teacher(name: str, **options: float) -> Teacher:
    with seeded(0):
        network = create_network(name, classes=3, channels=3, size=SIZE, **options)  # type: ignore[arg-type]
    return teacher_of(network, f"zoo:{name}", **options)


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, *SIZE), generator=generator, dtype=torch.uint8)


class TwoBranches(nn.Module):
    """Three convolutions of which two are added up: both must lose the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.norm(self.branch(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("name", ["resnet8", "vgg8_bn", "mobilenet_v2"])
def test_student_keeps_within_the_share_and_near_it(name: str) -> None:
    teacher = zoo_teacher(name, width=0.5)
    student = slim(teacher, macs_share=0.3)
    whole = count(teacher.network, channels=3, size=SIZE)
    assert 0.2 < student.count().macs / whole.macs <= 0.3
    assert student(pixels()).shape == (4, 3)
    assert teacher.digest == zoo_teacher(name, width=0.5).digest


def test_silent_channels_go_first_and_the_answers_stay() -> None:
    with seeded(1):
        network = TwoBranches()
    silent = [0, 2, 4, 6]  # the same half of both groups, which lose alike
    with torch.no_grad():
        for layer in (network.stem, network.branch, network.norm):
            layer.weight[silent] = 0.0
            layer.bias[silent] = 0.0
    teacher = teacher_of(network)
    student = slim(teacher, macs_share=0.6)
    assert isinstance(student.network, TwoBranches)
    assert student.network.stem.out_channels == 4
    torch.testing.assert_close(student.eval()(pixels()), teacher(pixels()))


def test_student_is_the_same_when_it_was_saved_and_loaded(tmp_path: Path) -> None:
    student = slim(zoo_teacher("resnet8", width=0.5), macs_share=0.3).eval()
    student.save(tmp_path)
    assert torch.equal(Student.load(tmp_path)(pixels()), student(pixels()))


def test_code_that_runs_is_the_one_named_by_the_caller(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    name = f"{tmp_path / 'net.py'}:build"
    namespace: dict[str, object] = {}
    exec(FACTORY, namespace)
    student = slim(teacher_of(namespace["build"](width=16), name, width=16), macs_share=0.4)  # type: ignore[operator]
    student.eval().save(tmp_path / "student")
    with pytest.raises(UsageError, match="name it"):
        Student.load(tmp_path / "student")
    (tmp_path / "moved.py").write_text(FACTORY)
    back = Student.load(tmp_path / "student", architecture=f"{tmp_path / 'moved.py'}:build")
    assert torch.equal(back(pixels()), student(pixels()))


def test_slimmed_student_can_carry_the_teachers_classifier(tmp_path: Path) -> None:
    teacher = zoo_teacher("resnet8", width=0.5)
    student = project(slim(teacher, macs_share=0.3), teacher).eval()
    student.save(tmp_path)
    assert torch.equal(Student.load(tmp_path)(pixels()), student(pixels()))


def test_grey_student_of_a_colour_teacher_answers_like_three_equal_channels() -> None:
    teacher = zoo_teacher("resnet8", width=0.5)
    grey = pixels()[:, :1]
    alone = slim(teacher, macs_share=0.3, channels=1).eval()
    assert alone.channels == 1
    torch.testing.assert_close(
        alone(grey), slim(teacher, macs_share=0.3).eval()(grey.expand(-1, 3, -1, -1))
    )


def test_network_in_memory_can_be_slimmed_and_not_saved(tmp_path: Path) -> None:
    with seeded(0):
        student = slim(teacher_of(TwoBranches()), macs_share=0.7)
    with pytest.raises(UsageError, match="no name"):
        student.save(tmp_path)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="macs_share"):
        slim(teacher_of(TwoBranches()), macs_share=share)


def test_share_that_no_channels_reach_is_refused_with_the_least() -> None:
    with pytest.raises(UsageError, match=r"comes down to 0\.\d\d of"):
        slim(teacher_of(TwoBranches()), macs_share=0.001)


def test_layers_that_cannot_lose_channels_are_named() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    with pytest.raises(MethodError, match=r'"1\.weight".*network of the zoo'):
        slim(teacher_of(network), macs_share=0.6)


def test_forward_that_counts_on_its_sizes_is_refused() -> None:
    class Fixed(TwoBranches):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.stem(x).view(-1, 8, 256).mean(2))
            return logits

    with pytest.raises(MethodError, match="choose a network of the zoo"):
        slim(teacher_of(Fixed()), macs_share=0.5)


def test_reason_is_told_without_an_error_when_a_teacher_cannot_be_slimmed() -> None:
    assert why_not_slim(teacher_of(TwoBranches())) == ""
    assert "graph is fixed" in why_not_slim(teacher_of(TwoBranches(), "onnx:model.onnx"))


def test_onnx_teacher_is_refused() -> None:
    with pytest.raises(MethodError, match="graph is fixed"):
        slim(teacher_of(TwoBranches(), "onnx:model.onnx"), macs_share=0.5)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ({"nowhere": [4]}, "nowhere"),
        ({"norm": [4, 4]}, "1 sizes"),
        ({"norm": [0]}, "at least 1"),
        ({"branch": [4, 3, 2]}, "no multiple"),
    ],
)
def test_table_that_does_not_fit_is_refused(layers: dict[str, list[int]], told: str) -> None:
    with pytest.raises(TeacherError, match=told):
        thin(TwoBranches(), layers)
