"""Distillation with representative teacher keys."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods import kd, rtk
from hydistill_edge.methods.distilled import Distilled
from hydistill_edge.methods.kd import GRADIENT_CLIP, RATES, KDSettings
from hydistill_edge.methods.rtk import LayerObjective, RTKSettings, distill
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.logits import kd_kl

CLASSES = ("dark", "light")
QUICK = RTKSettings(
    steps=24,
    batch=16,
    evaluations=2,
    precision="float32",
    checkpoint_seconds=0.0,
    flip=False,
    epochs=12,
    warmup_epochs=2,
    attention_width=8,
)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Tells light images from dark ones: positive weights all the way, balanced at mid-grey."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
            *(nn.AvgPool2d(2), nn.Conv2d(6, 5, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
        )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
        network[9].weight[0].mul_(-8.0)
        network[9].weight[1].mul_(8.0)
        network[9].bias.copy_(-(network(torch.zeros(1, 1, 8, 8))[0] - network[9].bias))
    return Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))


def new_student(seed: int = 0) -> Student:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        )
    return Student(network, architecture="", classes=CLASSES, channels=1, size=(8, 8))


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> TransferSet:
    choice = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("sets") / "transfer"
    with TransferSetWriter(
        folder, size=(8, 8), channels=1, classes=CLASSES, teacher_digest=teacher.digest
    ) as writer:
        for origin, count in (("real", 30), ("synthetic", 30)):
            level = choice.integers(40, 216, (count, 1, 1, 1))
            images = (level + choice.integers(-40, 40, (count, 8, 8, 1))).astype(np.uint8)
            logits = teacher(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
            ids = [f"{origin}-{number}" for number in range(count)]
            writer.add(images, logits, origin=origin, ids=ids)  # type: ignore[arg-type]
    return TransferSet.open(folder)


def run(
    teacher: Teacher, transfer: TransferSet, workdir: Path, settings: RTKSettings = QUICK
) -> Distilled:
    return distill(teacher, new_student(), transfer, settings, workdir=workdir, seed=2)


def keys_of(distilled: Distilled) -> dict[str, Any]:
    """The document as it comes back from its file."""
    found: dict[str, Any] = json.loads(json.dumps(distilled.documents["keys.json"]))
    return found


def test_student_learns_to_agree_with_teacher(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    settings = replace(QUICK, steps=80, schedule="one_cycle", checkpoint_seconds=30.0)
    distilled = run(teacher, transfer, tmp_path, settings)
    assert distilled.holdout_agreement >= 0.8
    assert distilled.history[-1]["holdout_kl"] < distilled.history[0]["holdout_kl"]


def test_student_is_that_of_kd_when_layers_have_no_weight(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    alone = replace(QUICK, beta=0.0, kd_weight=1.0, learning_rate=0.05)
    same = {field.name: getattr(alone, field.name) for field in fields(KDSettings)}
    plain = KDSettings(**{**same, "augment": alone.augmentation((8, 8))})
    expected = kd.distill(teacher, new_student(), transfer, plain, workdir=tmp_path / "kd", seed=2)
    found = run(teacher, transfer, tmp_path / "alone", alone)
    layered = run(teacher, transfer, tmp_path / "layered", replace(alone, beta=200.0))
    assert found.student.digest == expected.student.digest
    assert layered.student.digest != expected.student.digest


def test_all_keys_are_a_threshold_of_zero_to_the_last_bit(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    outcomes = [
        run(teacher, transfer, tmp_path / name, replace(QUICK, **change))  # type: ignore[arg-type]
        for name, change in {
            "zero": {"threshold": 0.0},
            "all": {"variant": "all_keys"},
            "chosen": {},
        }.items()
    ]
    zero, everything, chosen = (outcome.student.digest for outcome in outcomes)
    assert zero == everything != chosen


@pytest.mark.parametrize("variant", ["rtk", "afd"])
@pytest.mark.parametrize("step", [1, 13])
def test_student_and_keys_are_the_same_when_training_is_killed_and_resumed(
    teacher: Teacher,
    transfer: TransferSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    variant: str,
) -> None:
    def dying(*args: Any, **kwargs: Any) -> torch.Tensor:
        if left.pop() == 0:
            raise Killed
        return kd_kl(*args, **kwargs)

    settings: RTKSettings = replace(QUICK, variant=variant, channel_share=0.5, evaluations=1)  # type: ignore[arg-type]
    left = list(range(step + 1))
    monkeypatch.setattr(rtk, "kd_kl", dying)
    with pytest.raises(Killed):
        run(teacher, transfer, tmp_path / "cut", settings)
    monkeypatch.undo()
    resumed = run(teacher, transfer, tmp_path / "cut", settings)
    whole = run(teacher, transfer, tmp_path / "whole", settings)
    assert resumed.resumed_at == step
    assert resumed.student.digest == whole.student.digest
    assert keys_of(resumed) == keys_of(whole)


def test_keys_tell_layers_influences_choice_and_history(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    keys = keys_of(run(teacher, transfer, tmp_path))
    shapes = {row["layer"]: row["shape"] for row in keys["layers"]}
    assert shapes == {"1": [4, 8, 8], "3": [6, 8, 8], "6": [5, 4, 4]}
    scores = [row["influence"] for row in keys["layers"]]
    kept = [place for place, row in enumerate(keys["layers"]) if row["chosen"]]
    assert 1 / 3 < sum(scores) / 3 < 1  # k = 1 of 2 student layers: above 1/T
    assert 0 < len(kept) < 3
    assert [entry["step"] for entry in keys["history"]] == list(range(2, 24, 2))
    assert keys["history"][-1]["chosen"] == kept
    assert np.shape(keys["attention"]["mean"]) == (2, 3)
    assert sum(row["images"] for row in keys["held_out"]["classes"]) == 6


def test_keys_have_a_map_of_each_kept_layer_and_class(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    settings = replace(QUICK, keys=("6",), holdout=0.5)
    distilled = run(teacher, transfer, tmp_path, settings)
    maps = keys_of(distilled)["maps"]
    rows = distilled.holdout_rows
    pixels = torch.from_numpy(transfer.images(rows)).permute(0, 3, 1, 2)
    seen = teacher.features(pixels, ["6"])
    classes = seen.logits.argmax(dim=1)
    squares = seen.taps["6"].detach().square().mean(dim=1)
    wanted = torch.stack([squares[classes == place].mean(dim=0) for place in classes.unique()])
    found = torch.tensor([entry["maps"][0] for entry in maps["classes"]])
    assert maps["layers"] == ["6"]
    assert sum(entry["images"] for entry in maps["classes"]) == len(rows)
    torch.testing.assert_close(found, wanted / wanted.max(), atol=1e-3, rtol=0)


def test_bytes_are_those_of_kept_maps_and_of_the_means_of_others(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    settings = replace(QUICK, keys=("6",), channel_share=0.4)
    keys = keys_of(run(teacher, transfer, tmp_path, settings))
    # All: 4 and 6 channels of 64 px, 5 of 16. Used: 2 of the 5, and 13 means.
    assert keys["bytes_per_image"] == {"all": 4 * (640 + 80), "used": 4 * (32 + 13)}
    assert [row["chosen"] for row in keys["layers"]] == [False, False, True]
    assert len(keys["layers"][2]["channels"]) == 2


def test_parent_method_keeps_all_layers_and_has_no_influence(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    keys = keys_of(run(teacher, transfer, tmp_path, replace(QUICK, variant="afd")))
    assert all(row["chosen"] and row["influence"] is None for row in keys["layers"])
    assert np.shape(keys["attention"]["mean"]) == (3, 2)
    assert keys["attention"]["rows"] == "teacher layers"
    np.testing.assert_allclose(np.sum(keys["attention"]["mean"], axis=1), 1.0, rtol=1e-5)


def test_nothing_of_the_attention_is_in_the_student(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    student = run(teacher, transfer, tmp_path).student
    assert list(student.state_dict()) == list(new_student().state_dict())
    assert not student.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("variant", ["rtk", "afd"])
def test_attention_and_student_learn_from_the_layers_alone(teacher: Teacher, variant: str) -> None:
    student = new_student().train()
    settings: RTKSettings = replace(QUICK, variant=variant)  # type: ignore[arg-type]
    layers = LayerObjective(student, teacher, settings)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    own = student.features(images, layers.student_taps)
    layers.loss(own.taps, teacher.features(images, layers.teacher_taps).taps, 0).backward()
    gradients = [
        parameter.grad
        for parameter in [*layers.parameters(), student.network[4].weight]  # type: ignore[index]
    ]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in gradients)
    assert sum(float(grad.abs().max()) > 0 for grad in gradients if grad is not None) >= 10


@pytest.mark.parametrize("renormalize", [True, False])
def test_total_weight_of_the_layers_is_level_when_keys_are_left_out(
    teacher: Teacher, renormalize: bool
) -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student = new_student().eval()
    settings = replace(QUICK, keys=("6",), beta=2.0, renormalize=renormalize)
    layers = LayerObjective(student, teacher, settings)
    own = student.features(images, layers.student_taps).taps
    seen = teacher.features(images, layers.teacher_taps).taps
    one = list(layers.teacher_taps).index("6")
    # One key of three: renormalized its weight is 1; else its attention, times three.
    share = layers.weights(list(own.values()), list(seen.values()))[:, :, one, None]
    share = torch.ones_like(share) if renormalize else 3 * share
    maps = list(own.values()), [seen["6"]]
    expected = 2 * rtk.rtk_loss(*maps, share, renormalize=False).item()
    assert layers.loss(own, seen, 0).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pair", "counts"),
    [(("wrn16_2", "vgg8"), (6, 5)), (("resnet8", "shufflenet_v2"), (3, 16))],
    ids=lambda value: "-".join(map(str, value)),
)
def test_any_pair_of_architectures_can_be_joined(
    pair: tuple[str, str], counts: tuple[int, int]
) -> None:
    made = [
        Student.create(name, classes=CLASSES, channels=1, size=(16, 16), width=0.25)
        for name in pair
    ]
    spec = InputSpec(16, 16, 1, (0.5,), (0.25,))
    large = Teacher.wrap(made[0].network, classes=CLASSES, spec=spec)
    layers = LayerObjective(made[1], large, replace(QUICK, attention_width=4))
    assert (len(layers.teacher_layers), len(layers.student_layers)) == counts
    images = torch.rand(4, 1, 16, 16)
    own = made[1].features(images, layers.student_taps)
    loss = layers.loss(own.taps, large.features(images, layers.teacher_taps).taps, 0)
    assert loss.item() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_taps": ("9",)}, "teacher taps 9: expected .* known: 0, 1, 2"),
        ({"student_taps": ("missing",)}, 'no module "missing"'),
        ({"keys": ("4",)}, 'no module "4" to tap; .*known, in order: 1, 3, 6'),
        ({"top_k": 3}, "top_k is 3 with 2 student layers"),
    ],
    ids=["vector", "unknown", "key", "top_k"],
)
def test_layers_are_refused_when_they_cannot_serve(
    teacher: Teacher, change: dict[str, Any], message: str
) -> None:
    with pytest.raises((MethodError, UsageError), match=message):
        LayerObjective(new_student(), teacher, replace(QUICK, **change))


def test_settings_list_every_problem_when_values_are_out_of_range() -> None:
    with pytest.raises(
        UsageError,
        match=r"rtk settings: batch is 1.*variant.*teacher_view.*feature_weight is 1.*use beta.*"
        r"layer_weight is 2.*"
        r"beta is -1.*freeze_share is 2",
    ):
        RTKSettings(
            batch=1,
            variant="x",
            teacher_view="stored",
            beta=-1,
            freeze_share=2,
            feature_weight=1,
            layer_weight=2,
        )  # type: ignore[arg-type]


def test_settings_are_refused_when_the_choice_is_frozen_before_it_begins() -> None:
    with pytest.raises(UsageError, match="no key would ever be chosen"):
        RTKSettings(epochs=10, warmup_epochs=10)


def test_a_student_that_is_its_teacher_factored_goes_by_small_steps() -> None:
    factored = RTKSettings().resolved("factored")
    assert factored.learning_rate == RATES["factored"]
    assert factored.gradient_clip == GRADIENT_CLIP
    assert not factored.layer_weight  # rtk has its own loss between layers


def test_defaults_are_the_published_and_proposed_ones() -> None:
    found = asdict(RTKSettings())
    expected = {"beta": 200.0, "kd_weight": 0.9, "temperature": 4.0, "attention_width": 128}
    expected |= {"epochs": 240, "warmup_epochs": 10, "freeze_share": 0.6, "threshold": 1.0}
    expected |= {"weight_decay": 5e-4, "batch": 64, "mixup_share": 0.0}
    assert {name: found[name] for name in expected} == expected
    assert RTKSettings().resolved("fresh").learning_rate == 0.05
    assert RTKSettings().augmentation((32, 32)).crop_pad == 4
    assert RTKSettings().augmentation((32, 32)).cutout == 0
