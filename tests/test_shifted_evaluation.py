"""Labelled images from another camera: accuracies beside those on the usual ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydistill_edge.build import build
from hydistill_edge.errors import RecipeError
from hydistill_edge.models.student import Student
from hydistill_edge.recipe import Recipe
from hydistill_edge.run_directory import read_json
from hydistill_edge.stages.logits import network_logits


def darker(source: Path, out: Path) -> dict[str, Any]:
    """Write the labelled images at a third of their brightness; return the recipe's section."""
    with np.load(source) as found:
        np.savez(out, images=found["images"] // 3, labels=found["labels"])
    return {"kind": "npz", "path": str(out), "use_labels": True}


def test_accuracies_on_shifted_images_stand_beside_the_usual_ones(
    tiny_inputs: Any, tmp_path: Path
) -> None:
    shifted = darker(tiny_inputs.folder / "holdout.npz", tmp_path / "dark.npz")
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", shifted_evaluation=shifted)
    run = tmp_path / "run"

    build(Recipe.load(recipe), out=run)

    with np.load(tmp_path / "dark.npz") as found:
        images, labels = found["images"], found["labels"]
    logits = network_logits(Student.load(run / "student"), images)
    expected = float((logits.argmax(axis=1) == labels).mean())
    summary, told = read_json(run / "summary.json"), read_json(run / "evaluation.json")
    assert told["shifted"]["images"] == len(labels)
    assert summary["student"]["accuracy_shifted"] == pytest.approx(expected)
    usual = {entry["name"]: entry["accuracy"] for entry in told["models"]}
    assert summary["student"]["accuracy"] == usual["student"]
    assert "accuracy_shifted" in summary["teacher"]
    assert all("accuracy_shifted" in artifact for artifact in summary["artifacts"])


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"use_labels": None}, 2, "set use_labels: true"),
        ({"path": "nowhere.npz"}, 3, "nowhere.npz"),
    ],
    ids=["without-labels", "missing"],
)
def test_shifted_images_are_refused_like_the_usual_ones(
    changes: dict[str, Any],
    code: int,
    says: str,
    tiny_inputs: Any,
    tmp_path: Path,
    refused: Callable[..., None],
) -> None:
    section = darker(tiny_inputs.folder / "holdout.npz", tmp_path / "dark.npz") | changes
    section = {key: value for key, value in section.items() if value is not None}
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", shifted_evaluation=section)

    refused("build", recipe, "--out", tmp_path / "run", code=code, says=(says,))


def test_shifted_images_are_refused_when_there_are_no_usual_ones(
    tiny_inputs: Any, tmp_path: Path
) -> None:
    shifted = darker(tiny_inputs.folder / "holdout.npz", tmp_path / "dark.npz")
    recipe = tiny_inputs.recipe(
        tmp_path / "recipe.yaml", shifted_evaluation=shifted, evaluation=None
    )
    with pytest.raises(RecipeError, match="nothing to hold it against"):
        Recipe.load(recipe)
