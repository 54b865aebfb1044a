"""Method kd3 from a recipe: pool, training, record, review, and training as people decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hydistill_edge import Recipe, build

TRAINING = {
    "epochs": 2, "batch": 8, "embedding": 4, "evaluations": 1, "checkpoint_seconds": 0,
    "projector": {"factor": 4, "kind": "depthwise"}, "flip": False,
    "steps": None,  # of method kd: taken out
}  # fmt: skip


def recipe_of(tiny_inputs: Any, folder: Path, **training: Any) -> Recipe:
    pool = {"kind": "npz", "path": str(tiny_inputs.folder / "pilot.npz"), "origin": "web"}
    return Recipe.load(
        tiny_inputs.recipe(
            folder / "recipe.yaml",
            method="kd3",
            training={**TRAINING, **training},
            images={"real": [{**pool, "name": "web", "licence": "CC0"}]},
        )
    )


@pytest.fixture(scope="module")
def run(tiny_inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kd3")
    recipe = recipe_of(tiny_inputs, folder)
    for stage in ("teacher", "images", "student", "graph"):
        build(recipe, out=folder / "run", only=stage)
    return folder / "run"


def test_student_is_one_graph_with_projector_and_the_record_beside_it(run: Path) -> None:
    facts = json.loads((run / "student" / "facts.json").read_text())
    audit = json.loads((run / "student" / "selection.json").read_text())
    assert facts["arch"] == "projected:zoo:resnet8"
    assert list((run / "graph").glob("*.onnx"))
    assert len(audit["epochs"]) == 2
    assert {"web", ""} >= set(audit["epochs"][0]["per_source"])
    assert "checkpoints" not in {path.name for path in (run / "student").iterdir()}


def test_decisions_on_the_review_sheet_change_the_next_training(
    run: Path, tiny_inputs: Any, hydistill: Any, tmp_path: Path
) -> None:
    queue = hydistill("review", run, "--count", 3, "--json").value["queue"]
    name = queue[0]["id"]
    (tmp_path / "filled.csv").write_text(f"id,decision\n{name},reject\n")
    outcome = hydistill("review", run, "--decisions", tmp_path / "filled.csv", "--json").value

    recipe = recipe_of(tiny_inputs, tmp_path, decisions=outcome["file"])
    build(recipe, out=run, only="student")

    audit = json.loads((run / "student" / "selection.json").read_text())
    assert name not in audit["images"]["id"]
