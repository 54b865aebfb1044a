"""Distillation from collected and synthetic images."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.images.transfer_set import Indices, TransferSet, TransferSetWriter
from hydistill_edge.methods import hidfd
from hydistill_edge.methods.distilled import Distilled
from hydistill_edge.methods.hidfd import (
    ARMS,
    HiDFDSettings,
    HybridDraws,
    distill,
    real_share,
    stage_taps,
    usual_rate,
)
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.projected import projected_network
from hydistill_edge.models.projector import ProjectorForm
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import Tap
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.alignment import feature_alignment

CLASSES = ("dark", "light")
QUICK = HiDFDSettings(
    steps=12,
    batch=8,
    inflation=3,
    evaluations=2,
    precision="float32",
    checkpoint_seconds=0.0,
    augment=AugmentSettings(),
    projector=ProjectorForm(kind="pointwise"),
)


class Killed(BaseException):
    """Stands for kill -9."""


def convolutions(channels: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AvgPool2d(8 // side),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 2),
    )


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Tells light images from dark ones, by construction."""
    torch.manual_seed(0)
    network = convolutions(6, 4)
    weights = network.state_dict()
    for layer in ("0", "4"):
        weights[f"{layer}.weight"].fill_(0.05)
        weights[f"{layer}.bias"].zero_()
    weights["0.bias"][3:] += 1.0
    weights["8.weight"].copy_(torch.tensor([[-1.0] * 6, [1.0] * 6]))
    weights["8.bias"].copy_(torch.tensor([4.6, -4.6]))
    return Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))


def new_student() -> Student:
    torch.manual_seed(1)
    return Student(convolutions(5, 4), architecture="", classes=CLASSES, channels=1, size=(8, 8))


def write_set(
    folder: Path, teacher: Teacher, *, real: int = 20, synthetic: int = 40
) -> TransferSet:
    choice = np.random.default_rng(0)
    with TransferSetWriter(
        folder, size=(8, 8), channels=1, classes=CLASSES, teacher_digest=teacher.digest
    ) as writer:
        for origin, count in (("real", real), ("synthetic", synthetic)):
            if count:
                level = choice.integers(40, 216, (count, 1, 1, 1))
                images = (level + choice.integers(-40, 40, (count, 8, 8, 1))).astype(np.uint8)
                logits = teacher(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
                ids = [f"{origin}-{number}" for number in range(count)]
                writer.add(images, logits, origin=origin, ids=ids)  # type: ignore[arg-type]
    return TransferSet.open(folder)


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> TransferSet:
    return write_set(tmp_path_factory.mktemp("sets") / "transfer", teacher)


def run(teacher: Teacher, transfer: TransferSet, workdir: Path, **changes: Any) -> Distilled:
    settings = replace(QUICK, **changes)
    return distill(teacher, new_student(), transfer, settings, workdir=workdir, seed=2)


def test_defaults_are_the_published_ones() -> None:
    settings = HiDFDSettings()
    assert (settings.inflation, settings.epochs, settings.batch) == (10, 240, 64)
    assert (settings.schedule, settings.weight_decay, settings.regions) == ("three_step", 5e-4, 0.0)
    assert settings.augmentation() == AugmentSettings(resized_crop=0.92, flip=0.5)


@pytest.mark.parametrize(
    ("architecture", "rate"),
    [("zoo:resnet18", 0.05), ("zoo:mobilenet_v2", 0.01), ("torchvision:shufflenet_v2_x1_0", 0.01)],
)
def test_learning_rate_is_the_published_one_of_the_architecture(
    architecture: str, rate: float
) -> None:
    assert usual_rate(architecture) == rate


@pytest.mark.parametrize(
    ("collected", "synthetic", "inflation", "share"),
    [(5000, 50_000, 10, 0.5), (5000, 50_000, 1, 1 / 11), (10, 0, 3, 1.0), (0, 10, 3, 0.0)],
)
def test_real_share_follows_the_inflation(
    collected: int, synthetic: int, inflation: int, share: float
) -> None:
    assert real_share(collected, synthetic, inflation=inflation) == pytest.approx(share)


@pytest.mark.parametrize("inflation", [1, 10])
def test_draws_have_the_real_share_and_repeat_each_collected_image(inflation: int) -> None:
    collected, synthetic = np.arange(50), np.arange(50, 550)
    draws = HybridDraws(collected, synthetic, inflation=inflation, batch=50, seed=0)
    steps = len(draws) // 50
    drawn = np.concatenate([draws.at(step) for step in range(steps)])
    share = real_share(50, 500, inflation=inflation)
    assert (drawn < 50).mean() == pytest.approx(share, abs=0.01)
    counts = np.bincount(drawn, minlength=550)
    assert set(counts[:50]) == {inflation}
    assert set(counts[50:]) == {1}
    later = np.concatenate([draws.at(step) for step in range(steps, 4 * steps)])
    assert (later < 50).mean() == pytest.approx(share, abs=0.01)


def test_draws_are_shuffled_anew_in_every_pass() -> None:
    draws = HybridDraws(np.arange(4), np.arange(4, 8), inflation=2, batch=12, seed=0)
    assert sorted(draws.at(0)) == sorted(draws.at(1))
    assert draws.at(0).tolist() != draws.at(1).tolist()


def test_student_learns_to_agree_with_teacher(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    found = run(teacher, transfer, tmp_path, steps=120, holdout=0.3, schedule="one_cycle")
    assert found.holdout_agreement >= 0.8
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert not found.student.training


def test_trained_student_holds_the_teachers_classifier_unchanged(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    classifier = projected_network(run(teacher, transfer, tmp_path).student).classifier
    assert teacher.classifier is not None
    assert torch.equal(classifier.weight, teacher.classifier.weight)
    assert torch.equal(classifier.bias, teacher.classifier.bias)


def test_document_tells_the_share_of_collected_images(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    told = run(teacher, transfer, tmp_path).documents["hidfd.json"]
    assert (told["collected"], told["synthetic"]) == (18, 36)
    assert told["real_share"] == pytest.approx(3 * 18 / (3 * 18 + 36))


@pytest.mark.parametrize("arm", ARMS)
def test_arm_sees_its_images_only_and_no_held_out_one(
    teacher: Teacher,
    transfer: TransferSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arm: str,
) -> None:
    drawn: set[int] = set()
    at = HybridDraws.at

    def watched(draws: HybridDraws, step: int) -> Indices:
        drawn.update(at(draws, step).tolist())
        return at(draws, step)

    monkeypatch.setattr(HybridDraws, "at", watched)
    found = run(teacher, transfer, tmp_path, arm=arm, steps=40)
    origins = {str(transfer.origins[row]) for row in drawn}
    wanted = {"synthetic": {"synthetic"}, "collected": {"real"}, "hybrid": {"real", "synthetic"}}
    assert origins == wanted[arm]
    assert not drawn & set(found.holdout_rows.tolist())


def test_arms_have_one_budget_and_one_holdout(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    found = {
        arm: run(teacher, transfer, tmp_path / arm, arm=arm, steps=None, epochs=1) for arm in ARMS
    }
    assert {result.steps for result in found.values()} == {-(-(3 * 18 + 36) // 8)}
    rows = {tuple(result.holdout_rows.tolist()) for result in found.values()}
    assert len(rows) == 1
    assert len({result.student.digest for result in found.values()}) == 3


def test_student_is_the_same_when_training_is_killed_and_resumed(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(range(6))

    def dying(*args: Any) -> Tensor:
        if left.pop() == 0:
            raise Killed
        return feature_alignment(*args)

    monkeypatch.setattr(hidfd, "feature_alignment", dying)
    with pytest.raises(Killed):
        run(teacher, transfer, tmp_path / "cut", evaluations=1)
    monkeypatch.undo()
    resumed = run(teacher, transfer, tmp_path / "cut", evaluations=1)
    whole = run(teacher, transfer, tmp_path / "whole", evaluations=1)
    assert resumed.resumed_at == 5
    assert resumed.student.digest == whole.student.digest


def test_student_handed_over_is_left_as_it_was(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    student = new_student()
    before = student.digest
    distill(teacher, student, transfer, QUICK, workdir=tmp_path)
    assert student.digest == before


def test_teacher_and_student_see_the_same_pixels(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    features = teacher.features

    def watching(pixels: Tensor, *rest: Any) -> Any:
        seen.append(pixels)
        return features(pixels, *rest)

    monkeypatch.setattr(teacher, "features", watching)
    run(teacher, transfer, tmp_path)
    batches = [pixels for pixels in seen if len(pixels) == 8]
    assert all(0 <= pixels.min() < pixels.max() <= 1 for pixels in batches)
    assert len(batches) == 12


def test_regions_change_the_student_and_fade_in(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    first = [run(teacher, transfer, tmp_path / f"a{w}", steps=1, regions=w) for w in (0.0, 5.0)]
    assert first[0].student.digest == first[1].student.digest  # the weight starts at 0
    later = [run(teacher, transfer, tmp_path / f"b{w}", steps=4, regions=w) for w in (0.0, 5.0)]
    assert later[0].student.digest != later[1].student.digest


def test_regions_come_in_by_the_clock_when_time_is_short(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[float] = []
    losses = hidfd._Regions.losses

    def watched(self: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        loss, term = losses(self, images)
        term.register_hook(lambda weight: weights.append(weight.item()))
        return loss, term

    looks = count()
    monkeypatch.setattr(hidfd._Regions, "losses", watched)
    monkeypatch.setattr("hydistill_edge.training.loop.time.monotonic", lambda: 0.01 * next(looks))
    run(teacher, transfer, tmp_path, steps=100_000, max_seconds=2.0, regions=5.0)
    assert weights[0] == pytest.approx(0, abs=1)
    assert weights[-1] == pytest.approx(5)


def tap(name: str, side: int, *, overwritten: bool = False) -> Tap:
    return Tap(name, "Conv2d", (4, side, side), overwritten)


def test_stages_are_the_last_maps_of_each_size_before_the_final_one() -> None:
    taps = [tap("stem", 32), tap("stage1", 32), tap("raw", 16), tap("stage2", 16)]
    taps += [tap("late", 16, overwritten=True), tap("stage3", 8), tap("stage4", 4), tap("gap", 1)]
    assert stage_taps(taps) == ("stage1", "stage2", "stage3")


def test_settings_are_refused_with_all_problems_when_out_of_range() -> None:
    with pytest.raises(UsageError) as caught:
        HiDFDSettings(arm="both", inflation=0, batch=1, holdout=1.0, steps=0)  # type: ignore[arg-type]
    for part in ('arm "both"', "inflation is 0", "batch is 1", "holdout is 1.0", "steps is 0"):
        assert part in str(caught.value)


def test_teacher_without_a_linear_classifier_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten())
    teacher = Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))
    with pytest.raises(MethodError, match="no linear layer makes the logits"):
        run(teacher, write_set(tmp_path / "set", teacher), tmp_path)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"real": 1}, "1 collected images to train on, for 2 classes"),
        ({"real": 0}, "0 collected images"),
        ({"synthetic": 0}, "no synthetic image"),
    ],
    ids=["fewer-than-classes", "none-collected", "none-synthetic"],
)
def test_set_is_refused_when_an_arm_has_too_few_images(
    teacher: Teacher, tmp_path: Path, counts: dict[str, int], message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        run(teacher, write_set(tmp_path / "set", teacher, **counts), tmp_path)
