"""A large student beside a small network: parts, arms, and what is left of the training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods import arch_overfitting
from hydistill_edge.methods.arch_overfitting import (
    DOCUMENT,
    ArchOverfittingSettings,
    arms,
    distill,
)
from hydistill_edge.methods.distilled import Distilled
from hydistill_edge.methods.pool import Pool
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.logits import kd_kl
from hydistill_edge.targets.graph import export_student
from hydistill_edge.targets.graph_file import parse_model
from hydistill_edge.training.droppath import DroppedPaths

CLASSES = ("dark", "light")
QUICK = ArchOverfittingSettings(
    steps=8,
    batch=8,
    small="convnet3",
    small_width=0.0625,
    small_steps=4,
    small_learning_rate=5e-3,
    learning_rate=2e-3,
    evaluations=2,
    precision="float32",
    checkpoint_seconds=0.0,
)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Brightness(nn.Module):
    """Tells light images from dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([-4.0, 4.0]))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3))[:, None] * self.scale


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.wrap(Brightness(), classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))


def write(folder: Path, teacher: Teacher, *, labelled: bool) -> TransferSet:
    choice = np.random.default_rng(0)
    level = choice.integers(40, 216, (40, 1, 1, 1))
    images = (level + choice.integers(-40, 40, (40, 8, 8, 1))).astype(np.uint8)
    logits = teacher(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    with TransferSetWriter(
        folder, size=(8, 8), channels=1, classes=CLASSES, teacher_digest=teacher.digest
    ) as writer:
        # The true labels are the other way round, so that a test sees which ones are learned.
        labels = 1 - logits.argmax(axis=1) if labelled else None
        ids = [f"real-{number}" for number in range(40)]
        writer.add(images, logits, origin="real", ids=ids, labels=labels)
    return TransferSet.open(folder)


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> TransferSet:
    return write(tmp_path_factory.mktemp("sets") / "transfer", teacher, labelled=False)


def new_student(name: str = "resnet8", seed: int = 0) -> Student:
    return Student.create(name, classes=CLASSES, channels=1, size=(8, 8), width=0.25, seed=seed)


def run(
    teacher: Teacher,
    transfer: TransferSet,
    workdir: Path,
    settings: ArchOverfittingSettings = QUICK,
    *,
    student: Student | None = None,
    **more: Any,
) -> Distilled:
    return distill(
        teacher, student or new_student(), transfer, settings, workdir=workdir, seed=2, **more
    )


def document_of(distilled: Distilled) -> dict[str, Any]:
    """The document as it comes back from its file."""
    found: dict[str, Any] = json.loads(json.dumps(distilled.documents[DOCUMENT]))
    return found


@pytest.mark.parametrize("name", ["resnet8", "vgg8_bn"])
def test_student_learns_to_agree_with_the_teacher(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, name: str
) -> None:
    settings = replace(QUICK, steps=80, small_steps=40, checkpoint_seconds=30.0, holdout=0.3)
    distilled = run(teacher, transfer, tmp_path, settings, student=new_student(name))
    found = document_of(distilled)
    assert distilled.holdout_agreement >= 0.75
    assert found["small"]["holdout_agreement"] >= 0.75
    difference = distilled.holdout_agreement - found["small"]["holdout_agreement"]
    assert found["gap_points"] == pytest.approx(100 * difference)


def test_keep_rate_follows_the_three_phases(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    plain = DroppedPaths.forward

    def note(self: DroppedPaths, inputs: Tensor) -> Tensor:
        rates.append(self.keep)
        return plain(self, inputs)

    monkeypatch.setattr(DroppedPaths, "forward", note)
    found = document_of(run(teacher, transfer, tmp_path))
    assert rates == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.8, 0.8])
    assert found["drop_path"] == {
        "kind": "residual",
        "places": 3,
        "depth": 8,
        "keep_rates": pytest.approx(rates[:7]),
    }


@pytest.mark.parametrize(
    ("depth", "floor"), [(8, 0.5), (20, 0.5), (35, 0.425), (50, 0.35), (101, 0.35)]
)
def test_lowest_keep_rate_follows_from_the_depth(depth: int, floor: float) -> None:
    assert ArchOverfittingSettings().floor(depth) == pytest.approx(floor)
    assert ArchOverfittingSettings(keep_floor=0.6).floor(depth) == 0.6


def test_defaults_are_the_published_ones() -> None:
    by_name = {name: (arm, arm.plan()) for name, arm in arms().items()}
    assert list(by_name) == ["baseline", "wo_dp_kd", "wo_dp", "wo_kd", "full"]
    for name, (arm, plan) in by_name.items():
        dropped, taught = name in ("full", "wo_kd"), name in ("full", "wo_dp")
        assert (arm.drop_path, arm.pool_shortcuts) == (dropped, dropped)
        assert arm.kd_weight == 0.5 * taught
        assert plan.steps == (4000 if dropped else 1000)
        if name == "baseline":
            continue
        assert plan.schedule == ("periodic" if dropped else "warm_cosine")
        assert (plan.optimizer, plan.learning_rate, plan.weight_decay) == ("lion", 5e-5, 5e-3)
        assert (arm.operations, arm.temperature, arm.batch) == (2, 1.5, 100)
    arm, plan = by_name["baseline"]
    assert (plan.optimizer, plan.learning_rate, plan.weight_decay) == ("adamw", 5e-4, 5e-4)
    assert (plan.schedule, arm.operations) == ("one_step", 1)


def test_arms_of_a_short_training_keep_their_proportions() -> None:
    short = arms(replace(QUICK, steps=400))
    assert [arm.plan().steps for arm in short.values()] == [100, 100, 100, 400, 400]
    assert short["baseline"].learning_rate == QUICK.small_learning_rate


@pytest.mark.parametrize(
    "change",
    [
        {"drop_path": False, "schedule": "periodic"},
        {"pool_shortcuts": False},
        {"kd_weight": 0.0},
        {"optimizer": "adamw"},
        {"schedule": "warm_cosine"},
        {"operations": 1},
        {"labels": "hard"},
        {"label_temperature": 0.3},
        {"temperature": 4.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_part_can_be_changed_alone(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, change: dict[str, Any]
) -> None:
    whole = run(teacher, transfer, tmp_path / "whole")
    changed = run(teacher, transfer, tmp_path / "changed", replace(QUICK, **change))
    assert changed.student.digest != whole.student.digest


def test_result_is_the_same_when_student_is_trained_again(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    once, again = (run(teacher, transfer, tmp_path / name) for name in ("a", "b"))
    assert once.student.digest == again.student.digest
    assert document_of(once) == document_of(again)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("after", [2, 6, 9])
def test_result_is_the_same_when_training_is_killed_and_resumed(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, after: int
) -> None:
    expected = run(teacher, transfer, tmp_path / "whole", student=new_student("vgg8_bn"))
    calls = []

    def die(*_: Any) -> None:
        calls.append(1)
        if len(calls) == after:
            raise Killed

    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        run(teacher, transfer, cut, student=new_student("vgg8_bn"), progress=die)
    outcome = run(teacher, transfer, cut, student=new_student("vgg8_bn"))
    assert outcome.student.digest == expected.student.digest
    assert document_of(outcome) == document_of(expected)


def test_small_network_is_trained_once_for_several_students(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    shared = tmp_path / "small"
    first = run(teacher, transfer, tmp_path / "a", small_workdir=shared)
    told: list[int] = []
    second = run(
        teacher,
        transfer,
        tmp_path / "b",
        replace(QUICK, keep_floor=0.4, kd_weight=0.8),
        student=new_student("vgg8_bn"),
        small_workdir=shared,
        progress=lambda done, _total, _metrics: told.append(done),
    )
    assert document_of(first)["small"] == document_of(second)["small"]
    assert len(list(shared.iterdir())) == 1
    assert min(told) > 500, "the second student's progress begins behind the small network"


def test_small_network_teaches_by_its_answers_to_the_same_view(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def note(student: Tensor, other: Tensor, *, temperature: float) -> Tensor:
        assert student.requires_grad
        assert not other.requires_grad
        seen.append((student.shape, temperature))
        return kd_kl(student, other, temperature=temperature)

    monkeypatch.setattr(arch_overfitting, "kd_kl", note)
    run(teacher, transfer, tmp_path / "taught")
    assert seen == [((8, 2), 1.5)] * QUICK.plan().steps
    seen.clear()
    run(teacher, transfer, tmp_path / "alone", replace(QUICK, kd_weight=0.0))
    assert seen == []


def test_no_small_network_is_trained_when_none_is_named(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    found = document_of(run(teacher, transfer, tmp_path, replace(QUICK, small=None, kd_weight=0.0)))
    assert (found["small"], found["gap_points"]) == (None, None)
    assert not (tmp_path / "small").exists()


def test_true_labels_are_learned_where_they_are_asked_for(teacher: Teacher, tmp_path: Path) -> None:
    labelled = write(tmp_path / "set", teacher, labelled=True)
    settings = replace(QUICK, steps=60, small_steps=40, labels="true", holdout=0.3, operations=0)
    found = run(teacher, labelled, tmp_path, replace(settings, checkpoint_seconds=30.0))
    # These labels are the teacher's other class: who learns them disagrees with it.
    assert found.history[-1]["holdout_agreement"] <= 0.25


def test_set_is_refused_when_true_labels_are_missing(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    with pytest.raises(MethodError, match=r"36 of 36 images .*no true label.*soft or hard"):
        run(teacher, transfer, tmp_path, replace(QUICK, labels="true"))


def test_given_images_choose_the_weights_and_all_others_train(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    plain = Pool.images

    def note(self: Pool, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        seen.update(rows.tolist() if torch.is_grad_enabled() else [])
        return plain(self, rows)

    monkeypatch.setattr(Pool, "images", note)
    held_out = np.arange(30, 40)
    found = run(teacher, transfer, tmp_path, replace(QUICK, steps=16), held_out=held_out)
    assert seen == set(range(30))
    assert found.holdout_rows.tolist() == held_out.tolist()
    assert document_of(found)["held_out"] == 10


class Choosing(nn.Module):
    """Its forward depends on the data, so no graph can be made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images if images.mean() > 0 else -images).mean(dim=(2, 3))
        logits: Tensor = self.head(found)
        return logits


def test_student_whose_blocks_cannot_be_told_trains_without_drop_path(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    def choosing() -> Student:
        return Student(Choosing(), architecture="", classes=CLASSES, channels=1, size=(8, 8))

    with pytest.raises(MethodError, match=r"blocks of this student.*drop_path: false"):
        run(teacher, transfer, tmp_path, student=choosing())
    assert not list(tmp_path.iterdir()), "told before the small network is trained"
    without = replace(QUICK, drop_path=False)
    found = document_of(run(teacher, transfer, tmp_path, without, student=choosing()))
    assert found["drop_path"] is None
    assert found["small"] is not None


@pytest.mark.parametrize("name", ["resnet8", "vgg8_bn", "shufflenet_v2"])
def test_exported_student_has_no_trace_of_training(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, name: str
) -> None:
    settings = replace(QUICK, pool_shortcuts=False)
    trained = run(teacher, transfer, tmp_path, settings, student=new_student(name)).student
    # The plain network takes the weights as they are, and exports as the very same graph.
    plain = new_student(name).eval()
    plain.network.load_state_dict(trained.network.state_dict())
    trained.save(tmp_path / "saved")
    assert Student.load(tmp_path / "saved").digest == trained.digest == plain.digest
    graphs = [
        parse_model(export_student(one, tmp_path / f"{number}.onnx", resize="none").path).graph
        for number, one in enumerate((trained, plain))
    ]
    assert graphs[0] == graphs[1]


def test_student_keeps_its_pooling_shortcuts_when_it_is_saved(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    trained = run(teacher, transfer, tmp_path).student
    trained.save(tmp_path / "saved")
    pixels = torch.rand(3, 1, 8, 8)
    again = Student.load(tmp_path / "saved")
    assert again.options == {"shortcut": "pool"}
    assert again.digest == trained.digest
    torch.testing.assert_close(again(pixels), trained(pixels))


def test_settings_list_every_problem_when_values_are_out_of_range() -> None:
    with pytest.raises(UsageError) as caught:
        ArchOverfittingSettings(
            batch=1, keep_floor=0.0, kd_weight=1.5, small=None, temperature=0, steps=0,
            labels="some",  # type: ignore[arg-type]
            operations=-1, holdout=1.0, small_steps=0, real_share=2.0, schedule="waves",
        )  # fmt: skip
    for word in (
        "batch", "keep_floor", "kd_weight", "no small network", "temperature", "steps", "labels",
        "operations", "holdout", "small_steps", "real_share", 'schedule "waves"',
    ):  # fmt: skip
        assert word in str(caught.value)


def test_settings_name_the_zoo_when_the_small_network_is_unknown() -> None:
    with pytest.raises(UsageError, match='small "convnet"; expected one of the zoo: resnet8'):
        ArchOverfittingSettings(small="convnet")
