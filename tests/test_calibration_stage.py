"""The calibration stage: which images, why, and how good they are."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hydistill_edge.build import open_recipe
from hydistill_edge.calibration.choose import pixel_digest
from hydistill_edge.calibration.ranges import METHODS
from hydistill_edge.run_directory import RunDirectory
from hydistill_edge.stages import calibration, targets
from hydistill_edge.stages.bundle import _fit_reject
from hydistill_edge.stages.work import Work, quiet


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    return folder


@pytest.fixture
def work(run_copy: Path) -> Work:
    return Work(open_recipe(run_copy), RunDirectory(run_copy), quiet)


def test_choice_is_explained_and_is_what_the_artifacts_use(work: Work) -> None:
    images, choice = calibration.read_choice(work)
    used = json.loads(
        work.path("targets", work.planned[0].key, "calibration.json").read_text("utf-8")
    )

    assert pixel_digest(images) == choice["digest"] == used["digest"]
    assert len(images) == choice["count"] == sum(choice["per_class"].values())
    assert {pick["id"] for pick in choice["coverage"]["picks"]} == set(choice["ids"])
    assert 0 < choice["quality"]["score"] <= 1


def test_chosen_images_are_apart_from_parity_and_golden(work: Work) -> None:
    images, _ = calibration.read_choice(work)
    apart = np.concatenate([work.partition.parity, work.partition.golden])
    others = {image.tobytes() for image in work.transfer.images(apart)}
    assert not others & {image.tobytes() for image in images}


def test_reject_rule_leaves_out_the_images_that_ranges_were_taken_from(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "holdout.json").write_text('{"rows": [0, 1, 2]}')
    (tmp_path / "calibration.json").write_text('{"ids": ["line:1", "line:9"]}')
    transfer = SimpleNamespace(
        ids=["line:0", "line:1", "line:2", "line:3"],
        labels=np.full(4, -1),
        pseudo_labels=np.zeros(4, np.int64),
        origins=np.full(4, "real"),
        images=lambda rows: np.zeros((len(rows), 8, 8, 1), np.uint8),
    )
    runner = SimpleNamespace(run=lambda images: np.zeros((len(images), 2), np.float32))
    work: Any = SimpleNamespace(
        path=tmp_path.joinpath,
        transfer=transfer,
        recipe=SimpleNamespace(class_names=lambda: ("a", "b")),
    )
    built: Any = SimpleNamespace(
        folder=tmp_path,
        open=lambda: nullcontext(runner),
        planned=SimpleNamespace(profile=SimpleNamespace(batch=1)),
    )

    assert "2 real hold-out images" in _fit_reject(work, built).why


def test_images_come_from_the_student_when_asked(work: Work) -> None:
    section = work.recipe.calibration.model_copy(update={"source": "student"})
    asked = Work(work.recipe.model_copy(update={"calibration": section}), work.run, quiet)
    with work.run:
        calibration.run(asked)
    _, choice = calibration.read_choice(asked)
    assert choice["source"] == "student"
    assert all(name.startswith("student-inverted-") for name in choice["ids"])


def test_real_images_stand_in_for_batchnorm_and_are_apart(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: dict[str, object] = {}

    def refuse(_: object, **given: object) -> None:
        handed.update(given)
        raise InterruptedError

    monkeypatch.setattr("hydistill_edge.synthesis.inversion.invert", refuse)
    monkeypatch.setattr(calibration, "MIN_REFERENCE", 1)
    changes = {
        "calibration": work.recipe.calibration.model_copy(update={"source": "student"}),
        "parity": work.recipe.parity.model_copy(update={"images": 20}),  # leaves some over
    }
    asked = Work(work.recipe.model_copy(update=changes), work.run, quiet)
    with pytest.raises(InterruptedError), work.run:
        calibration.run(asked)
    rows = np.concatenate([asked.partition.parity, asked.partition.golden])
    taken = {image.tobytes() for image in work.transfer.images(rows)}
    given = handed["real"]
    assert isinstance(given, np.ndarray)
    assert len(given) > 0
    assert not taken & {image.tobytes() for image in given}


def test_quality_is_a_gate_of_every_int8_artifact(run_copy: Path) -> None:
    summary = json.loads((run_copy / "summary.json").read_text("utf-8"))
    for artifact in summary["artifacts"]:
        names = [gate["name"] for gate in artifact["gates"]]
        assert ("quality of the calibration images" in names) == (artifact["precision"] == "int8")


def test_range_estimator_is_the_one_nearest_to_the_student(
    work: Work, monkeypatch: pytest.MonkeyPatch, out: Path
) -> None:
    monkeypatch.setattr(targets, "LEAST_SELECTION", 1)
    planned = next(entry for entry in work.planned if entry.precision == "int8")
    targets.make(work, planned, out)

    facts = json.loads((out / "calibration.json").read_text("utf-8"))
    rows = {row["estimator"]: row for row in facts["selection"]["rows"]}
    assert set(rows) == set(METHODS)
    best = max(row["snr_db"] for row in rows.values())
    assert rows[facts["scheme"]["range_estimator"]]["snr_db"] >= best - 3
    assert sorted(path.name for path in out.iterdir()) == [
        "artifact.json",
        "calibration.json",
        "model.onnx",
    ]


def test_range_estimator_is_the_one_asked_for(work: Work, out: Path) -> None:
    section = work.recipe.calibration.model_copy(update={"ranges": "mse"})
    asked = Work(work.recipe.model_copy(update={"calibration": section}), work.run, quiet)
    planned = next(entry for entry in asked.planned if entry.precision == "int8")
    targets.make(asked, planned, out)

    facts = json.loads((out / "calibration.json").read_text("utf-8"))
    assert facts["scheme"]["range_estimator"] == "mse"
    assert facts["selection"] is None
