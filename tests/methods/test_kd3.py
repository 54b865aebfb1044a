"""Distillation from a pool of which teacher and student choose the fitting images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods import kd3
from hydistill_edge.methods.distilled import Distilled
from hydistill_edge.methods.epochs import Epochs
from hydistill_edge.methods.kd3 import KD3Settings, distill
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.projected import projected_network
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.training.loop import CHECKPOINT_FILE

CLASSES = ("dark", "light")
QUICK = KD3Settings(
    epochs=3, batch=8, learning_rate=0.05, evaluations=1, precision="float32", embedding=4,
    checkpoint_seconds=0.0, augment=AugmentSettings(flip=0.5),
)  # fmt: skip


class KilledError(BaseException):
    """Stands for kill -9."""


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Tells light images from dark ones, by construction; two maps, one of each."""
    conv, layer = nn.Conv2d(1, 2, 1), nn.Linear(2, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        conv.bias.zero_()  # type: ignore[union-attr]
        layer.weight.copy_(torch.tensor([[-6.0, 6.0], [6.0, -6.0]]))
        layer.bias.zero_()
    network = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer)
    return Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))


def new_student() -> Student:
    return Student.create("resnet8", classes=CLASSES, channels=1, size=(8, 8), width=0.125)


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> TransferSet:
    """Half clear images, half grey ones that the teacher is not sure of."""
    folder = tmp_path_factory.mktemp("sets") / "transfer"
    choice = np.random.default_rng(0)
    with TransferSetWriter(
        folder, size=(8, 8), channels=1, classes=CLASSES, teacher_digest=teacher.digest
    ) as writer:
        for source, low, high in (("clear", 0, 60), ("clear2", 195, 255), ("grey", 124, 132)):
            level = choice.integers(low, high, (20, 1, 1, 1))
            images = np.clip(level + choice.integers(-8, 8, (20, 8, 8, 1)), 0, 255)
            images = images.astype(np.uint8)
            logits = teacher(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
            ids = [f"{source}:{number}" for number in range(20)]
            writer.add(images, logits, origin="web", ids=ids)
    return TransferSet.open(folder)


def run(
    teacher: Teacher, transfer: TransferSet, workdir: Path, settings: KD3Settings = QUICK
) -> Distilled:
    return distill(teacher, new_student(), transfer, settings, workdir=workdir, seed=2)


def audit_of(distilled: Distilled) -> Any:
    return distilled.documents["selection.json"]


def test_student_learns_through_the_teachers_classifier(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    settings = replace(QUICK, epochs=12, batch=16)
    distilled = run(teacher, transfer, tmp_path, settings)
    network = projected_network(distilled.student)
    pixels = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert distilled.holdout_agreement >= 0.8
    assert teacher.classifier is not None
    assert torch.equal(network.classifier.weight, teacher.classifier.weight)
    with torch.no_grad():
        parts = network.parts(distilled.student.normalize(pixels))
        expected = teacher.classifier(network.projector(parts.backbone_map).mean(dim=(2, 3)))
        torch.testing.assert_close(distilled.student(pixels), expected)


def test_deployed_student_has_projector_and_classifier_and_no_head(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    distilled = run(teacher, transfer, tmp_path / "work", replace(QUICK, epochs=1))
    distilled.student.save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student")
    pixels = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), distilled.student(pixels))
    names = set(loaded.network.state_dict())
    assert any(name.startswith("projector.") for name in names)
    assert not any("head" in name for name in names)
    with safe_open(tmp_path / "work" / CHECKPOINT_FILE, "np") as file:
        assert {"network.student_head.linear.weight", "network.teacher_head.linear.weight"} <= {
            *file.keys()
        }


def test_unsure_images_are_selected_less_than_clear_ones(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    audit = audit_of(run(teacher, transfer, tmp_path, replace(QUICK, epochs=1)))
    sources = audit["epochs"][0]["per_source"]
    assert sources["grey"]["selected"] < sources["grey"]["pool"] / 2
    assert sources["clear"]["selected"] > sources["clear"]["pool"] / 2


@pytest.mark.parametrize("step", [2, 7])
def test_student_and_audit_are_the_same_when_training_is_killed_and_resumed(
    teacher: Teacher,
    transfer: TransferSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    real, left = kd3.weighted_alignment, list(range(step + 1))

    def dying(*args: Any, **kwargs: Any) -> Tensor:
        if left.pop() == 0:
            raise KilledError
        return real(*args, **kwargs)

    monkeypatch.setattr(kd3, "weighted_alignment", dying)
    with pytest.raises(KilledError):
        run(teacher, transfer, tmp_path / "cut")
    monkeypatch.undo()
    resumed = run(teacher, transfer, tmp_path / "cut")
    whole = run(teacher, transfer, tmp_path / "whole")
    assert resumed.resumed_at == step
    assert resumed.student.digest == whole.student.digest
    assert audit_of(resumed) == audit_of(whole)


def test_teachers_contrast_does_not_reach_the_student(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    with_it = run(teacher, transfer, tmp_path / "a")
    without = run(teacher, transfer, tmp_path / "b", replace(QUICK, teacher_contrast=False))
    assert with_it.student.digest == without.student.digest


def test_each_stage_changes_the_student(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"selection": "all", "weights": False, "mixing": False},
        {"selection": "dynamic", "weights": False, "mixing": False},
        {"selection": "dynamic", "weights": True, "mixing": False},
        {"selection": "dynamic", "weights": True, "mixing": True},
    ]
    settings = [replace(QUICK, epochs=1, **row) for row in rows]
    digests = {
        run(teacher, transfer, tmp_path / str(place), each).student.digest
        for place, each in enumerate(settings)
    }
    assert len(digests) == 4


def epochs_of(
    teacher: Teacher, transfer: TransferSet, folder: Path, settings: KD3Settings
) -> Epochs:
    network = kd3._Trained(new_student(), teacher, settings, 0)
    pool = kd3.Pool(transfer, torch.device("cpu"))
    rows, nothing = np.arange(len(transfer)), np.zeros(0, np.int64)
    return Epochs(
        transfer, pool, rows, network, network.student, settings, 0, folder=folder,
        accepted=nothing,
    )  # fmt: skip


def test_scoring_leaves_the_network_as_it_was_and_does_not_ask_the_teacher(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = epochs_of(teacher, transfer, tmp_path, QUICK)
    network = epochs._network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(Teacher, "forward", refuse)
    monkeypatch.setattr(Teacher, "features", refuse)
    epochs.rows_at(0)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_selection_is_the_same_twice_whatever_was_drawn_before(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    first = epochs_of(teacher, transfer, tmp_path / "a", QUICK).rows_at(0)
    torch.rand(5)
    second = epochs_of(teacher, transfer, tmp_path / "b", QUICK).rows_at(0)
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("count", "steps", "sizes"),
    [(20, None, [8, 8, 4]), (17, None, [8, 9]), (5, None, [5]), (5, 2, [8, 8]), (20, 1, [8])],
    ids=["partial", "single", "small", "repeated", "cut"],
)
def test_epoch_is_one_pass_unless_steps_are_asked_for(
    teacher: Teacher,
    transfer: TransferSet,
    tmp_path: Path,
    count: int,
    steps: int | None,
    sizes: list[int],
) -> None:
    settings = replace(QUICK, steps_per_epoch=steps)
    batches = epochs_of(teacher, transfer, tmp_path, settings)._shuffled(np.arange(count))
    seen = np.concatenate(batches).tolist()
    assert [len(batch) for batch in batches] == sizes
    assert len(set(seen)) == min(count, len(seen))


def test_position_gives_every_epoch_the_same_length(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    epochs = epochs_of(teacher, transfer, tmp_path, QUICK)
    assert (epochs.position(0), epochs.nominal) == (0.0, 8)  # 60 images in batches of 8
    epochs.rows_at(0)
    length = len(epochs._batches)
    assert length < 8
    assert epochs.position(1) == pytest.approx(8 / length)
    assert epochs.position(length) == 8.0


def test_random_arm_draws_as_many_images_as_pass(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    dynamic = epochs_of(teacher, transfer, tmp_path / "a", QUICK)
    random = epochs_of(teacher, transfer, tmp_path / "b", replace(QUICK, selection="random"))
    dynamic.rows_at(0), random.rows_at(0)
    first, second = dynamic._record.rows(1), random._record.rows(1)
    assert len(first) == len(second)
    assert first.tolist() != second.tolist()


def test_mixed_images_are_not_clamped_and_both_networks_see_the_same_pixels(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    forward, features = kd3._Trained.forward, Teacher.features

    def watch_student(self: Any, pixels: Tensor) -> Any:
        seen["student"].append(pixels)
        return forward(self, pixels)

    def watch_teacher(self: Any, pixels: Tensor, *taps: Any) -> Any:
        if len(pixels) > 1:  # one image alone finds out the width of a vector
            seen["teacher"].append(pixels)
        return features(self, pixels, *taps)

    monkeypatch.setattr(kd3._Trained, "forward", watch_student)
    monkeypatch.setattr(Teacher, "features", watch_teacher)
    settings = replace(QUICK, epochs=1, augment=AugmentSettings(cutout=4))
    run(teacher, transfer, tmp_path, settings)
    pairs = list(zip(seen["student"], seen["teacher"][-len(seen["student"]) :], strict=True))
    mixed = torch.cat([pixels for pixels, _ in pairs[1::2]])
    assert mixed.min() < -0.01
    assert mixed.max() > 1.01
    for student_pixels, teacher_pixels in pairs:
        torch.testing.assert_close(student_pixels, teacher_pixels)


def test_fallback_is_said_when_fewer_than_two_batches_pass(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    settings = replace(QUICK, epochs=1, batch=32, fallback_share=0.9)
    epoch = audit_of(run(teacher, transfer, tmp_path, settings))["epochs"][0]
    assert not epoch["by_threshold"]
    assert "expected at least 64" in " ".join(epoch["notes"])
    assert epoch["selected"] == 49  # nine tenths of the 54 that are not held out


def test_training_is_refused_when_no_image_passes_and_nothing_stands_in(
    teacher: Teacher, tmp_path: Path
) -> None:
    with TransferSetWriter(
        tmp_path / "set", size=(8, 8), channels=1, classes=CLASSES, teacher_digest=teacher.digest
    ) as writer:
        images = np.random.default_rng(0).integers(120, 136, (20, 8, 8, 1)).astype(np.uint8)
        ids = [f"grey:{number}" for number in range(20)]
        writer.add(images, np.zeros((20, 2)), origin="web", ids=ids)
    settings = replace(QUICK, threshold=0.999, takeover=1e9, curve=1e9, fallback_share=0.0)
    with pytest.raises(MethodError, match="no image of 18 passes its threshold"):
        run(teacher, TransferSet.open(tmp_path / "set"), tmp_path / "work", settings)


def test_teacher_without_a_linear_classifier_is_refused(
    transfer: TransferSet, tmp_path: Path, teacher: Teacher
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten(), nn.ReLU())
    other = Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))
    other.digest = teacher.digest
    with pytest.raises(MethodError, match="classifier"):
        run(other, transfer, tmp_path)


def test_decisions_of_people_stand_above_the_scores(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    plain = audit_of(run(teacher, transfer, tmp_path / "plain", replace(QUICK, epochs=1)))
    images = plain["images"]
    taken = next(i for i, yes in zip(images["id"], images["selected"], strict=True) if yes)
    left = next(i for i, yes in zip(images["id"], images["selected"], strict=True) if not yes)
    sheet = tmp_path / "decisions.csv"
    sheet.write_text(f"id,decision\n{taken},reject\n{left},accept\n")

    settings = replace(QUICK, epochs=1, decisions=str(sheet))
    decided = audit_of(run(teacher, transfer, tmp_path / "decided", settings))["images"]

    assert taken not in decided["id"]
    assert decided["selected"][decided["id"].index(left)]


def test_training_is_refused_when_decisions_leave_no_pool(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    sheet = tmp_path / "decisions.csv"
    sheet.write_text("id,decision\n" + "".join(f"{name},reject\n" for name in transfer.ids))
    with pytest.raises(MethodError, match="0 of 54 images of the pool are left"):
        run(teacher, transfer, tmp_path, replace(QUICK, decisions=str(sheet)))


def test_defaults_are_the_published_ones() -> None:
    settings = KD3Settings()
    published = {
        "epochs": 240, "batch": 1024, "learning_rate": 0.05, "weight_decay": 5e-4,
        "threshold": 0.95, "takeover": 120.0, "curve": 5.0, "curve_epochs": 160.0,
        "contrast_temperature": 0.3, "contrast_weight": 0.001, "beta": 0.1, "embedding": 128,
        "combine": "logits", "ema_share": 0.0,
    }  # fmt: skip
    assert {name: getattr(settings, name) for name in published} == published
    assert settings.augmentation() == AugmentSettings(resized_crop=0.92, flip=0.5)
    assert [round(settings.teacher_share(e), 3) for e in (1, 60, 119, 120)] == [
        0.992, 0.853, 0.268, 0.0,
    ]  # fmt: skip


def test_teachers_share_is_stretched_when_training_is_shorter() -> None:
    short = KD3Settings(epochs=24)
    assert short.teacher_share(1) == KD3Settings().teacher_share(1)
    assert short.teacher_share(7) == KD3Settings().teacher_share(61)
    assert short.teacher_share(13) == 0.0


def test_settings_list_every_problem_when_values_are_out_of_range() -> None:
    with pytest.raises(UsageError, match=r"batch is 1.*evaluations.*selection is some.*beta is 0"):
        KD3Settings(batch=1, selection="some", beta=0.0, evaluations=0)  # type: ignore[arg-type]
