"""Arms and stages, trained under one budget and held against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hydistill_edge.errors import UsageError
from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods import hidfd, kd3
from hydistill_edge.methods.comparison import DOCUMENT, measure, shifted
from hydistill_edge.methods.pool import Pool
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.projector import ProjectorForm
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher

CLASSES = ("dark", "light", "none")
CPU = torch.device("cpu")
COMMON: dict[str, Any] = {
    "batch": 8, "evaluations": 1, "precision": "float32", "checkpoint_seconds": 0.0,
    "augment": AugmentSettings(), "projector": ProjectorForm(kind="pointwise"), "holdout": 0.2,
    "compare": True,
}  # fmt: skip
HIDFD = hidfd.HiDFDSettings(steps=4, inflation=2, usual_images=300, **COMMON)
KD3 = kd3.KD3Settings(epochs=2, embedding=4, **COMMON)


def brightness_network(offset: float = 0.0) -> nn.Sequential:
    """Return dark for pixels below the middle and light above it; never the third class."""
    conv, layer = nn.Conv2d(1, 2, 1), nn.Linear(2, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        conv.bias.zero_()
        layer.weight.copy_(torch.tensor([[-6.0, 6.0], [6.0, -6.0], [0.0, 0.0]]))
        layer.bias.copy_(torch.tensor([offset, 0.0, -90.0]))
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    spec = InputSpec(8, 8, 1, (0.5,), (0.25,))
    return Teacher.wrap(brightness_network(), classes=CLASSES, spec=spec)


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


def student_of(network: nn.Module) -> Student:
    return Student(network, architecture="", classes=CLASSES, channels=1, size=(8, 8))


def new_student() -> Student:
    return Student.create("resnet8", classes=CLASSES, channels=1, size=(8, 8), width=0.125, seed=1)


def test_student_that_always_says_dark_is_right_on_dark_images_alone(
    teacher: Teacher, transfer: TransferSet
) -> None:
    rows = np.arange(len(transfer))
    found = measure(
        student_of(brightness_network(1e6)), teacher, Pool(transfer, CPU), rows, batch=7
    )
    dark = int((transfer.pseudo_labels == 0).sum())
    assert found["agreement"] == pytest.approx(dark / 60)
    assert found["per_class"] == [
        {"class": "dark", "n": dark, "agreement": 1.0},
        {"class": "light", "n": 60 - dark, "agreement": 0.0},
        {"class": "none", "n": 0, "agreement": None},
    ]
    assert found["worst_class"]["class"] == "light"


def test_shifted_images_are_asked_of_both_networks(teacher: Teacher, transfer: TransferSet) -> None:
    rows = np.arange(len(transfer))
    twin = student_of(nn.Sequential(nn.Identity(), brightness_network()))
    found = measure(twin, teacher, Pool(transfer, CPU), rows, batch=60)
    assert found["shifted_agreement"] == 1.0  # both see them darker, and say so


def test_shift_is_flatter_darker_and_the_same_each_time() -> None:
    images = torch.full((2, 1, 64, 64), 255, dtype=torch.uint8)
    first, second = (shifted(images, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.mean().item() == pytest.approx(0.7 * 0.5 + 0.5 - 0.1, abs=0.01)
    assert first.std().item() == pytest.approx(0.04, abs=0.01)


def test_arms_are_compared_with_the_gate_to_a_larger_stage(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    found = hidfd.distill(teacher, new_student(), transfer, HIDFD, workdir=tmp_path, seed=2)
    told = found.documents[DOCUMENT]
    assert (told["of"], [row["name"] for row in told["rows"]]) == ("arms", list(hidfd.ARMS))
    assert {row["steps"] for row in told["rows"]} == {4}
    assert told["rows"][2]["agreement"] == pytest.approx(found.holdout_agreement)
    assert told["gate"]["arms"] == {row["name"]: row["agreement"] for row in told["rows"]}
    assert found.documents["hidfd.json"]["data_reduction"] == {
        "collected": 30, "usual": 300, "share": 0.1,
    }  # fmt: skip


def test_arms_of_a_comparison_are_those_that_are_trained_alone(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    def run(settings: hidfd.HiDFDSettings, name: str) -> Any:
        folder = tmp_path / name
        return hidfd.distill(teacher, new_student(), transfer, settings, workdir=folder, seed=2)

    told = run(HIDFD, "all").documents[DOCUMENT]["rows"][0]
    alone = run(replace(HIDFD, compare=False, arm="synthetic"), "alone")
    assert told["name"] == "synthetic"
    assert told["agreement"] == pytest.approx(alone.holdout_agreement)


def test_stages_are_compared_up_to_the_whole_method(
    teacher: Teacher, transfer: TransferSet, tmp_path: Path
) -> None:
    found = kd3.distill(teacher, new_student(), transfer, KD3, workdir=tmp_path, seed=2)
    told = found.documents[DOCUMENT]
    names = ["all of the pool", "+ selection", "+ weights", "+ mixing"]
    assert [row["name"] for row in told["rows"]] == names
    assert told["rows"][0]["what"] == "48 of 48 images in the last epoch"
    assert told["rows"][-1]["agreement"] == pytest.approx(found.holdout_agreement)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (hidfd.HiDFDSettings, {"arm": "collected", "compare": True}, "leave it at hybrid"),
        (hidfd.HiDFDSettings, {"usual_images": 0}, "usual_images is 0"),
        (kd3.KD3Settings, {"mixing": False, "compare": True}, "compare trains the stages itself"),
    ],
    ids=["arm", "usual", "stages"],
)
def test_comparison_is_refused_when_the_settings_contradict_it(
    kind: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        kind(**changes)
