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
from hydistill_edge.calibration.control import judge_control
from hydistill_edge.calibration.ranges import METHODS
from hydistill_edge.errors import MethodError, RunDirectoryError
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.transfer_format import REAL_ORIGINS
from hydistill_edge.run_directory import RunDirectory
from hydistill_edge.stages import artifacts, calibration, targets
from hydistill_edge.stages.bundle import _fit_reject
from hydistill_edge.stages.logits import network_answer, network_logits
from hydistill_edge.stages.summary import _calibration_gates
from hydistill_edge.stages.work import Work, quiet
from hydistill_edge.synthesis.procedural_set import FITTING, Answer
from hydistill_edge.targets.parity import run_in_batches


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


def candidates(work: Work, made: list[bool]) -> calibration.Candidates:
    count = len(made)
    images = np.random.default_rng(0).integers(0, 255, (count, *work.recipe.image_size()), np.uint8)
    labels, ids = np.zeros(count, np.int64), [f"c{row}" for row in range(count)]
    hashes = content_hashes(images)
    return calibration.Candidates(
        lambda rows: images[rows], hashes, labels, ids, "transfer", np.array(made)
    )


@pytest.mark.parametrize(
    ("misfits", "made", "count", "expected", "left_out"),
    [
        ([0.5, 1.0, 1.1, 9.0], [True] * 4, 2, [0, 1], 2),
        ([9.0, 9.0, 0.5, 9.0], [False, False, True, True], 2, [0, 1, 2], 1),  # taken ones stay
        ([7.0, 3.0, 0.5, 5.0], [True] * 4, 3, [1, 2, 3], 1),  # too few fit: the least unlike
        ([9.0] * 4, [False] * 4, 2, [0, 1, 2, 3], 0),
    ],
)
def test_made_images_that_do_not_fit_the_student_set_no_range(
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    misfits: list[float],
    made: list[bool],
    count: int,
    expected: list[int],
    left_out: int,
) -> None:
    given = candidates(work, made)
    known = {bytes(given.images(np.array([row]))): misfits[row] for row in range(4)}

    def answer(_: object, images: np.ndarray) -> Answer:
        found = np.array([known[bytes(image[None])] for image in images], np.float32)
        return Answer(np.zeros((len(images), 2), np.float32), found)

    monkeypatch.setattr("hydistill_edge.stages.logits.network_answer", answer)
    section = work.recipe.calibration.model_copy(update={"count": count})
    asked = Work(work.recipe.model_copy(update={"calibration": section}), work.run, quiet)
    rows, misfit = calibration._fitting(asked, given)
    assert (rows.tolist(), misfit) == (expected, left_out)


def test_only_so_many_made_images_are_looked_at(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MOST_LOOKED", 5)
    monkeypatch.setattr(calibration, "PIECE", 2)
    section = work.recipe.calibration.model_copy(update={"count": 5})
    asked = Work(work.recipe.model_copy(update={"calibration": section}), work.run, quiet)
    rows, misfits = calibration._fitting(asked, candidates(work, [True] * 12))
    assert (len(rows), misfits) == (5, 0)


def test_chosen_images_that_were_made_fit_the_student(work: Work) -> None:
    _, choice = calibration.read_choice(work)
    assert choice["misfits"] >= 0
    transfer = work.transfer
    chosen = [row for row, name in enumerate(transfer.ids) if name in set(choice["ids"])]
    made = [row for row in chosen if transfer.origins[row] not in REAL_ORIGINS]
    assert made
    misfit = network_answer(work.student, transfer.images(np.array(made))).misfit
    assert misfit.max() <= FITTING


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


def gates_of(work: Work, **section: Any) -> dict[str, Any]:
    changed = work.recipe.calibration.model_copy(update=section)
    asked = Work(work.recipe.model_copy(update={"calibration": changed}), work.run, quiet)
    planned = next(entry for entry in work.planned if entry.precision == "int8")
    return {gate["name"]: gate for gate in _calibration_gates(asked, planned)}


SIGNAL, QUALITY = "int8 signal on control images", "quality of the calibration images"


def test_control_images_are_a_gate_of_every_int8_artifact(work: Work) -> None:
    controls = calibration.read_controls(work)
    images, choice = calibration.read_choice(work)
    assert len(controls) == choice["controls"] == work.recipe.calibration.controls
    assert not {image.tobytes() for image in controls} & {image.tobytes() for image in images}

    planned = next(entry for entry in work.planned if entry.precision == "int8")
    told = json.loads(work.path("targets", planned.key, "calibration.json").read_text("utf-8"))
    with artifacts.read(work, planned).open() as runner:
        logits = run_in_batches(runner.run, controls, planned.profile.batch)
    assert (
        told["control"] == judge_control(network_logits(work.student, controls), logits).to_dict()
    )

    summary = json.loads(work.path("summary.json").read_text("utf-8"))
    (artifact,) = summary["artifacts"]
    found = {gate["name"]: gate for gate in artifact["gates"]}
    assert found[SIGNAL]["value"] == told["control"]["signal_db"]


def test_signal_decides_where_there_are_controls_and_the_score_where_it_is_asked_for(
    work: Work,
) -> None:
    asked = gates_of(work, control_db=1.0)  # the tiny recipe names a score
    assert asked.keys() == {SIGNAL, QUALITY}
    assert asked[SIGNAL]["passed"] is True
    strict = gates_of(work, control_db=99.0, quality=None)
    assert strict.keys() == {SIGNAL}
    assert strict[SIGNAL]["passed"] is False
    assert "set no range" in strict[SIGNAL]["why"]


def test_score_decides_where_the_student_remembers_nothing(work: Work) -> None:
    planned = next(entry for entry in work.planned if entry.precision == "int8")
    file = work.path("targets", planned.key, "calibration.json")
    told = json.loads(file.read_text("utf-8"))
    del told["control"]
    file.write_text(json.dumps(told))
    found = gates_of(work, quality=None)
    assert found.keys() == {QUALITY}
    assert found[QUALITY]["value"] == told["quality"]["score"]


@pytest.mark.parametrize("controls", [0, 2])
def test_controls_are_as_many_as_asked_for_even_with_fewer_than_classes(
    work: Work, controls: int
) -> None:
    section = work.recipe.calibration.model_copy(update={"controls": controls})
    asked = Work(work.recipe.model_copy(update={"calibration": section}), work.run, quiet)
    with work.run:
        calibration.run(asked)
    assert calibration.read_controls(asked).shape == (controls, 8, 8, 1)
    _, choice = calibration.read_choice(asked)
    assert choice["controls"] == controls
    assert bool(choice["controls_note"]) == (controls == 0)


def test_student_that_no_image_can_be_made_of_goes_without_controls(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MethodError("it answers everything alike")

    monkeypatch.setattr("hydistill_edge.synthesis.inversion.invert", refuse)
    section = work.recipe.calibration.model_copy(update={"controls": 5})
    asked = Work(work.recipe.model_copy(update={"calibration": section}), work.run, quiet)
    with work.run:
        calibration.run(asked)
    _, choice = calibration.read_choice(asked)
    assert (choice["controls"], choice["controls_note"]) == (0, "it answers everything alike")
    assert len(calibration.read_controls(asked)) == 0


def test_damaged_controls_are_told(work: Work) -> None:
    work.path("calibration", "controls.npz").write_bytes(b"PK")
    with pytest.raises(RunDirectoryError, match=r"controls\.npz is damaged"):
        calibration.read_controls(work)


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
