# ruff: noqa: E501 (one case a line reads best)
"""Recipes: every problem at once, with line and key; every default written out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from hydistill_edge.errors import MissingFileError, RecipeError
from hydistill_edge.recipe import METHODS, Recipe

GOOD = """\
name: widgets
teacher:
  weights: teacher.safetensors
  architecture: torchvision:resnet18
  classes: [scratch, dent]
  input: {height: 32, width: 32, channels: 3, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
student:
  architecture: resnet8
targets:
  - {target: onnxruntime, device: x86-vnni, precisions: [fp32, int8]}
"""

REAL = """\
images:
  real:
    - {kind: folder, path: photos}
"""
LABELLED = REAL.replace("photos}", "photos, use_labels: true}")
TRUE_LABELS = "method: arch_overfitting\ntraining: {labels: 'true'}\n"


@dataclass(frozen=True)
class Broken:
    """A change to the good recipe, and what the message must say."""

    name: str
    old: str
    new: str
    said: tuple[str, ...]


CASES = [
    Broken("misspelt section", "student:", "studnet:", ("line 7: studnet", 'mean "student"')),
    Broken("misspelt key", "architecture: resnet8", "architectur: resnet8", ("line 8", "did you mean")),
    Broken("missing key", "name: widgets\n", "", ("name: this key is missing",)),
    Broken("misspelt setting", "student:", "training: {temprature: 4}\nstudent:", ("training.temprature", "line 7")),
    Broken("statistics of 0-255 pixels", "mean: [0.5, 0.5, 0.5]", "mean: [127, 127, 127]", ("line 6", "divided by 255")),
    Broken("too few statistics", "std: [0.2, 0.2, 0.2]", "std: [0.2]", ("1 values for 3 channels",)),
    Broken("size with a unit", "height: 32", "height: 32px", ("line 6", "32px")),
    Broken("percent for a fraction", "student:", "gates: {student_agreement: 95}\nstudent:", ("line 7", "write 0.95")),
    Broken("unknown network", "architecture: resnet8", "architecture: resnet9x", ("line 8", 'mean "resnet9"')),
    Broken("share of a zoo network", "architecture: resnet8", "architecture: resnet8\n  macs_share: 0.5", ("line 9: student.macs_share", "only for architecture slimmed")),
    Broken("width of a slimmed teacher", "architecture: resnet8", "architecture: slimmed\n  width: 0.5", ("line 9: student.width", "macs_share")),
    Broken("share above one", "architecture: resnet8", "architecture: slimmed\n  macs_share: 25", ("line 9: student.macs_share", "less than 1")),
    Broken("unknown device", "x86-vnni", "x86-vnnni", ("line 10", "x86-vnni")),
    Broken("precision the device lacks", "[fp32, int8]", "[fp16]", ("line 10", "not in fp16")),
    Broken("target the device lacks", "onnxruntime, device: x86-vnni", "tensorrt, device: x86-vnni", ("does not run tensorrt",)),
    Broken("class twice", "[scratch, dent]", "[dent, dent]", ("line 5", "twice: dent")),
    Broken("class without a name", "[scratch, dent]", "[scratch, '']", ("line 5: teacher.classes", "name 1 is ''", "visible")),
    Broken("class of blanks", "[scratch, dent]", '["\\u00a0 ", dent]', ("line 5: teacher.classes", "name 0", "visible")),
    Broken("class of two lines", "[scratch, dent]", '[scratch, "d\\n"]', ("line 5: teacher.classes", r"'d\n'", "one line")),
    Broken("class with a bell", "[scratch, dent]", '["scr\\atch", dent]', ("line 5: teacher.classes", r"'scr\x07tch'", "control")),
    Broken("class with a line separator", "[scratch, dent]", '["a\\u2028b", dent]', ("teacher.classes", "one line")),
    Broken("student's class of two lines", "architecture: resnet8", 'classes: [a, "d\\n"]', ("line 8: student.classes", "one line")),
    Broken("student's only class", "architecture: resnet8", "classes: [a]", ("line 8: student.classes", "at least 2")),
    Broken("no architecture", "  architecture: torchvision:resnet18\n", "", ("weights alone are no network",)),
    Broken("own weights with kd", "architecture: resnet8", "weights: a.onnx", ("trains a new student",)),
    Broken("none without weights", "student:", "method: none\nstudent:", ("give student.weights",)),
    Broken("no image at all", "student:", "images: {synthetic: {count: 0}}\nstudent:", ("no image to work with",)),
    Broken("fewer images than classes", "student:", "images: {synthetic: {count: 1}}\nstudent:", ("cannot cover 2 classes",)),
    Broken("hidfd without real images", "name: widgets", "method: hidfd\nname: widgets", ("line 1: method", "arm hybrid", "images.real")),
    Broken("collected arm without real images", "name: widgets", "method: hidfd\ntraining: {arm: collected}\nname: widgets", ("line 1: method", "arm collected", "images.real")),
    Broken("hidfd without made images", "name: widgets", f"method: hidfd\n{REAL}  synthetic: {{count: 0}}\nname: widgets", ("line 5: images.synthetic.count", "arm hybrid", "above 0")),
    Broken("true labels without real images", "name: widgets", f"{TRUE_LABELS}name: widgets", ("line 2: training.labels", "images.real")),
    Broken("true labels of a source without", "name: widgets", f"{TRUE_LABELS}{REAL}  synthetic: {{count: 0}}\nname: widgets", ("line 5: images.real[0]", "use_labels: true")),
    Broken("true labels of made images", "name: widgets", f"{TRUE_LABELS}{LABELLED}  synthetic: {{count: 8}}\nname: widgets", ("line 6: images.synthetic.count", "set it to 0")),
    Broken("true labels of images from formulas", "name: widgets", f"{TRUE_LABELS}{LABELLED}  synthetic: {{count: 0, procedural: {{count: 8}}}}\nname: widgets", ("line 6: images.synthetic.procedural.count", "set it to 0")),
    Broken("evaluation without labels", "student:", "evaluation: {kind: npz, path: a.npz}\nstudent:", ("use_labels",)),
    Broken("unknown kind of source", "student:", "images: {real: [{kind: zip, path: a}]}\nstudent:", ("line 7", "zip")),
    Broken("key twice", "student:", "name: gadgets\nstudent:", ("line 7", '"name" stands twice')),
    Broken("broken YAML", "name: widgets", "name: [widgets", ("line", "broken YAML")),
    Broken("object tag", "name: widgets", "name: !!python/object/apply:os.system [ls]", ("line 1",)),
    Broken("wrong type", "  architecture: resnet8", "  - resnet8", ("student",)),
]  # fmt: skip


@pytest.mark.parametrize("made", ["slimmed", "factored"])
def test_reduced_student_reads_back_the_same_when_it_was_resolved(made: str) -> None:
    recipe = Recipe.parse(GOOD.replace("resnet8", made))
    again = Recipe.parse(yaml.safe_dump(recipe.to_dict()))
    assert (again.to_dict(), again.student.share()) == (recipe.to_dict(), 0.25)


@pytest.mark.parametrize("made", ["slimmed", "factored"])
def test_reduced_student_of_an_onnx_teacher_is_refused(made: str) -> None:
    text = GOOD.replace("  architecture: torchvision:resnet18\n", "").replace("resnet8", made)
    with pytest.raises(RecipeError, match=r"line 7: student\.architecture.*graph is fixed"):
        Recipe.parse(text.replace("teacher.safetensors", "teacher.onnx"))


def test_layers_of_a_student_that_is_not_factored_cannot_be_imitated() -> None:
    text = GOOD + "training: {layer_weight: 2.0}\n"
    with pytest.raises(RecipeError, match=r"training\.layer_weight.*factored.*feature_weight"):
        Recipe.parse(text)
    assert Recipe.parse(text.replace("resnet8", "factored")).training.layer_weight == 2.0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recipe_is_refused_with_line_and_key(case: Broken) -> None:
    assert case.old in GOOD
    with pytest.raises(RecipeError) as refused:
        Recipe.parse(GOOD.replace(case.old, case.new, 1))
    for words in case.said:
        assert words in str(refused.value)


def test_every_problem_is_told_at_once() -> None:
    text = GOOD.replace("name: widgets", "nam: widgets").replace("height: 32", "height: 0")
    text = text.replace("target: onnxruntime", "target: onnxruntim")
    with pytest.raises(RecipeError) as refused:
        Recipe.parse(text)
    assert len(refused.value.problems) == 4  # nam, name, height, target


def test_resolved_recipe_has_every_default_and_reads_back_the_same() -> None:
    recipe = Recipe.parse(GOOD)
    plain = yaml.safe_load(recipe.to_yaml())
    assert plain["calibration"]["count"] == 256
    assert plain["training"]["temperature"] > 0
    assert plain["images"]["synthetic"]["inversion"]["iterations"] > 0
    assert Recipe.parse(recipe.to_yaml()) == recipe


def test_paths_start_at_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    with pytest.raises(MissingFileError, match=r"teacher\.safetensors"):
        Recipe.load(tmp_path / "recipe.yaml")
    (tmp_path / "teacher.safetensors").touch()
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert recipe.teacher is not None
    assert recipe.teacher.weights == str(tmp_path / "teacher.safetensors")


def test_lists_beside_a_source_start_at_the_recipes_folder_too(tmp_path: Path) -> None:
    text = f"{GOOD}images: {{real: [{{kind: folder, path: web, exclude: barred.txt}}]}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(MissingFileError, match=r"web.*barred\.txt"):
        Recipe.load(tmp_path / "recipe.yaml")
    source = Recipe.parse(text, base=tmp_path).images.real[0]
    assert (source.provenance, source.exclude) == ("", str(tmp_path / "barred.txt"))


def test_missing_and_binary_recipe_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="hydistill init"):
        Recipe.load(tmp_path / "absent.yaml")
    (tmp_path / "noise.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(RecipeError, match="not a text file"):
        Recipe.load(tmp_path / "noise.yaml")


def test_method_none_needs_no_teacher() -> None:
    inner = "  classes: [scratch, dent]\n" + GOOD.splitlines(keepends=True)[5]
    recipe = Recipe.parse(
        "name: own\nmethod: none\nstudent:\n  weights: own.onnx\n"
        + inner
        + "targets:\n  - {target: openvino, device: x86-vnni}\n"
    )
    assert recipe.class_names() == ("scratch", "dent")
    assert recipe.training is None


@pytest.mark.parametrize(
    "text",
    [
        "method: hidfd\ntraining: {arm: synthetic}\n",
        f"method: hidfd\ntraining: {{arm: collected}}\n{REAL}  synthetic: {{count: 0}}\n",
        f"{TRUE_LABELS}{LABELLED}  synthetic: {{count: 0}}\n",
        f"{TRUE_LABELS}{LABELLED}  synthetic: {{maker: infer}}\n",
    ],
    ids=["arm-synthetic", "arm-collected", "true-labels", "true-labels-compensated"],
)
def test_recipe_is_read_when_the_method_has_the_images_it_needs(text: str) -> None:
    assert Recipe.parse(text + GOOD).training is not None


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_settings_that_survive_the_way_through_yaml(method: str) -> None:
    recipe = Recipe.parse(f"method: {method}\n{REAL}{GOOD}")
    assert type(recipe.training).__name__ == METHODS[method].rpartition(":")[2]
    again = Recipe.parse(recipe.to_yaml())
    assert again.training == recipe.training
    schema = Recipe.json_schema()
    assert {"$ref": f"#/$defs/{type(recipe.training).__name__}"} in schema["properties"][
        "training"
    ]["anyOf"]


def test_settings_of_a_method_are_checked_with_those_it_shares() -> None:
    training = "training: {beta: 50, batch: 32, teacher_taps: [layer1.0, layer2.0], keys: []}\n"
    settings = Recipe.parse(f"method: rtk\n{training}{GOOD}").training
    assert (settings.beta, settings.batch, settings.temperature) == (50.0, 32, 4.0)
    assert settings.teacher_taps == ("layer1.0", "layer2.0")
    with pytest.raises(RecipeError, match='did you mean "threshold"'):
        Recipe.parse(f"method: rtk\ntraining: {{treshold: 1.5}}\n{GOOD}")
    with pytest.raises(RecipeError, match=r"training\.threshold: .* to method rtk, kd3$"):
        Recipe.parse(f"training: {{threshold: 1.5}}\n{GOOD}")
    with pytest.raises(RecipeError, match=r"rtk settings: .*beta is -1"):
        Recipe.parse(f"method: rtk\ntraining: {{beta: -1}}\n{GOOD}")


def test_decisions_of_people_start_at_the_recipes_folder(tmp_path: Path) -> None:
    text = f"method: kd3\ntraining: {{decisions: sheet.csv}}\n{GOOD}"
    recipe = Recipe.parse(text, base=tmp_path)
    assert recipe.training.decisions == str(tmp_path / "sheet.csv")
    assert tmp_path / "sheet.csv" in recipe.files()


def test_schema_names_the_settings_of_images_and_method() -> None:
    schema = Recipe.json_schema()
    assert schema["additionalProperties"] is False
    assert "iterations" in schema["$defs"]["Inversion"]["properties"]
    assert schema["properties"]["training"]["anyOf"][0]["$ref"].endswith("KDSettings")
    assert schema["$defs"]["ImageSection"]["properties"]["real"]["items"]["$ref"].endswith("Source")
