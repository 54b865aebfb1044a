"""What the student stage makes of a method's outcome."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hydistill_edge.build import build
from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.methods.distilled import Distilled
from hydistill_edge.methods.pool import split
from hydistill_edge.models import reconstruction
from hydistill_edge.models.factoring import factor
from hydistill_edge.models.reconstruction import reconstruct
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.recipe import METHODS, Recipe
from hydistill_edge.stages import student as stage


def work(method: str) -> Any:
    recipe = SimpleNamespace(
        method=method,
        student=SimpleNamespace(architecture="zoo:convnet3", width=0.1),
        training="settings",
        seed=3,
        image_size=lambda: (8, 8, 1),
        class_names=lambda: ("a", "b"),
    )
    given = {"teacher": "teacher", "transfer": "transfer", "torch_device": "cpu", "shared": None}
    return SimpleNamespace(recipe=recipe, report=lambda *_: None, **given)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_of_the_table_can_be_called_alike(name: str) -> None:
    distill = stage._method(name)
    asked = list(distill.__annotations__)
    assert {"teacher", "student", "transfer", "settings"} <= set(asked[:4])
    assert {"workdir", "seed", "device", "progress"} <= set(asked)


@pytest.mark.parametrize(("made", "share"), [("slimmed", 0.6), ("factored", 0.9)])
def test_reduced_student_runs_everything_after_training_when_its_code_is_a_file(
    quick: None, tiny_inputs: Any, tmp_path: Path, made: str, share: float
) -> None:
    (tmp_path / "net.py").write_text(
        "from hydistill_edge.models.zoo import create_network\n\n"
        "def build(width):\n"
        "    return create_network('resnet8', classes=4, channels=1, size=(8, 8), width=width)\n"
    )
    teacher = {"architecture": "net.py:build", "options": {"width": 0.25}}
    student = {"architecture": made, "macs_share": share, "width": None}
    path = tiny_inputs.recipe(tmp_path / "recipe.yaml", teacher=teacher, student=student)
    result = build(Recipe.load(path), out=tmp_path / "run")
    assert result.summary["student"]["arch"].startswith(f"{made}:")
    assert result.summary["student"]["macs"] <= share * result.summary["teacher"]["macs"]
    assert len(list((result.path / "bundle").iterdir())) == 1


def test_factored_student_is_fitted_to_images_that_are_not_held_out(
    tiny_inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def distill(
        teacher: Teacher, student: Student, transfer: TransferSet, settings: Any, **options: Any
    ) -> Distilled:
        _, held_out = split(transfer, settings.holdout, options["seed"])
        given.update(teacher=teacher, transfer=transfer, held_out=held_out, student=student)
        raise MethodError("seen enough")

    def watched(student: Student, teacher: Teacher, images: Any) -> None:
        given["images"] = images
        reconstruct(student, teacher, images)

    monkeypatch.setattr(stage, "_method", lambda _: distill)
    monkeypatch.setattr(reconstruction, "reconstruct", watched)
    asked = {"architecture": "factored", "macs_share": 0.6, "width": None}
    path = tiny_inputs.recipe(tmp_path / "recipe.yaml", student=asked)
    with pytest.raises(MethodError, match="seen enough"):
        build(Recipe.load(path), out=tmp_path / "run")
    transfer, held_out = given["transfer"], given["held_out"]
    shown = {image.tobytes() for image in given["images"].permute(0, 2, 3, 1).numpy()}
    hidden = {image.tobytes() for image in transfer.images(held_out)}
    assert shown
    assert not shown & hidden
    truncated = factor(given["teacher"], macs_share=0.6, channels=transfer.channels).eval()
    images = torch.from_numpy(transfer.images(held_out)).permute(0, 3, 1, 2)
    with torch.no_grad():
        exact = given["teacher"](images)
        before, after = (
            float((student(images) - exact).square().mean())
            for student in (truncated, given["student"].eval())
        )
    assert after < before


@pytest.mark.parametrize(
    ("made", "told"), [("slimmed", "comes down to"), ("factored", "cannot be factored")]
)
def test_teacher_that_cannot_be_made_so_small_is_refused_before_images_are_made(
    tiny_inputs: Any, tmp_path: Path, made: str, told: str
) -> None:
    student = {"architecture": made, "macs_share": 0.0001, "width": None}
    path = tiny_inputs.recipe(tmp_path / "recipe.yaml", student=student)
    with pytest.raises((UsageError, MethodError), match=told):
        build(Recipe.load(path), out=tmp_path / "run")
    assert not (tmp_path / "run" / "transfer").exists()


def test_documents_of_a_method_lie_beside_its_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distill(
        teacher: str, student: Student, transfer: str, settings: str, **options: Any
    ) -> Distilled:
        assert (teacher, transfer, settings, options["seed"]) == (
            *("teacher", "transfer", "settings"),
            3,
        )
        rows = np.array([4, 5])
        facts: dict[str, Any] = {"steps": 9, "best_step": 8, "resumed_at": 0, "seconds": 1.0}
        more = {"documents": {"keys.json": {"layers": []}}, "networks": {"beside": student}}
        return Distilled(student, [], 0.5, rows, **facts, **more)

    monkeypatch.setattr(stage, "_method", {"rtk": distill}.__getitem__)
    student, facts, _history = stage._distill(work("rtk"), tmp_path)
    assert (student.size, facts["best_step"]) == ((8, 8), 8)
    assert json.loads((tmp_path / "keys.json").read_text()) == {"layers": []}
    assert json.loads((tmp_path / "holdout.json").read_text()) == {"rows": [4, 5]}
    assert Student.load(tmp_path / "beside").digest == student.digest
