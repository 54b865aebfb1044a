"""A build with images from formulas: they train and calibrate the student, and prove nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydistill_edge import Recipe, build
from hydistill_edge.build import open_recipe
from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.run_directory import RunDirectory, read_json
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.stages.targets import _selection_images
from hydistill_edge.stages.work import Work, quiet


def images(**synthetic: Any) -> dict[str, Any]:
    return {"images": {"real": [], "synthetic": synthetic}}


@pytest.fixture(scope="module")
def run(tiny_inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("procedural")
    changes = images(count=128, procedural={"count": 64, "draws": 4})
    recipe = tiny_inputs.recipe(folder / "recipe.yaml", **changes)
    return build(Recipe.load(recipe), out=folder / "run").path


@pytest.fixture
def work(run: Path) -> Work:
    return Work(open_recipe(run), RunDirectory(run), quiet)


def test_images_from_formulas_are_told_from_others(run: Path) -> None:
    manifest = read_json(run / "transfer" / "manifest.json")
    told = manifest["details"]["procedural"]
    assert manifest["method"] == "inversion and procedural"
    assert manifest["per_origin"]["procedural"] == told["count"] > 0
    assert sum(told["seen"].values()) == told["drawn"]

    line = read_json(run / "summary.json")["transfer"]
    assert line["synthetic"] == line["images"] == 128 + told["count"]
    assert f"{told['count']} images are from formulas" in line["procedural_note"]
    assert line["procedural_note"] in (run / "report.html").read_text("utf-8")


def test_each_holds_what_the_teacher_says_of_it(work: Work) -> None:
    transfer = work.transfer
    rows = np.flatnonzero(transfer.origins == "procedural")
    found = network_logits(work.teacher, transfer.images(rows))
    np.testing.assert_allclose(transfer.logits(rows), found, atol=1e-4)


def test_others_prove(work: Work) -> None:
    origins = work.transfer.origins
    for rows in (work.partition.parity, work.partition.golden):
        assert set(origins[rows]) == {"synthetic"}
    choice = read_json(work.path("calibration", "choice.json"))
    drawn = work.transfer.images(np.flatnonzero(origins == "procedural"))
    judges = _selection_images(work, choice)
    assert not {image.tobytes() for image in judges} & {image.tobytes() for image in drawn}


def test_preview_shows_both(run: Path) -> None:
    with np.load(run / "preview.npz") as file:
        kinds = {str(name).partition("-")[0] for name in file["ids"]}
        assert kinds - {"crossed"} == {"inverted", "procedural"}
        assert np.bincount(file["labels"]).max() <= 12


def test_formulas_alone_make_a_whole_build(tiny_inputs: Any, tmp_path: Path, quick: None) -> None:
    changes = images(count=0, procedural={"count": 96, "draws": 8})
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", **changes)

    result = build(Recipe.load(recipe), out=tmp_path / "run")

    transfer = TransferSet.open(result.path / "transfer")
    assert set(transfer.origins) == {"procedural"}
    (artifact,) = result.summary["artifacts"]
    assert artifact["parity"]["passed"] is not False
    assert list((result.path / "bundle").iterdir())


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"count": 3}, "3 images cannot cover 4 classes"),
        ({"count": -1}, "count is -1; expected at least 0"),
        ({"count": 64, "draw": 4}, "draws"),
    ],
)
def test_wrong_numbers_are_refused(
    tiny_inputs: Any, tmp_path: Path, refused: Any, section: dict[str, int], says: str
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", **images(count=64, procedural=section))
    refused("recipe", "check", recipe, code=2, says=("procedural", says))
