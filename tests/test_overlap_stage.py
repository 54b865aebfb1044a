"""Evaluation images that the transfer set holds too are told by evaluation, summary and report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hydistill_edge.build import open_recipe
from hydistill_edge.images.sources import LoadedImages, load_source
from hydistill_edge.report.html import write_report
from hydistill_edge.run_directory import RunDirectory, read_json, write_json
from hydistill_edge.stages import evaluation, overlap, summary
from hydistill_edge.stages.work import Work, quiet


@pytest.fixture
def work(run_copy: Path) -> Work:
    return Work(open_recipe(run_copy), RunDirectory(run_copy), quiet)


def planted(work: Work, count: int) -> LoadedImages:
    """Return the evaluation images, the first of which are real images of the transfer set."""
    loaded = load_source(work.recipe.evaluation, size=(8, 8), channels=1)
    rows = np.flatnonzero(work.transfer.origins == "real")[:count]
    images = loaded.images.copy()
    images[:count] = work.transfer.images(rows)
    return SimpleNamespace(**{**vars(loaded), "images": images})  # type: ignore[return-value]


def evaluate(work: Work, count: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    loaded = planted(work, count)
    monkeypatch.setattr(evaluation, "load", lambda *_: loaded)
    return evaluation.evaluate(work, work.recipe.evaluation)


def test_seen_images_are_counted_named_and_left_out_of_a_second_accuracy(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = evaluate(work, 4, monkeypatch)

    seen = told["overlap"]
    real = work.transfer.ids.take(np.flatnonzero(work.transfer.origins == "real")[:4])
    assert (seen["exact"], seen["compared_with"]) == (4, 32)
    assert [entry["used"] for entry in seen["images"][:4]] == list(real)
    assert [entry["distance"] for entry in seen["images"][:4]] == [0, 0, 0, 0]
    assert "evaluation images were seen" in seen["note"]
    assert "4 the same" in seen["note"]
    loaded = planted(work, 4)
    gone = {entry["id"] for entry in seen["images"]}
    kept = np.array([name not in gone for name in loaded.ids])
    logits = evaluation.network_logits(work.student, loaded.images)
    expected = (logits.argmax(axis=1) == loaded.labels)[kept].mean()
    student = next(entry for entry in told["models"] if entry["name"] == "student")
    assert student["accuracy_without_overlap"] == pytest.approx(expected)


def test_summary_and_report_warn_of_seen_images(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = evaluate(work, 4, monkeypatch)
    write_json(work.path("evaluation.json"), told)
    found = summary.summarize(work)
    write_json(work.path("summary.json"), found)

    assert found["overlap"]["exact"] == 4
    assert found["overlap"]["ids"][:4] == [entry["id"] for entry in told["overlap"]["images"][:4]]
    lines = [found["teacher"], found["student"], *found["artifacts"]]
    wanted = {entry["name"]: entry["accuracy_without_overlap"] for entry in told["models"]}
    assert [line["accuracy_without_overlap"] for line in lines] == list(wanted.values())
    page = write_report(work.run.path).read_text("utf-8")
    assert page.count("evaluation images were seen") == 2  # in the section, and among the notes
    assert "Without seen images" in page
    assert all(entry["used"] in page for entry in told["overlap"]["images"])


def test_evaluate_warns_of_seen_images_on_the_command_line(
    work: Work, tmp_path: Path, hydistill: Any
) -> None:
    loaded = planted(work, 4)
    np.savez(tmp_path / "seen.npz", images=loaded.images, labels=loaded.labels)
    answer = hydistill("evaluate", work.run.path, "--data", tmp_path / "seen.npz")
    assert answer.code == 0
    assert "unseen images" in answer.out
    assert "warning: 4 of 40 evaluation images were seen" in answer.err


def test_no_warning_when_no_image_was_seen(run_copy: Path) -> None:
    found = read_json(run_copy / "summary.json")
    told = read_json(run_copy / "evaluation.json")
    assert (found["overlap"]["exact"], found["overlap"]["near"]) == (0, 0)
    assert (found["overlap"]["compared_with"], found["overlap"]["note"]) == (32, "")
    for entry in told["models"]:
        assert entry["accuracy_without_overlap"] == entry["accuracy"]
    page = (run_copy / "report.html").read_text("utf-8")
    assert "None of the labelled images is among the" in page
    assert "Without seen images" not in page


def test_evaluation_goes_on_when_the_transfer_set_is_gone(work: Work) -> None:
    work.path("transfer").rename(work.path("moved"))
    seen = overlap.find_seen(work, SimpleNamespace())  # type: ignore[arg-type]
    assert seen.told == {"compared_with": None, "note": overlap.NO_SET}
    assert seen.accuracy(np.zeros((1, 4), np.float32), np.zeros(1, np.int64)) is None
    assert overlap.overlap_line(seen.told) is not None
    assert overlap.overlap_line(None) is None
