"""Method infer from a recipe: the set beside the transfer set, and the student."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hydistill_edge import Recipe, build
from hydistill_edge.errors import RecipeError
from hydistill_edge.images.compensated_set import CompensatedSet
from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.stages.parity import Ladder

SET = {
    **{"ipc": 5, "networks": ["resnet8"], "width": 0.25, "squeeze_epochs": 1, "flip": False},
    **{"iterations": 2, "precision": "float32"},
}
TRAINING = {
    **{"steps": 4, "batch": 8, "evaluations": 1, "checkpoint_seconds": 0, "mapped": 2},
    "flip": False,
}


def recipe_of(tiny_inputs: Any, folder: Path, **infer: Any) -> Recipe:
    source = {"kind": "npz", "path": str(tiny_inputs.folder / "holdout.npz"), "use_labels": True}
    synthetic = {"maker": "infer", "infer": {**SET, **infer}, "inversion": None}
    return Recipe.load(
        tiny_inputs.recipe(
            folder / "recipe.yaml",
            method="infer",
            training=TRAINING,
            images={
                "real": [{**source, "licence": "ours", "may_ship": True}],
                "synthetic": synthetic,
            },
        )
    )


@pytest.fixture(scope="module")
def run(tiny_inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("infer")
    recipe = recipe_of(tiny_inputs, folder)
    for stage in ("teacher", "images", "student", "graph", "calibration"):
        build(recipe, out=folder / "run", only=stage)
    return folder / "run"


def test_transfer_set_has_natural_and_derived_images_and_the_compact_set_beside(run: Path) -> None:
    transfer = TransferSet.open(run / "transfer")
    distilled = CompensatedSet.open(run / "transfer" / "infer")
    per_origin = {"real": 12, "web": 0, "synthetic": 0, "derived": 24, "procedural": 0}
    assert transfer.manifest["per_origin"] == per_origin
    assert {image.tobytes() for image in transfer.images(np.arange(36))} == {
        image.tobytes() for image in distilled.images(np.arange(len(distilled)))
    }
    natural = transfer.origins == "real"
    assert set(transfer.labels[natural].tolist()) == {0, 1, 2, 3}
    assert transfer.may_ship.all()
    assert {path.name for path in (run / "transfer").iterdir() if path.is_dir()} == {"infer"}


def test_transfer_manifest_repeats_what_was_measured_of_the_set(run: Path) -> None:
    told = TransferSet.open(run / "transfer").manifest["details"]["infer"]
    assert told["budget"]["natural"] == 3
    assert told["bytes"]["natural"] == 12 * 64
    assert [network["name"] for network in told["networks"]] == ["teacher", "1-resnet8"]
    assert {"natural", "compensated"} == set(told["realism"])
    assert "not anonymous" in told["privacy"]


def test_parity_on_real_images_leaves_compensated_ones_out() -> None:
    origins = np.array(["real", "web", "synthetic", "derived"])
    work: Any = SimpleNamespace(
        recipe=SimpleNamespace(class_names=lambda: ("a", "b")),
        partition=SimpleNamespace(parity=np.array([3, 2, 1, 0])),
        transfer=SimpleNamespace(origins=origins),
    )
    planned = SimpleNamespace(profile=SimpleNamespace(batch=1), target="openvino", precision="int8")
    built: Any = SimpleNamespace(planned=planned)
    ladder = Ladder(work, built, built)

    assert ladder.rows[ladder.real].tolist() == [1, 0]
    ladder.real[:] = False
    assert "real" not in [step.source for step in ladder.steps()]


def test_student_and_calibration_come_of_it(run: Path) -> None:
    told = json.loads((run / "student" / "infer.json").read_text())
    assert (told["networks"], told["steps"]) == (2, 4)
    assert json.loads((run / "student" / "facts.json").read_text())["arch"] == "zoo:resnet8"
    assert json.loads((run / "calibration" / "choice.json").read_text())["count"] > 0


def test_set_is_made_anew_when_its_settings_change(run: Path, tiny_inputs: Any) -> None:
    before = CompensatedSet.open(run / "transfer" / "infer").manifest["digest"]
    build(recipe_of(tiny_inputs, run.parent, scale=0.5), out=run, only="images")
    after = CompensatedSet.open(run / "transfer" / "infer").manifest
    assert after["scale"] == 0.5
    assert after["digest"] != before


GOOD = """\
name: widgets
method: infer
teacher:
  weights: teacher.safetensors
  architecture: torchvision:resnet18
  classes: [scratch, dent]
  input: {height: 32, width: 32, channels: 3, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
student: {architecture: resnet8}
targets:
  - {target: onnxruntime, device: x86-vnni}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("images: {synthetic: {maker: infer}}", "infer adds to real images: give sources"),
        ("images: {synthetic: {infer: {icp: 3}}}", 'did you mean "ipc"?'),
        ("images: {synthetic: {infer: {ipc: 0}}}", "infer set settings: ipc is 0"),
        ("training: {temprature: 3}", 'did you mean "temperature"?'),
        ("training: {labels: hard}", "labels"),
    ],
    ids=["no-real", "misspelt", "range", "training-key", "training-value"],
)
def test_recipe_is_refused_when_its_settings_are_wrong(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(f"{text}\n{GOOD}")
    assert said in str(caught.value)


def test_recipe_comes_back_from_its_yaml() -> None:
    text = "images:\n  real: [{kind: folder, path: photos}]\n"
    text += "  synthetic: {maker: infer, infer: {networks: [resnet20], storage: float16}}\n"
    recipe = Recipe.parse(f"{text}training: {{labels: dynamic}}\n{GOOD}")
    assert recipe.images.synthetic.infer.network_count == 2
    assert Recipe.parse(recipe.to_yaml()).to_dict() == recipe.to_dict()
