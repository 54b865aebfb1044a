"""Factors fitted to what the teacher's layers give for images."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.models.factoring import factor
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.reconstruction import images_wanted, reconstruct
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import reading
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.seeding import seeded

SIZE = (12, 12)
# These are the student's own statistics, so that folding them in changes nothing at the border.
SPEC = InputSpec(height=12, width=12, channels=3, mean=(128 / 255,) * 3, std=(64 / 255,) * 3)
CLASSES = ("bolt", "nut", "washer")


def teacher_of(*layers: nn.Module, spec: InputSpec = SPEC) -> Teacher:
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
    network.eval()(torch.zeros(1, 3, *SIZE))
    return Teacher(network, classes=CLASSES, spec=spec, architecture="wrapped")


def pixels(count: int = 64, seed: int = 0) -> Tensor:
    """Return smooth images: what a layer sees of them has few directions, as of real ones."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def deep() -> Teacher:
    with seeded(0):
        return teacher_of(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(24, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 40, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(40, 32, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )


def outputs(student: Student | Teacher, name: str, images: Tensor) -> Tensor:
    """Return what a layer gives, copied before what follows writes over it."""
    with torch.no_grad(), reading(student.network, outputs=[name], copy=[name]) as found:
        student(images)
    return found.outputs[name]


def off(student: Student, teacher: Teacher, images: Tensor) -> float:
    with torch.no_grad():
        return float((student.eval()(images) - teacher(images)).square().mean())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(24, 32, 3),
        nn.Conv2d(24, 32, (3, 5), stride=(1, 2), padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(24, 32, (5, 1), padding=(2, 0)),
        nn.Conv2d(24, 32, 1),
    ],
    ids=str,
)
def test_last_factor_is_the_least_squares_answer(layer: nn.Conv2d) -> None:
    with seeded(0):
        teacher = teacher_of(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), copy.deepcopy(layer))
    student = factor(teacher, macs_share=0.7)
    chain = student.network.get_submodule("2")
    assert isinstance(chain, nn.Sequential)
    images = pixels()
    first, last = copy.deepcopy(chain)
    assert isinstance(last, nn.Conv2d)
    reconstruct(student, teacher, images)
    with torch.no_grad():
        seen = nn.functional.unfold(
            first(outputs(student, "1", images)),
            last.kernel_size,
            padding=last.padding,  # type: ignore[arg-type]
            stride=last.stride,
            dilation=last.dilation,
        )
        seen = seen.transpose(0, 1).flatten(1).double()
        wanted = outputs(teacher, "2", images).transpose(0, 1).flatten(1).double()
        own = outputs(student, "2", images).transpose(0, 1).flatten(1).double()
    table = torch.cat([seen, torch.ones_like(seen[:1])])
    best, *_ = np.linalg.lstsq(table.t().numpy(), wanted.t().numpy(), rcond=None)
    least = float((table.t() @ torch.from_numpy(best) - wanted.t()).square().mean())
    assert float((own - wanted).square().mean()) == pytest.approx(least, rel=1e-3)


def test_only_last_factors_change() -> None:
    teacher = deep()
    student = factor(teacher, macs_share=0.4)
    before = {name: value.clone() for name, value in student.network.state_dict().items()}
    reconstruct(student, teacher, pixels())
    changed = {
        name
        for name, value in student.network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {name for name in before if ".expand." in name}
    assert all(value.requires_grad for value in student.network.parameters())


def test_student_comes_nearer_on_images_that_it_was_not_fitted_to() -> None:
    teacher = deep()
    student = factor(teacher, macs_share=0.4)
    before = off(student, teacher, pixels(seed=1))
    reconstruct(student, teacher, pixels(seed=0))
    assert off(student, teacher, pixels(seed=1)) < 0.5 * before


def test_layers_mend_what_those_before_them_lost() -> None:
    teacher = deep()
    together, alone = factor(teacher, macs_share=0.4), factor(teacher, macs_share=0.4)
    images = pixels()
    reconstruct(together, teacher, images)
    for name in alone.options["ranks"]:  # each fitted behind layers that lost nothing
        single = factor(teacher, macs_share=0.4)
        for other in single.options["ranks"]:
            if other != name:
                _put(single, other, teacher.network.get_submodule(other))
        single.options["ranks"] = {name: single.options["ranks"][name]}
        reconstruct(single, teacher, images)
        _put(alone, name, single.network.get_submodule(name))
    assert off(together, teacher, images) < off(alone, teacher, images)


def _put(student: Student, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(student.network.get_submodule(parent), own, copy.deepcopy(layer))


def test_a_linear_layer_of_many_tokens_is_fitted() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 4, stride=4)
            self.mix = nn.Linear(16, 24)
            self.last = nn.Linear(24, 3)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.embed(images).flatten(2).transpose(1, 2)
            return self.last(self.mix(tokens).relu().mean(dim=1))

    with seeded(0):
        teacher = Teacher(Tokens().eval(), classes=CLASSES, spec=SPEC, architecture="wrapped")
    student = factor(teacher, macs_share=0.8)
    assert list(student.options["ranks"]) == ["mix"]
    before = off(student, teacher, pixels())
    reconstruct(student, teacher, pixels())
    assert off(student, teacher, pixels()) < 0.5 * before


def test_a_layer_that_runs_twice_is_fitted_to_its_first_run() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 24, 3, padding=1)
            self.again = nn.Conv2d(24, 24, 3, padding=1)
            self.last = nn.Linear(24, 3)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.first(images)
            for _ in range(2):
                maps = self.again(maps).relu()
            return self.last(maps.mean(dim=(2, 3)))

    def first_run(owner: Student | Teacher) -> Tensor:
        runs: list[Tensor] = []
        layer = owner.network.get_submodule("again")
        with layer.register_forward_hook(lambda _m, _i, output: runs.append(output.clone())):
            owner(pixels())
        return runs[0]

    with seeded(0):
        teacher = Teacher(Twice().eval(), classes=CLASSES, spec=SPEC, architecture="wrapped")
    student = factor(teacher, macs_share=0.8).eval()
    with torch.no_grad():
        before = (first_run(student) - first_run(teacher)).square().mean()
        reconstruct(student, teacher, pixels())
        after = (first_run(student) - first_run(teacher)).square().mean()
    assert float(after) < 0.5 * float(before)


def test_statistics_that_stay_in_front_and_grey_pixels_are_understood() -> None:
    class Odd(nn.Module):  # its first operation is no convolution: nothing is folded
        def __init__(self) -> None:
            super().__init__()
            self.body = deep().network

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.body(images * images.abs().sqrt())
            return logits

    spec = InputSpec(height=12, width=12, channels=3, mean=(0.4,) * 3, std=(0.2,) * 3)
    teacher = Teacher(Odd().eval(), classes=CLASSES, spec=spec, architecture="wrapped")
    student = factor(teacher, macs_share=0.4, channels=1)
    assert student.plan.kind == "explicit"
    grey = pixels()[:, :1]
    before = off(student, teacher, grey)
    reconstruct(student, teacher, grey)
    assert off(student, teacher, grey) < 0.5 * before


def test_a_layer_that_sees_nothing_keeps_its_factors() -> None:
    with seeded(0):
        teacher = teacher_of(
            nn.Conv2d(3, 24, 3, padding=1), nn.Threshold(1e6, 0.0), nn.Conv2d(24, 32, 3)
        )
    student = factor(teacher, macs_share=0.4)
    reconstruct(student, teacher, pixels())
    assert all(value.isfinite().all() for value in student.network.state_dict().values())


def test_it_leaves_teacher_modes_and_hooks_as_they_were_and_repeats_exactly() -> None:
    teacher = deep()
    students = [factor(teacher, macs_share=0.4).train() for _ in range(2)]
    digest = teacher.digest
    for student in students:
        reconstruct(student, teacher, pixels())
    assert students[0].digest == students[1].digest
    assert students[0].training
    assert teacher.digest == digest
    assert not any(m._forward_hooks for m in teacher.modules())
    assert not any(m._forward_pre_hooks for m in students[0].modules())


@pytest.mark.parametrize(
    ("size", "count"), [((32, 32), 1024), ((64, 64), 512), ((224, 224), 64), ((1, 1), 1024)]
)
def test_larger_images_are_fewer(size: tuple[int, int], count: int) -> None:
    assert images_wanted(size) == count
