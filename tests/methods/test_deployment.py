"""Folding projector and shared classifier into the student's own head, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods import deployment, hidfd, kd3
from hydistill_edge.methods.deployment import DOCUMENT, Lesson, fit_head, fold, ridge
from hydistill_edge.methods.distilled import Distilled
from hydistill_edge.methods.pool import Pool, is_real, judge_on
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.projected import is_projected, project, projected_network, unproject
from hydistill_edge.models.projector import ProjectorForm
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.logits import kd_kl
from hydistill_edge.training.loop import Plan

CLASSES = ("dark", "light")
CPU = torch.device("cpu")
PLAN = Plan(steps=4, learning_rate=0.01, precision="float32", checkpoint_seconds=0.0, ema_share=0.0)
COMMON: dict[str, Any] = {
    "batch": 8, "evaluations": 1, "precision": "float32", "checkpoint_seconds": 0.0,
    "augment": AugmentSettings(), "projector": ProjectorForm(kind="pointwise"),
}  # fmt: skip
HIDFD = hidfd.HiDFDSettings(steps=8, inflation=2, head="folded", fold_steps=4, **COMMON)
KD3 = kd3.KD3Settings(epochs=2, embedding=4, head="folded", fold_steps=4, **COMMON)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Tells light images from dark ones, by construction."""
    conv, layer = nn.Conv2d(1, 2, 1), nn.Linear(2, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        conv.bias.zero_()
        layer.weight.copy_(torch.tensor([[-6.0, 6.0], [6.0, -6.0]]))
        layer.bias.zero_()
    network = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer)
    return Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> TransferSet:
    folder = tmp_path_factory.mktemp("sets") / "transfer"
    choice = np.random.default_rng(0)
    with TransferSetWriter(
        folder, size=(8, 8), channels=1, classes=CLASSES, teacher_digest=teacher.digest
    ) as writer:
        for origin in ("real", "synthetic"):
            level = choice.integers(40, 216, (30, 1, 1, 1))
            images = (level + choice.integers(-40, 40, (30, 8, 8, 1))).astype(np.uint8)
            logits = teacher(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
            ids = [f"{origin}:{number}" for number in range(30)]
            writer.add(images, logits, origin=origin, ids=ids)  # type: ignore[arg-type]
    return TransferSet.open(folder)


def new_student(name: str = "resnet8") -> Student:
    return Student.create(name, classes=CLASSES, channels=1, size=(8, 8), width=0.125, seed=1)


def lesson_of(transfer: TransferSet, **changes: Any) -> Lesson:
    pool, rows = Pool(transfer, CPU), np.arange(len(transfer))
    judge = judge_on(pool, rows, is_real(transfer), 32)
    return replace(Lesson(pool, rows, lambda step: rows[:8], judge, len(rows)), **changes)


def settled(student: Student) -> Student:
    """Give the norms other statistics than those of the start."""
    generator = torch.Generator().manual_seed(3)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
    return student.eval()


def projected_by(teacher: Teacher, plain: Student) -> Student:
    return settled(project(plain, teacher, form=ProjectorForm(kind="pointwise")))


def test_ridge_finds_the_map_that_made_the_rows() -> None:
    choice = np.random.default_rng(0)
    seen, weight, bias = choice.normal(size=(50, 3)), np.array([[1.0, -2, 0], [0, 3, 4]]), [5, -6]
    found = ridge(seen, seen @ weight.T + bias, strength=1e-12)
    np.testing.assert_allclose(found[0], weight, atol=1e-8)
    np.testing.assert_allclose(found[1], bias, atol=1e-8)


def test_ridge_is_the_minimum_of_error_and_size() -> None:
    seen, wanted = np.array([[0.0], [2.0]]), np.array([[0.0], [4.0]])
    weight, bias = ridge(seen, wanted, strength=1.0)  # 2 x 2 / (2 + 2) by hand
    assert (weight.tolist(), bias.tolist()) == ([[1.0]], [1.0])
    through_zero, none = ridge(seen, wanted, strength=1e-12, bias=False)
    np.testing.assert_allclose([through_zero[0, 0], none[0]], [2.0, 0.0], atol=1e-9)


def test_ridge_stays_finite_when_the_inputs_do_not_vary() -> None:
    weight, bias = ridge(np.ones((4, 2)), np.arange(8.0).reshape(4, 2))
    assert (weight.tolist(), bias.tolist()) == ([[0, 0], [0, 0]], [3.0, 4.0])


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"], ids=["cut-inside", "features"])
def test_plain_network_takes_over_the_trained_backbone(teacher: Teacher, name: str) -> None:
    plain = new_student(name)
    before = plain.digest
    trained = projected_by(teacher, plain)
    pixels = torch.rand(3, 1, 8, 8)
    folded = unproject(trained, plain).eval()
    own = folded.features(pixels).final_map
    theirs = projected_network(trained).parts(trained.normalize(pixels)).backbone_map
    torch.testing.assert_close(own, theirs)
    assert plain.digest == before


def test_fitted_head_gives_the_projected_logits_when_they_are_linear(
    teacher: Teacher, transfer: TransferSet
) -> None:
    plain = new_student()
    trained = projected_by(teacher, plain)
    network = projected_network(trained)
    network.projector.layers = network.projector.layers[:-1]  # no ReLU: linear up to the logits
    folded = fit_head(trained, plain, lesson_of(transfer))
    pixels = torch.from_numpy(transfer.images(np.arange(20))).permute(0, 3, 1, 2)
    difference = (folded(pixels) - trained(pixels)).detach().abs().mean()
    assert difference < 0.05 * trained(pixels).detach().std()


def test_training_brings_the_fold_nearer_to_what_it_learns_from(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = new_student()
    trained = projected_by(teacher, plain)
    unfitted = unproject(trained, plain).eval()
    monkeypatch.setattr(deployment, "fit_head", lambda *_: unfitted)
    pixels = torch.from_numpy(transfer.images(np.arange(8))).permute(0, 3, 1, 2)
    folded, _ = fold(
        trained, plain, lesson_of(transfer), replace(PLAN, steps=40, learning_rate=0.05),
        augment=AugmentSettings(), workdir=tmp_path, seed=0, device=CPU,
    )  # fmt: skip

    def distance(student: Student) -> float:
        return kd_kl(student(pixels).detach(), trained(pixels)).item()

    assert distance(folded) < 0.5 * distance(unfitted)


@pytest.mark.parametrize(("module", "settings"), [(hidfd, HIDFD), (kd3, KD3)], ids=["hidfd", "kd3"])
def test_folded_student_is_the_plain_network_and_its_price_is_told(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, module: Any, settings: Any
) -> None:
    plain = new_student()
    found: Distilled = module.distill(teacher, plain, transfer, settings, workdir=tmp_path, seed=2)
    told = found.documents[DOCUMENT]
    found.student.save(tmp_path / "student")
    again = Student.load(tmp_path / "student")
    assert (again.architecture, is_projected(again)) == ("zoo:resnet8", False)
    assert again.digest == found.student.digest
    assert told["after"]["params"] == plain.count().params < told["before"]["params"]
    assert told["after"]["holdout_agreement"] == found.holdout_agreement
    parts = ("backbone", "projector", "classifier")
    assert sum(told["before"][f"{part}_params"] for part in parts) == told["before"]["params"]


@pytest.mark.parametrize(("module", "settings"), [(hidfd, HIDFD), (kd3, KD3)], ids=["hidfd", "kd3"])
def test_projected_student_is_deployed_and_other_projectors_are_sized(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, module: Any, settings: Any
) -> None:
    settings = replace(settings, head="projector")
    found = module.distill(teacher, new_student(), transfer, settings, workdir=tmp_path, seed=2)
    told = found.documents[DOCUMENT]
    assert is_projected(found.student)
    assert (told["after"], told["fold"]) == (None, None)
    used = [row for row in told["projectors"] if row["used"]]
    assert [(row["kind"], row["params"]) for row in used] == [
        ("pointwise", told["before"]["params"])
    ]
    assert len(told["projectors"]) == len(deployment.FORMS)


def test_fitted_head_is_kept_when_training_makes_it_worse(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    plain = new_student()
    answers = iter([0.9, 0.1])
    lesson = lesson_of(transfer)

    def judge(network: nn.Module) -> Any:
        return replace(lesson.judge(network), score=next(answers), margin=0.05)

    folded, facts = fold(
        projected_by(teacher, plain), plain, replace(lesson, judge=judge),
        replace(PLAN, evaluations=1), augment=AugmentSettings(), workdir=tmp_path, seed=0,
        device=CPU,
    )  # fmt: skip
    assert (facts["kept"], facts["holdout_agreement"], facts["trained_agreement"]) == (
        "fitted", 0.9, 0.1,
    )  # fmt: skip
    assert folded.digest == fit_head(projected_by(teacher, plain), plain, lesson).digest


def test_head_is_fitted_alone_when_no_steps_are_asked_for(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    settings = replace(HIDFD, fold_steps=0)
    found = hidfd.distill(teacher, new_student(), transfer, settings, workdir=tmp_path, seed=2)
    assert found.documents[DOCUMENT]["fold"]["kept"] == "fitted"
    assert not found.student.training


def test_fold_goes_on_from_its_checkpoint_when_killed(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(range(3))

    def dying(*args: Tensor) -> Tensor:
        if left.pop() == 0:
            raise Killed
        return kd_kl(*args)

    def run(folder: Path) -> Distilled:
        return hidfd.distill(teacher, new_student(), transfer, HIDFD, workdir=folder, seed=2)

    monkeypatch.setattr(deployment, "kd_kl", dying)
    with pytest.raises(Killed):
        run(tmp_path / "cut")
    monkeypatch.undo()
    assert run(tmp_path / "cut").student.digest == run(tmp_path / "whole").student.digest


def test_student_without_a_linear_head_is_refused_with_what_to_do(
    teacher: Teacher, transfer: TransferSet
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    plain = Student(network, architecture="", classes=CLASSES, channels=1, size=(8, 8))
    with pytest.raises(MethodError, match="set head to projector"):
        fit_head(projected_by(teacher, plain), plain, lesson_of(transfer))


@pytest.mark.parametrize("kind", [hidfd.HiDFDSettings, kd3.KD3Settings], ids=["hidfd", "kd3"])
def test_head_is_refused_when_unknown(kind: Any) -> None:
    with pytest.raises(UsageError, match=r'head "own"; expected projector, folded.*fold_steps'):
        kind(head="own", fold_steps=-1)
