"""Logit distillation from a transfer set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods import kd, pool
from hydistill_edge.methods.distilled import Distilled
from hydistill_edge.methods.kd import RATES, KDSettings, distill
from hydistill_edge.methods.pool import Draws, split, standard_error
from hydistill_edge.models.factoring import factor
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.logits import kd_kl
from hydistill_edge.seeding import seeded

CLASSES = ("dark", "light")
QUICK = KDSettings(
    steps=30, batch=16, evaluations=3, precision="float32", checkpoint_seconds=0.0, flip=False
)


class Killed(BaseException):
    """Stands for kill -9."""


def tiny_network(channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    ).extend([nn.Flatten(), nn.Linear(4, 2)])


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Tells light images from dark ones, by construction."""
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-6.0], [6.0]]))
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer)
    return Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))


def new_student(seed: int = 0) -> Student:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = tiny_network()
    return Student(network, architecture="", classes=CLASSES, channels=1, size=(8, 8))


def write_set(
    folder: Path,
    teacher: Teacher,
    *,
    real: int = 24,
    synthetic: int = 40,
    procedural: int = 0,
    digest: str | None = None,
) -> TransferSet:
    choice = np.random.default_rng(0)
    with TransferSetWriter(
        folder,
        size=(8, 8),
        channels=1,
        classes=teacher.classes,
        teacher_digest=digest or teacher.digest,
    ) as writer:
        counts = {"real": real, "synthetic": synthetic, "procedural": procedural}
        for origin, count in counts.items():
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


def run(
    teacher: Teacher,
    transfer: TransferSet,
    workdir: Path,
    settings: KDSettings = QUICK,
    student: Student | None = None,
) -> Distilled:
    return distill(teacher, student or new_student(), transfer, settings, workdir=workdir, seed=2)


def killed_and_resumed(
    train: Callable[[str], Distilled], step: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Distilled, Distilled]:
    """Return the outcomes of a training, by the folder given, that was killed and of one whole."""
    left = list(range(step + 1))

    def dying(*args: object, **kwargs: object) -> torch.Tensor:
        if left.pop() == 0:
            raise Killed
        return kd_kl(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(kd, "kd_kl", dying)
    with pytest.raises(Killed):
        train("cut")
    monkeypatch.undo()
    return train("cut"), train("whole")


@pytest.fixture(scope="module")
def wide_teacher() -> Teacher:
    """Has a layer that can be factored, and batch norms."""
    with seeded(0):
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)),
        )
    return Teacher.wrap(network.eval(), classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))


@pytest.fixture(scope="module")
def wide_transfer(tmp_path_factory: pytest.TempPathFactory, wide_teacher: Teacher) -> TransferSet:
    return write_set(tmp_path_factory.mktemp("sets") / "wide", wide_teacher)


def run_factored(
    teacher: Teacher, transfer: TransferSet, workdir: Path, settings: KDSettings = QUICK
) -> Distilled:
    return run(teacher, transfer, workdir, settings, factor(teacher, macs_share=0.6))


@pytest.mark.parametrize("view", ["augmented", "stored"])
def test_student_learns_to_agree_with_teacher(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, view: str
) -> None:
    settings = replace(QUICK, steps=80, teacher_view=view)  # type: ignore[arg-type]
    distilled = run(teacher, transfer, tmp_path, settings)
    assert distilled.holdout_agreement >= 0.8
    assert len(distilled.holdout_rows) == 6
    assert distilled.history[-1]["holdout_kl"] < distilled.history[0]["holdout_kl"]


def test_history_tells_real_from_synthetic(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    distilled = run(teacher, transfer, tmp_path)
    entry = distilled.history[-1]
    assert {"step", "lr", "loss", "holdout_agreement", "holdout_kl"} <= set(entry)
    parts = 2 * entry["holdout_agreement_real"] + 4 * entry["holdout_agreement_synthetic"]
    assert entry["holdout_agreement"] == pytest.approx(parts / 6)


def test_student_is_in_eval_mode_and_teacher_untouched(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    distilled = run(teacher, transfer, tmp_path)
    assert not distilled.student.training
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(("step", "hint"), [(1, 0.0), (13, 0.0), (7, 1.0)])
def test_student_is_the_same_when_training_is_killed_and_resumed(
    teacher: Teacher,
    transfer: TransferSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    hint: float,
) -> None:
    settings = replace(QUICK, evaluations=1, feature_weight=hint)
    resumed, whole = killed_and_resumed(
        lambda folder: run(teacher, transfer, tmp_path / folder, settings), step, monkeypatch
    )
    assert resumed.resumed_at == step
    assert resumed.student.digest == whole.student.digest


def test_set_on_disk_gives_the_same_student_as_one_in_memory(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = run(teacher, transfer, tmp_path / "memory")
    monkeypatch.setattr(pool, "RESIDENT_BYTES", 0)
    mapped = run(teacher, transfer, tmp_path / "disk")
    assert mapped.student.digest == resident.student.digest


@pytest.mark.parametrize(("share", "real"), [(None, 6), (0.5, 8), (0.0, 0), (1.0, 16)], ids=str)
def test_batch_holds_the_asked_share_of_real_images(
    transfer: TransferSet, share: float | None, real: int
) -> None:
    draws = Draws(transfer, np.arange(len(transfer)), batch=16, real_share=share, seed=0)
    batch = draws.at(3)
    assert len(batch) == 16
    assert int((transfer.origins[batch] == "real").sum()) == real


def test_share_is_ignored_when_all_images_are_of_one_origin(
    teacher: Teacher, tmp_path: Path
) -> None:
    only_real = write_set(tmp_path / "real", teacher, synthetic=0)
    draws = Draws(only_real, np.arange(24), batch=16, real_share=0.0, seed=0)
    assert len(draws.at(0)) == 16


@pytest.mark.parametrize(
    ("share", "counts"), [(None, (4, 10)), (0.5, (7, 7)), (0.0, (14, 0)), (1.0, (0, 14))], ids=str
)
def test_made_images_of_a_batch_hold_the_asked_share_from_formulas(
    teacher: Teacher, tmp_path: Path, share: float | None, counts: tuple[int, int]
) -> None:
    mixed = write_set(tmp_path / "mixed", teacher, real=20, synthetic=40, procedural=100)
    places = np.arange(len(mixed))
    draws = Draws(mixed, places, batch=16, real_share=None, procedural_share=share, seed=0)
    found = [mixed.origins[draws.at(step)].tolist() for step in range(200)]
    assert all(len(batch) == 16 and batch.count("real") == 2 for batch in found)
    means = [
        np.mean([batch.count(kind) for batch in found]) for kind in ("synthetic", "procedural")
    ]
    assert means == pytest.approx(counts, abs=0.5)
    if share is not None:
        assert {batch.count("procedural") for batch in found} == {counts[1]}


def test_share_from_formulas_is_ignored_where_there_are_none(transfer: TransferSet) -> None:
    places = np.arange(len(transfer))
    draws = Draws(transfer, places, batch=16, real_share=0.5, procedural_share=1.0, seed=0)
    assert (transfer.origins[draws.at(0)] == "synthetic").sum() == 8


def test_held_out_images_are_never_trained_on(transfer: TransferSet) -> None:
    train_on, held_out = split(transfer, 0.1, seed=0)
    assert not set(train_on) & set(held_out)
    assert len(train_on) + len(held_out) == len(transfer)


def test_one_image_is_held_out_when_the_set_is_tiny(teacher: Teacher, tmp_path: Path) -> None:
    tiny = write_set(tmp_path / "tiny", teacher, real=2, synthetic=2)
    train_on, held_out = split(tiny, 0.1, seed=0)
    assert (len(train_on), len(held_out)) == (3, 1)


@pytest.mark.parametrize(
    ("share", "count", "error"), [(1.0, 10, 0.0874), (0.5, 100, 0.05), (1.0, 2000, 0.0005)]
)
def test_margin_is_a_standard_error(share: float, count: int, error: float) -> None:
    assert standard_error(share, count) == pytest.approx(error, rel=0.05)


def test_no_image_is_mirrored_when_flip_is_off() -> None:
    assert KDSettings(flip=False).augmentation((32, 32)).flip == 0.0
    assert KDSettings().augmentation((32, 32)) == AugmentSettings(crop_pad=4, flip=0.5, cutout=8)
    assert KDSettings(augment=AugmentSettings(rotate=5)).augmentation((8, 8)).crop_pad == 0


def test_progress_reaches_the_total(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []

    def note(done: int, total: int, metrics: Mapping[str, float]) -> None:
        seen.append((done, total))

    distill(teacher, new_student(), transfer, QUICK, workdir=tmp_path, progress=note)
    assert seen[-1] == (30, 30)


def test_distillation_is_refused_when_classes_differ(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    other = Student(tiny_network(), architecture="", classes=("x", "y"), channels=1, size=(8, 8))
    with pytest.raises(MethodError, match="student has the classes x, y"):
        distill(teacher, other, transfer, QUICK, workdir=tmp_path)


def test_distillation_is_refused_when_set_is_of_another_teacher(
    teacher: Teacher, tmp_path: Path
) -> None:
    foreign = write_set(tmp_path / "set", teacher, digest="0" * 64)
    with pytest.raises(MethodError, match="another teacher"):
        run(teacher, foreign, tmp_path / "work")


def test_distillation_is_refused_when_there_is_one_image(teacher: Teacher, tmp_path: Path) -> None:
    single = write_set(tmp_path / "set", teacher, real=1, synthetic=0)
    with pytest.raises(MethodError, match="at least 2"):
        run(teacher, single, tmp_path / "work")


def test_settings_list_every_problem_when_values_are_out_of_range() -> None:
    with pytest.raises(UsageError, match=r"batch is 1.*holdout.*steps is 0.*temperature is 0"):
        KDSettings(batch=1, temperature=0, holdout=0.0, steps=0)


def test_shares_decide_which_batches_are_blended_and_how() -> None:
    settings = KDSettings(mixup_share=0.3, cutmix_share=0.2)
    images = torch.rand((8, 3, 8, 8), generator=torch.Generator().manual_seed(0))

    def blended(draw: float) -> torch.Tensor | None:
        mixed = settings.blend(images, draw, torch.Generator().manual_seed(1))
        return None if mixed is None else mixed.images

    boxes = blended(0.4)
    assert blended(0.5) is None
    assert boxes is not None
    assert torch.isin(boxes, images).all()
    other = blended(0.29)
    assert other is not None
    assert not torch.isin(other, images).all()


def test_shares_above_one_together_are_refused() -> None:
    with pytest.raises(UsageError, match=r"cutmix_share is 0\.6"):
        KDSettings(mixup_share=0.5, cutmix_share=0.6)


def test_student_that_starts_from_its_teacher_gets_a_smaller_rate_unless_one_is_given() -> None:
    assert RATES["fresh"] > RATES["slimmed"] > RATES["factored"]
    for start, rate in RATES.items():
        assert KDSettings().resolved(start).plan().learning_rate == rate
        assert KDSettings(learning_rate=0.5).resolved(start).plan().learning_rate == 0.5


def test_only_a_factored_student_is_clipped_unless_told_otherwise() -> None:
    clips = {start: KDSettings().resolved(start).plan().gradient_clip for start in RATES}
    assert clips == {"fresh": None, "slimmed": None, "factored": kd.GRADIENT_CLIP}
    assert KDSettings(gradient_clip=1.0).resolved("factored").plan().gradient_clip == 1.0


def test_a_hint_teaches_without_becoming_part_of_the_student(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    plain = run(teacher, transfer, tmp_path / "plain")
    hinted = run(teacher, transfer, tmp_path / "hinted", replace(QUICK, feature_weight=1.0))
    assert hinted.student.digest != plain.student.digest
    assert set(hinted.student.state_dict()) == set(plain.student.state_dict())
    assert hinted.history[-1]["loss"] > plain.history[-1]["loss"]  # it has one term more


def test_a_factored_student_imitates_every_factored_layer_unless_told_not_to(
    wide_teacher: Teacher, wide_transfer: TransferSet, tmp_path: Path
) -> None:
    images = torch.from_numpy(wide_transfer.images(np.arange(32))).permute(0, 3, 1, 2)
    off = {}
    for weight in (None, 0.0):
        settings = replace(QUICK, layer_weight=weight, temperature=1.0)
        student = run_factored(
            wide_teacher, wide_transfer, tmp_path / str(weight), settings
        ).student
        with torch.no_grad():
            own = student.features(images, ["3"]).taps["3"]
            seen = wide_teacher.features(images, ["3"]).taps["3"]
        off[weight] = float((own - seen).square().mean())
    assert off[None] < 0.8 * off[0.0]


@pytest.mark.parametrize(("held", "same"), [(None, True), (True, True), (False, False)])
def test_a_factored_student_keeps_the_statistics_that_its_teacher_learned(
    wide_teacher: Teacher,
    wide_transfer: TransferSet,
    tmp_path: Path,
    held: bool | None,
    same: bool,
) -> None:
    settings = replace(QUICK, held_statistics=held)
    student = run_factored(wide_teacher, wide_transfer, tmp_path, settings).student
    for name in ("1", "4"):
        own = student.network.get_submodule(name)
        theirs = wide_teacher.network.get_submodule(name)
        assert torch.equal(own.running_mean, theirs.running_mean) is same  # type: ignore[arg-type]
        assert not torch.equal(own.weight, theirs.weight)  # type: ignore[arg-type]
    student.train()  # held while it was trained, and free again
    assert student.network.get_submodule("1").training


@pytest.mark.parametrize(("held", "same"), [(None, False), (True, True)])
def test_another_student_learns_its_own_statistics_unless_told_not_to(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, held: bool | None, same: bool
) -> None:
    student = run(teacher, transfer, tmp_path, replace(QUICK, held_statistics=held)).student
    mean = student.network.get_submodule("1").running_mean
    assert torch.equal(mean, torch.zeros(4)) is same  # type: ignore[arg-type]


def test_a_factored_student_is_the_same_when_training_is_killed_and_resumed(
    wide_teacher: Teacher,
    wide_transfer: TransferSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(QUICK, evaluations=1)
    resumed, whole = killed_and_resumed(
        lambda folder: run_factored(wide_teacher, wide_transfer, tmp_path / folder, settings),
        7,
        monkeypatch,
    )
    assert resumed.resumed_at == 7
    assert resumed.student.digest == whole.student.digest


def test_stored_views_have_no_layers_to_imitate(
    wide_teacher: Teacher, wide_transfer: TransferSet, tmp_path: Path
) -> None:
    settings = replace(QUICK, teacher_view="stored")
    assert settings.resolved("factored").layer_weight == 0.0
    run_factored(wide_teacher, wide_transfer, tmp_path, settings)


def test_layers_of_another_student_cannot_be_imitated(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    with pytest.raises(MethodError, match="leave layer_weight out"):
        run(teacher, transfer, tmp_path, replace(QUICK, layer_weight=1.0))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"feature_weight": -1.0}, "feature_weight is -1.0; expected at least 0"),
        ({"layer_weight": -1.0}, "layer_weight is -1.0; expected at least 0"),
        ({"procedural_share": 1.5}, "procedural_share is 1.5; expected a share in"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0; expected more than 0"),
        ({"feature_weight": 1.0, "teacher_view": "stored"}, "stored views have no features"),
        ({"layer_weight": 1.0, "teacher_view": "stored"}, "stored views have no features"),
    ],
)
def test_wrong_hints_and_clips_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        KDSettings(**changes)
