"""INFER from a few images to a student, on tiny networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hydistill_edge.errors import MethodError, TransferSetError, UsageError
from hydistill_edge.images.augment import mixup
from hydistill_edge.images.compensated_set import CompensatedSet
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods import infer
from hydistill_edge.methods.distilled import Distilled
from hydistill_edge.methods.infer import InferSettings, distill, mixed_logits, soft_label_loss
from hydistill_edge.methods.infer_baseline import class_specific
from hydistill_edge.methods.infer_set import (
    BESIDE,
    MadeSet,
    ask,
    beside,
    make_set,
    open_ensemble,
    write_transfer,
)
from hydistill_edge.methods.infer_squeeze import squeeze_settings
from hydistill_edge.models.ensemble import Ensemble
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.logits import kd_kl
from hydistill_edge.synthesis.compensator import optimize_compensator
from hydistill_edge.synthesis.infer_settings import CompensatorSettings

CLASSES = ("dark", "grey", "light")
SET = CompensatorSettings(
    ipc=12,
    networks=("resnet8",),
    width=0.25,
    squeeze_epochs=2,
    iterations=3,
    precision="float32",
    flip=False,
)
QUICK = InferSettings(
    steps=12,
    batch=16,
    evaluations=2,
    precision="float32",
    checkpoint_seconds=0.0,
    flip=False,
    mapped=3,
)


class Killed(BaseException):
    """Stands for kill -9."""


def draw_images(count: int) -> np.ndarray:
    choice = np.random.default_rng(0)
    level = np.array([50, 128, 206])[np.arange(count) % 3][:, None, None, None]
    return (level + choice.integers(-45, 45, (count, 8, 8, 1))).astype(np.uint8)


def new_teacher(*, norm: bool = True) -> Teacher:
    """Tells three levels of light by the mean, behind a BatchNorm that has seen the images."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2) if norm else nn.Identity())
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)])
    weights = network.state_dict()
    weights["0.weight"].copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    weights["0.bias"].zero_()
    weights["4.weight"].copy_(torch.tensor([[-3.0, 3.0], [0.0, 0.0], [3.0, -3.0]]))
    weights["4.bias"].copy_(torch.tensor([0.0, 3.0, 0.0]))
    teacher = Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.fill_(1.2)  # type: ignore[union-attr]
    return teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return new_teacher()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> MadeSet:
    folder = tmp_path_factory.mktemp("made")
    return make_set(
        teacher,
        draw_images(48),
        settings=SET,
        folder=folder / "set",
        workdir=folder / "work",
        ids=[f"photo-{row}" for row in range(48)],
        seed=1,
    )


@pytest.fixture(scope="module")
def transfer(
    tmp_path_factory: pytest.TempPathFactory, made: MadeSet, teacher: Teacher
) -> TransferSet:
    folder = tmp_path_factory.mktemp("written") / "transfer"
    return write_transfer(folder, made.distilled, teacher)


def new_student() -> Student:
    return Student.create("resnet8", classes=CLASSES, channels=1, size=(8, 8), width=0.25, seed=3)


def run(
    teacher: Teacher, transfer: TransferSet, workdir: Path, settings: InferSettings = QUICK
) -> Distilled:
    return distill(teacher, new_student(), transfer, settings, workdir=workdir, seed=2)


def test_set_has_the_images_that_the_budget_buys(made: MadeSet, teacher: Teacher) -> None:
    told = made.distilled.manifest
    assert (told["natural"], told["compensators"], told["count"]) == (21, 14, 63)
    assert told["budget"]["natural"] == 7
    assert told["budget"]["stated"]["natural"] == told["bytes"]["natural"] == 21 * 64
    assert told["budget"]["stated"]["labels"] == told["bytes"]["labels"]
    assert told["bytes"]["compensators"] == 14 * 64 + 14 * 4  # and one scale each
    assert (made.distilled.images(range(21)) == draw_images(48)[made.rows]).all()
    named = ask(Ensemble([teacher]), made.distilled.images(range(21))).argmax(axis=1)
    assert (named == made.distilled.classes[:21]).all()


def test_manifest_tells_networks_realism_coverage_nearness_and_privacy(made: MadeSet) -> None:
    told = made.distilled.manifest
    assert [network["name"] for network in told["networks"]] == ["teacher", "1-resnet8"]
    assert told["networks"][0]["normalization"] == {"mean": [0.5], "std": [0.25]}
    assert told["realism"]["natural"]["named_as_intended"] > 0.5
    assert set(told["realism"]["compensated"]) == {"named_as_intended", "bn_distance"}
    assert 0 <= told["coverage"]["compensated"]["coverage"] <= 1
    assert told["nearest_real"]["distance_min"] >= 0
    assert len(told["logit_std"]) == 2
    assert "real images" in told["privacy"]
    assert told["natural_ids"] == [f"photo-{row}" for row in made.rows.tolist()]
    assert len(told["compensator_records"]) == 14


def test_static_labels_are_the_mean_logits_of_the_networks(made: MadeSet, teacher: Teacher) -> None:
    ensemble = open_ensemble(made.distilled, teacher)
    images = made.distilled.images(np.arange(len(made.distilled)))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = sum(network(pixels).double() for network in ensemble.networks) / 2
    found = made.distilled.logits(np.arange(len(images)))
    assert found == pytest.approx(expected.detach().numpy(), rel=2e-3, abs=2e-3)


def test_set_is_the_same_when_it_is_made_again_from_its_checkpoints(
    made: MadeSet, teacher: Teacher, tmp_path: Path
) -> None:
    work = Path(str(made.distilled.folder)).with_name("work")
    told: list[tuple[int, int]] = []
    again = make_set(
        teacher,
        draw_images(48),
        settings=SET,
        folder=tmp_path / "set",
        workdir=work,
        ids=[f"photo-{row}" for row in range(48)],
        seed=1,
        progress=lambda done, total, _: told.append((done, total)),
    )
    assert again.distilled.manifest["digest"] == made.distilled.manifest["digest"]
    assert all(done <= total for done, total in told)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"ipc": 1}, MethodError, "ipc 1 buys 0 natural images.*give ipc 2"),
        ({"ipc": 40}, MethodError, "too few real images of some classes: dark 16 of 24"),
        ({"networks": ("convnet3",)}, MethodError, "zoo:convnet3: has no BatchNorm"),
        ({"networks": ("resnet9000",)}, UsageError, "no network"),
    ],
    ids=["budget", "images", "no-norm", "unknown"],
)
def test_set_is_refused_before_anything_is_trained(
    teacher: Teacher, tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        make_set(
            teacher,
            draw_images(48),
            settings=replace(SET, **change),
            folder=tmp_path / "set",
            workdir=tmp_path / "work",
        )
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.glob("work/*/checkpoint*"))


def test_teacher_without_batch_norm_is_refused_unless_it_is_left_out(tmp_path: Path) -> None:
    bare = new_teacher(norm=False)

    def make(settings: CompensatorSettings) -> MadeSet:
        return make_set(
            bare, draw_images(24), settings=settings, folder=tmp_path / "s", workdir=tmp_path
        )

    with pytest.raises(MethodError, match=r"wrapped: has no BatchNorm.*teacher: false"):
        make(SET)
    found = make(replace(SET, teacher=False, ipc=4, squeeze_epochs=1, iterations=1))
    assert [network["name"] for network in found.distilled.manifest["networks"]] == ["1-resnet8"]


def test_labels_of_the_user_decide_the_class_where_they_are_known(
    teacher: Teacher, tmp_path: Path
) -> None:
    images = draw_images(24)
    labels = np.full(24, -1)
    labels[:12] = (np.arange(12) + 1) % 3
    found = make_set(
        teacher,
        images,
        labels,
        settings=replace(SET, networks=(), ipc=8, iterations=1, choice="confident"),
        folder=tmp_path / "set",
        workdir=tmp_path,
    )
    known = found.rows < 12
    natural = found.distilled.classes[: len(found.rows)]
    assert (natural[known] == labels[found.rows[known]]).all()
    assert found.distilled.manifest["budget"]["networks"] == 1


def test_stress_sets_have_a_long_tail_and_wrong_classes(teacher: Teacher, tmp_path: Path) -> None:
    found = make_set(
        teacher,
        draw_images(90),
        settings=replace(SET, networks=(), iterations=1, long_tail=4.0, label_noise=0.3),
        folder=tmp_path / "set",
        workdir=tmp_path,
    ).distilled
    natural = found.classes[: found.natural]
    counts = np.bincount(natural).tolist()
    assert counts[0] == 9
    assert counts[0] > counts[1] > counts[2]
    named = ask(Ensemble([teacher]), found.images(np.arange(found.natural))).argmax(axis=1)
    assert 0.05 < (named != natural).mean() < 0.6
    assert len(found) == 2 * found.natural


def test_an_image_that_stands_twice_is_drawn_once(teacher: Teacher, tmp_path: Path) -> None:
    images = np.concatenate([draw_images(24)] * 2)
    found = make_set(
        teacher,
        images,
        settings=replace(SET, networks=(), ipc=10, natural=7, iterations=1),
        folder=tmp_path / "set",
        workdir=tmp_path,
    )
    assert len({image.tobytes() for image in images[found.rows]}) == 21


def test_transfer_set_has_all_images_of_the_compact_set_and_it_lies_beside(
    transfer: TransferSet, made: MadeSet, teacher: Teacher
) -> None:
    origins, counts = np.unique(transfer.origins, return_counts=True)
    assert dict(zip(origins.tolist(), counts.tolist(), strict=True)) == {"derived": 42, "real": 21}
    whole = made.distilled.images(np.arange(63))
    assert {i.tobytes() for i in transfer.images(np.arange(63))} == {i.tobytes() for i in whole}
    assert transfer.logits([0])[0] == pytest.approx(
        ask(Ensemble([teacher]), transfer.images([0]))[0], abs=1e-5
    )
    assert not transfer.may_ship.any()
    found = beside(transfer)
    assert found is not None
    found.verify()
    assert found.folder == transfer.folder / BESIDE


@pytest.mark.parametrize("labels", ["static", "dynamic"])
def test_student_is_trained_and_says_on_what(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, labels: Any
) -> None:
    settings = replace(QUICK, labels=labels, steps=60, checkpoint_seconds=30.0)
    found = run(teacher, transfer, tmp_path, settings)
    told = json.loads(json.dumps(found.documents["infer.json"]))
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert (told["labels"], told["networks"], told["steps"]) == (labels, 2, 60)
    assert told["images"] == {
        "natural": 21,
        "compensated": 42,
        "trained_on": 63 - len(found.holdout_rows),
    }
    assert told["boundary"]["student"]["images"] == len(found.holdout_rows)
    assert len(told["map"]["x"]) == len(told["map"]["kind"]) == len(told["map"]["class"])
    kinds = [row["kind"] for row in told["map"]["kinds"]]
    assert kinds == list(dict.fromkeys(told["map"]["kind"]))
    assert kinds == ["natural", "compensated", "class-specific"]
    assert told["map"]["kinds"][2]["images"] == 9  # three of each class


def test_images_stand_for_the_class_that_they_were_made_for(transfer: TransferSet) -> None:
    distilled = beside(transfer)
    assert distilled is not None
    places = np.arange(len(transfer))[::-1].copy()
    places[0] = -1
    found = infer._intended(transfer, distilled, places)
    assert found[0] == transfer.pseudo_labels[0]
    np.testing.assert_array_equal(found[1:], distilled.classes[places[1:]])
    np.testing.assert_array_equal(infer._intended(transfer, None, places), transfer.pseudo_labels)


def test_class_specific_images_are_those_of_a_slot_with_one_tensor_each(
    made: MadeSet, teacher: Teacher
) -> None:
    found = class_specific(made.distilled, open_ensemble(made.distilled, teacher), slots=2, seed=4)
    assert found.images.shape == (2 * 2 * 3, 8, 8, 1)  # slots, networks, classes
    assert found.classes.tolist() == [0, 1, 2] * 4
    again = class_specific(made.distilled, open_ensemble(made.distilled, teacher), slots=1, seed=4)
    np.testing.assert_array_equal(again.images, found.images[:6])
    natural = made.distilled.images(np.flatnonzero(made.distilled.base_slots == 0))
    added = found.images[:3].astype(np.int64) - natural
    assert added.any(axis=(1, 2, 3)).all()
    assert (added[0] != added[1]).any()


def test_tensor_per_class_is_the_compensator_when_there_is_one_class(teacher: Teacher) -> None:
    images = torch.from_numpy(draw_images(4)).permute(0, 3, 1, 2).float() / 255
    classes = torch.arange(4) % 3

    def optimize(count: int, **more: Any) -> torch.Tensor:
        part = images[:count], classes[:count]
        return optimize_compensator(teacher, *part, replace(SET, block=2), seed=[5], **more)[0]

    torch.testing.assert_close(optimize(1, per_class=True), optimize(1), rtol=0, atol=0)
    assert optimize(4, per_class=True).shape == (4, 1, 8, 8)
    assert optimize(4).shape == (1, 1, 8, 8)


def test_static_and_dynamic_labels_train_differently_and_repeat(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    def digest(name: str, **change: Any) -> str:
        return run(teacher, transfer, tmp_path / name, replace(QUICK, **change)).student.digest

    plain = digest("a")
    assert plain == digest("b")
    for name, change in {
        "labels": {"labels": "dynamic"},
        "alpha": {"mixup_alpha": 0.0},
        "share": {"natural_share": 0.9},
        "heat": {"temperature": 4.0},
    }.items():
        assert digest(name, **change) != plain, name


def test_student_is_the_same_when_training_is_killed_and_resumed(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(range(8))

    def dying(*args: Any, **kwargs: Any) -> torch.Tensor:
        if left.pop() == 0:
            raise Killed
        return kd_kl(*args, **kwargs)

    monkeypatch.setattr(infer, "kd_kl", dying)
    with pytest.raises(Killed):
        run(teacher, transfer, tmp_path / "cut")
    monkeypatch.undo()
    resumed = run(teacher, transfer, tmp_path / "cut")
    assert resumed.resumed_at == 7
    whole = run(teacher, transfer, tmp_path / "whole")
    assert resumed.student.digest == whole.student.digest
    assert resumed.documents == whole.documents


def test_nothing_derived_from_a_held_out_image_is_trained_on(
    teacher: Teacher, transfer: TransferSet, made: MadeSet, tmp_path: Path
) -> None:
    held_out = run(teacher, transfer, tmp_path).holdout_rows
    bases = np.array([base_of(transfer, made.distilled, row) for row in range(len(transfer))])
    trained_on = np.setdiff1d(np.arange(len(transfer)), held_out)
    assert not set(bases[held_out]) & set(bases[trained_on])
    assert (transfer.origins[held_out] == "derived").sum() == 2 * (
        transfer.origins[held_out] == "real"
    ).sum()


def base_of(transfer: TransferSet, distilled: CompensatedSet, row: int) -> int:
    kind, _, place = transfer.ids[row].partition(":")
    return int(place.partition("+")[0]) if kind == "infer" else int(place)


def test_labels_are_those_of_the_compact_set_whatever_the_order(
    teacher: Teacher, made: MadeSet, tmp_path: Path
) -> None:
    order = np.arange(63)[::-1]
    images = made.distilled.images(order)
    with TransferSetWriter(
        tmp_path / "set", size=(8, 8), channels=1, classes=CLASSES, teacher_digest=teacher.digest
    ) as writer:
        logits = ask(Ensemble([teacher]), images)
        writer.add(images, logits, origin="derived", ids=[str(row) for row in order])
    transfer = TransferSet.open(tmp_path / "set")
    places = infer._places(transfer, made.distilled)
    assert places.tolist() == order.tolist()
    stored = infer._stored_labels(transfer, made.distilled, places).numpy()
    assert (stored == made.distilled.logits(order)).all()
    assert (
        infer._stored_labels(transfer, None, places).numpy() == transfer.logits(range(63))
    ).all()


def test_plain_transfer_set_is_trained_on_with_its_own_logits(
    teacher: Teacher, transfer: TransferSet, made: MadeSet, tmp_path: Path
) -> None:
    alone = CompensatedSet.of(
        draw_images(30),
        np.zeros((0, 8, 8, 1), np.float32),
        base_classes=np.arange(30) % 3,
        base_slots=np.arange(30) // 3,
        compensator_slots=[],
        compensator_networks=[],
        class_names=CLASSES,
    )
    plain = write_transfer(tmp_path / "plain", alone, teacher)
    assert beside(plain) is None
    found = run(teacher, plain, tmp_path / "work")
    assert found.documents["infer.json"]["networks"] is None
    dynamic = run(teacher, plain, tmp_path / "dynamic", replace(QUICK, labels="dynamic"))
    assert dynamic.student.digest != found.student.digest


def test_static_labels_are_refused_when_the_set_was_made_without(
    teacher: Teacher, tmp_path: Path
) -> None:
    made = make_set(
        teacher,
        draw_images(24),
        settings=replace(SET, networks=(), ipc=4, iterations=1, labels="dynamic"),
        folder=tmp_path / "set",
        workdir=tmp_path,
    )
    written = write_transfer(tmp_path / "transfer", made.distilled, teacher)
    with pytest.raises(TransferSetError, match="train with labels dynamic"):
        run(teacher, written, tmp_path / "work")
    settings = replace(QUICK, labels="dynamic", steps=2)
    assert run(teacher, written, tmp_path / "work", settings).steps == 2


def test_networks_are_refused_with_another_teacher(made: MadeSet) -> None:
    other = new_teacher(norm=False)
    with pytest.raises(MethodError, match="was not made with this teacher"):
        open_ensemble(made.distilled, other)


def test_mixed_labels_are_the_mixed_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    images = logits[:, :1, None, None].expand(6, 1, 2, 2)
    mixed = mixup(images, alpha=0.8, generator=generator, shared=True)
    assert torch.allclose(mixed_logits(logits, mixed)[:, 0], mixed.images[:, 0, 0, 0])
    lam = float(mixed.lam[0])
    expected = lam * logits + (1 - lam) * logits[mixed.permutation]
    assert torch.allclose(mixed_logits(logits, mixed), expected, atol=1e-6)


@pytest.mark.parametrize(("optimizer", "factor"), [("adamw", 1.0), ("sgd", 900.0)])
def test_loss_has_the_squared_temperature_for_sgd_only(optimizer: Any, factor: float) -> None:
    student = np.array([[30.0, 0.0]])
    teacher = np.array([[0.0, 60.0]])
    p = np.exp(student / 30) / np.exp(student / 30).sum()
    q = np.exp(teacher / 30) / np.exp(teacher / 30).sum()
    found = soft_label_loss(
        torch.tensor(student), torch.tensor(teacher), InferSettings(optimizer=optimizer)
    )
    assert found.item() == pytest.approx(factor * float((q * np.log(q / p)).sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "copies", "steps"),
    [
        ({}, 5, 400 * 4),
        ({"labels": "dynamic"}, 5, 80 * 4),
        ({"epochs": 3}, 5, 12),
        ({"steps": 7, "epochs": 3}, 5, 7),
    ],
    ids=["static", "dynamic", "epochs", "steps"],
)
def test_steps_are_the_published_passes(change: Any, copies: int, steps: int) -> None:
    assert InferSettings(**change).steps_for(200, copies=copies) == steps


def test_defaults_are_the_published_ones() -> None:
    found = asdict(InferSettings())
    expected = {"temperature": 30.0, "mixup_alpha": 0.8, "batch": 64, "optimizer": "adamw"}
    expected |= {"learning_rate": 1e-3, "weight_decay": 0.01, "schedule": "cosine"}
    assert {name: found[name] for name in expected} == expected
    assert InferSettings().augmentation((32, 32)).crop_pad == 4
    plan = squeeze_settings(5000, (32, 32), CompensatorSettings())
    assert (plan.steps, plan.batch, plan.schedule) == (200 * 40, 128, "cosine")
    assert (plan.learning_rate, plan.weight_decay, plan.optimizer) == (0.1, 5e-4, "sgd")


def test_settings_list_every_problem_when_values_are_out_of_range() -> None:
    with pytest.raises(
        UsageError, match=r"infer settings: batch is 1.*steps.*labels \"hard\".*mixup_alpha is -1"
    ):
        InferSettings(labels="hard", batch=1, mixup_alpha=-1, steps=0)  # type: ignore[arg-type]


def test_progress_of_the_set_reaches_the_end(teacher: Teacher, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report: Callable[..., None] = lambda done, total, _: told.append((done, total))  # noqa: E731
    make_set(
        teacher,
        draw_images(24),
        settings=replace(SET, ipc=4, squeeze_epochs=1),
        folder=tmp_path / "set",
        workdir=tmp_path / "work",
        progress=report,
    )
    assert told[-1][0] == told[-1][1]
    assert told == sorted(told)
