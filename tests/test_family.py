"""Several students from one transfer set: the recipe, the build, what is told of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hydistill_edge.build import STAGES, open_recipe
from hydistill_edge.errors import (
    GraphError,
    HydistillError,
    MissingFileError,
    NoSpaceError,
    RecipeError,
    StudentsFailedError,
    TargetUnavailableError,
    UsageError,
)
from hydistill_edge.family import Family, read_recipe
from hydistill_edge.family_build import build_family
from hydistill_edge.family_summary import (
    NO_INT8,
    NO_SMALL,
    NOT_BUILT,
    OTHER_HOLDOUT,
    SMALL_NOT_BUILT,
    _best_int8,
    _gaps,
)
from hydistill_edge.models.student import Student
from hydistill_edge.recipe import Recipe
from hydistill_edge.run_directory import write_json
from hydistill_edge.stages.logits import network_logits

HEAD = """
name: line
seed: 7
teacher:
  weights: teacher.onnx
  classes: [a, b]
  input: {height: 8, width: 8, channels: 1, mean: [0.5], std: [0.25]}
training: {steps: 9, batch: 8}
targets:
- {target: onnxruntime, device: x86-avx2}
students:
"""

TWO = (
    HEAD
    + """
- name: camera
  student: {architecture: resnet8}
  training: {batch: 16}
  targets:
  - {target: onnxruntime, device: raspberry-pi-5}
- name: gateway
  student: {architecture: resnet18, width: 0.5}
  method: arch_overfitting
  training: {small: convnet3_bn}
"""
)


ARTIFACT = "onnxruntime-x86-avx2-int8"


def test_each_student_is_a_whole_recipe_of_its_own() -> None:
    family = Family.parse(TWO)
    camera, gateway = family.members["camera"], family.members["gateway"]
    assert (camera.name, gateway.name) == ("line-camera", "line-gateway")
    assert camera.teacher == gateway.teacher
    assert (camera.seed, gateway.seed) == (7, 7)
    assert (camera.student.architecture, gateway.student.width) == ("resnet8", 0.5)
    assert [entry.device for entry in camera.targets] == ["raspberry-pi-5"]
    assert [entry.device for entry in gateway.targets] == ["x86-avx2"]


def test_training_is_merged_for_the_same_method_and_its_own_for_another() -> None:
    members = Family.parse(TWO).members
    assert (members["camera"].training.steps, members["camera"].training.batch) == (9, 16)
    gateway = members["gateway"].training
    assert (gateway.steps, gateway.batch, gateway.small) == (None, 100, "convnet3_bn")


def test_resolved_recipe_is_the_same_family_again() -> None:
    family = Family.parse(TWO)
    again = Family.parse(family.to_yaml())
    assert again == family
    assert "student" not in family.to_dict()


ONE = "- name: camera\n  student: {architecture: resnet8}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD + "- {name: a}\n", r"line \d+: students\[0\].student: this key is missing"),
        (HEAD + "- {student: {architecture: resnet8}}\n", r"students\[0\].name: .*missing"),
        (HEAD + ONE + "  trainig: {}\n", r"students\[0\].trainig: unknown key; did you mean"),
        (HEAD + ONE + ONE, 'the name "camera" stands twice'),
        (HEAD + ONE + "student: {architecture: resnet8}\n", "one student beside the list"),
        (HEAD.rstrip() + " []\n", "the list is empty"),
        (HEAD + "- {name: a, student: {architecture: resnt8}}\n",
         r"line 12: students\[0\].student.architecture: .*did you mean"),
        (HEAD + ONE + "  training: {stepz: 3}\n",
         r"line 14: students\[0\].training.stepz: unknown key; did you mean \"steps\""),
        (HEAD.replace("seed: 7", "seed: x") + ONE + ONE.replace("camera", "b"),
         r"1 problem\n  line 3: seed: expected a valid integer"),
    ],
    ids=[
        "no-student", "no-name", "unknown-key", "twice", "both", "empty", "zoo", "training",
        "shared",
    ],
)  # fmt: skip
def test_recipe_is_refused_with_the_place_of_each_problem(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Family.parse(text)


def test_file_tells_whether_it_is_for_one_or_for_several(tiny_inputs: Any, tmp_path: Path) -> None:
    one = tiny_inputs.recipe(tmp_path / "one.yaml")
    assert isinstance(read_recipe(one), Recipe)
    several = family_file(tiny_inputs, tmp_path / "several.yaml")
    assert isinstance(read_recipe(several), Family)
    with pytest.raises(RecipeError, match=r"line \d+: students: this recipe is for several"):
        Recipe.load(several)


def test_missing_files_are_told_once(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(TWO)
    with pytest.raises(MissingFileError) as caught:
        read_recipe(file)
    assert str(caught.value).count("teacher.onnx") == 1


def family_file(tiny_inputs: Any, path: Path, **changes: Any) -> Path:
    """Two students of the tiny recipe: one by kd, one beside a small network."""
    value = yaml.safe_load(tiny_inputs.recipe(path, **changes).read_text())
    value["students"] = [
        {"name": "edge", "student": value.pop("student")},
        {
            "name": "large",
            "student": {"architecture": "vgg8_bn", "width": 0.25},
            "method": "arch_overfitting",
            "training": {
                "steps": 8, "batch": 16, "small_steps": 2, "small_width": 0.1, "evaluations": 2,
                "checkpoint_seconds": 0,
            },
        },
    ]  # fmt: skip
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


def records(run: Path) -> dict[str, str]:
    """Every stage's record, the shared ones and those of the students."""
    files = [*run.glob("stages/*.json"), *run.glob("students/*/stages/*.json")]
    return {str(file.relative_to(run)): file.read_text() for file in files}


@pytest.mark.usefixtures("quick")
def test_students_share_teacher_images_and_small_network(
    tiny_inputs: Any, hydistill: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    file = family_file(tiny_inputs, tmp_path / "recipe.yaml", gates={"student_agreement": 1.0})
    answer = hydistill("build", file, "--out", run, "--json")
    # Nobody learns all in six steps: both fail their gate, and both are there.
    assert answer.code == 1, answer.err
    edge, large = answer.value["students"]
    assert (edge["name"], large["name"]) == ("edge", "large")
    assert edge["passed"] is large["passed"] is answer.value["passed"] is False
    assert len(list(run.glob("students/*/bundle/*.hydistill"))) == 2
    assert answer.value["small_network"]["arch"] == "zoo:convnet3"
    small = answer.value["small_network"]
    gap = 100 * (large["holdout_agreement"] - small["holdout_agreement"])
    assert large["holdout_gap_points"] == pytest.approx(gap)
    network = Student.load(run / "students" / "large" / "student" / "small_network")
    with np.load(tiny_inputs.folder / "holdout.npz") as labelled:
        decisions = network_logits(network, labelled["images"]).argmax(axis=1)
        assert small["accuracy"] == pytest.approx((decisions == labelled["labels"]).mean())
    for student in (edge, large):
        difference = student["accuracy"] - small["accuracy"]
        assert student["gap_points"] == pytest.approx(100 * difference)
    assert (edge["gap_error_points"], large["gap_error_points"] >= 0) == (None, True)
    difference = edge["accuracy"] - answer.value["teacher"]["accuracy"]
    assert edge["teacher_gap_points"] == pytest.approx(100 * difference)
    assert (edge["devices"], edge["best_int8"]) == (["x86-avx2"], ARTIFACT)
    own = json.loads((run / "students" / "large" / "summary.json").read_text())
    told = own["method_facts"]["small_network"]
    assert told["gap_points"] == large["holdout_gap_points"]
    assert told["accuracy"] == small["accuracy"]
    assert told["accuracy_gap_points"] == pytest.approx(large["gap_points"])
    assert json.loads((run / "summary.json").read_text()) == answer.value
    for name in ("edge", "large"):
        folder = run / "students" / name
        assert (folder / "transfer").resolve() == (run / "transfer").resolve()
        assert (folder / "report.html").is_file()
        assert Recipe.load(folder / "recipe.yaml").name == f"tiny-{name}"
        assert f'href="students/{name}/report.html"' in (run / "report.html").read_text()
    assert len(list((run / "small").iterdir())) == 1

    before = records(run)
    assert hydistill("build", file, "--out", run).code == 1
    assert records(run) == before, "a second build makes nothing anew"

    value = yaml.safe_load(file.read_text())
    value["students"][0]["training"] = {"steps": 7}
    file.write_text(yaml.safe_dump(value))
    assert hydistill("build", file, "--out", run).code == 1
    changed = {name for name, text in records(run).items() if before[name] != text}
    assert changed
    assert all(name.startswith("students/edge/") for name in changed)

    with pytest.raises(UsageError, match=r"several students.*edge, large"):
        open_recipe(run)


def printed(summary: dict[str, Any]) -> list[str]:
    """Return the lines of both tables in a terminal of 80 columns."""
    from rich.console import Console

    from hydistill_edge.cli.build import students_tables

    console = Console(width=80)
    with console.capture() as captured:
        for made in students_tables(summary):
            console.print(made)
    return captured.get().splitlines()


def rows_of_two_students() -> dict[str, Any]:
    network = {"arch": "zoo:resnet8", "params": 78_000, "accuracy": 0.9}
    built = [
        {**artifact(device, None, 1.25, 2048), "accuracy": 0.875, "teacher_agreement": 0.75}
        for device in ("raspberry-pi-5", "jetson-orin-nano")
    ]
    row = {**network, "name": "camera", "teacher_agreement": 0.95, "passed": None, "failure": None}
    other = {**row, "name": "gateway", "arch": "zoo:mobilenet_v3_small", "gap_points": None}
    return {
        "teacher": {**network, "arch": "torchvision:regnet_y_400mf"},
        "small_network": {**network, "arch": "zoo:convnet3", "holdout_agreement": 0.5},
        "students": [
            {**row, "gap_points": 3.25, "artifacts": built},
            {**other, "accuracy": None, "params": None, "artifacts": [], "failure": {"kind": "X"}},
        ],
    }


def test_tables_show_every_name_and_number_whole_in_80_columns() -> None:
    lines = [line.split() for line in printed(rows_of_two_students())]
    for words in (
        ["teacher", "regnet_y_400mf", "90.00", "%", "0.078", "M"],
        ["small", "network", "convnet3", "90.00", "%", "0.078", "M"],
        ["camera", "resnet8", "90.00", "%", "+3.25", "0.078", "M", "not", "judged"],
        ["gateway", "mobilenet_v3_small", "-", "-", "-", "not", "built"],
        ["openvino", "int8", "raspberry-pi-5", "87.50", "%", "1.25", "2", "K", "not", "judged"],
        ["openvino", "int8", "jetson-orin-nano", "87.50", "%", "1.25", "2", "K", "not", "judged"],
    ):
        assert words in lines, words


def test_tables_show_agreement_when_there_are_no_labelled_images() -> None:
    summary = rows_of_two_students()
    for row in summary["students"]:
        row["accuracy"] = None
    text = "\n".join(printed(summary))
    assert "accuracy" not in text
    assert [found in text for found in ("95.00 %", "50.00 %", "75.00 %")] == [True] * 3


def test_gap_is_not_told_when_it_cannot_be_compared(tmp_path: Path) -> None:
    student = {"holdout_agreement": 0.8, "accuracy": None}
    small = {"small": {"holdout_agreement": 0.7, "accuracy": None}}
    write_json(tmp_path / "student" / "holdout.json", {"rows": [3, 1]})
    assert _gaps(student, None, small, [1, 3], tmp_path)["gap_points"] == pytest.approx(10)
    assert _gaps(student, None, small, [1, 2], tmp_path)["gap_note"] == OTHER_HOLDOUT
    assert _gaps(student, None, None, None, tmp_path)["gap_note"] == NO_SMALL


def test_gap_is_that_of_accuracy_when_both_were_measured_on_labelled_images(tmp_path: Path) -> None:
    student = {"holdout_agreement": 0.8, "accuracy": 0.6}
    small = {"small": {"holdout_agreement": 0.7, "accuracy": 0.55}}
    write_json(tmp_path / "student" / "holdout.json", {"rows": [3, 1]})
    other = _gaps(student, None, small, [2], tmp_path)
    assert (other["gap_points"], other["gap_error_points"]) == (pytest.approx(5), None)
    assert "of another student" in other["gap_note"]
    assert (other["holdout_gap_points"], other["holdout_gap_note"]) == (None, OTHER_HOLDOUT)
    facts = {"gap_points": 9.0, "gap_error_points": 1.0, "accuracy_gap_error_points": 2.5}
    own = _gaps(student, small | facts, None, None, tmp_path)
    assert (own["gap_points"], own["gap_error_points"]) == (pytest.approx(5), 2.5)
    assert (own["holdout_gap_points"], own["holdout_gap_error_points"]) == (9.0, 1.0)


def artifact(device: str, passed: bool | None, p50: float | None, size: int, **more: Any) -> Any:
    row = {"target": "openvino", "device": device, "precision": "int8", "passed": passed}
    return {**row, "bytes": size, "latency": {"p50_ms": p50}, **more}


@pytest.mark.parametrize(
    ("artifacts", "best"),
    [
        ([artifact("a", False, 1.0, 9), artifact("b", None, None, 9)], "b"),
        ([artifact("a", None, 1.0, 9), artifact("b", True, 2.0, 9)], "b"),
        ([artifact("a", True, None, 1), artifact("b", True, 2.0, 9), artifact("c", True, 1.5, 9)],
         "c"),
        ([artifact("a", None, None, 9), artifact("b", None, None, 8)], "b"),
        ([artifact("a", True, 1.0, 9, precision="fp32"), artifact("b", False, 2.0, 9)], "b"),
    ],
    ids=["failed-is-last", "passed-is-first", "fastest", "smallest", "int8-alone"],
)  # fmt: skip
def test_best_int8_artifact_is_the_fastest_of_the_best_judged(artifacts: Any, best: str) -> None:
    assert _best_int8(artifacts)["best_int8"] == f"openvino-{best}-int8"
    floats = [row for row in artifacts if row["precision"] != "int8"]
    assert _best_int8(floats) == {"best_int8": None, "best_int8_note": NO_INT8}


def test_stage_is_refused_when_there_is_none_of_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='no stage "studnt"'):
        build_family(Family.parse(TWO), out=tmp_path / "run", only="studnt")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes a stage fail for the students that are named."""

    def fail(stage: str, failures: dict[str, Exception]) -> None:
        real = STAGES[stage]

        def run(work: Any) -> None:
            for name, error in failures.items():
                if work.recipe.name == f"tiny-{name}":
                    raise error
            real(work)

        monkeypatch.setitem(STAGES, stage, run)  # type: ignore[arg-type]

    return fail


@pytest.mark.usefixtures("quick")
def test_other_students_are_built_when_one_fails_and_a_rerun_makes_what_is_missing(
    tiny_inputs: Any, hydistill: Any, tmp_path: Path, fail_at: Any
) -> None:
    run, file = tmp_path / "run", family_file(tiny_inputs, tmp_path / "recipe.yaml")
    failures = {"large": GraphError("no such layer")}
    fail_at("graph", failures)
    answer = hydistill("build", file, "--out", run, "--json")
    edge, large = answer.value["students"]
    assert answer.code == 2
    assert answer.err == "error: student large: no such layer\n"
    assert large["failure"] == {"kind": "GraphError", "message": "no such layer", "exit_code": 2}
    assert (large["accuracy"], large["accuracy_note"], large["passed"]) == (None, NOT_BUILT, None)
    assert (edge["failure"], edge["gap_note"]) == (None, SMALL_NOT_BUILT)
    assert edge["accuracy"] is not None
    assert answer.value["passed"] is not True
    assert "GraphError: no such layer" in (run / "errors" / "large.txt").read_text()
    assert not list(run.glob("students/large/bundle"))
    assert "students/large" not in (run / "report.html").read_text()

    before = records(run)
    failures.clear()
    answer = hydistill("build", file, "--out", run, "--json")
    assert [student["failure"] for student in answer.value["students"]] == [None, None]
    assert answer.code == (1 if answer.value["passed"] is False else 0)
    after = records(run)
    assert {name for name in before if before[name] != after[name]} == set()
    assert all(name.startswith("students/large/") for name in set(after) - set(before))
    assert not (run / "errors").exists()


def family_of(tiny_inputs: Any, folder: Path) -> Family:
    family = read_recipe(family_file(tiny_inputs, folder / "recipe.yaml"))
    assert isinstance(family, Family)
    return family


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that do nothing."""
    for name in STAGES:
        monkeypatch.setitem(STAGES, name, lambda _: None)  # type: ignore[arg-type]
    monkeypatch.setattr("hydistill_edge.run_directory.RunDirectory.borrow", lambda *_: None)


@pytest.mark.usefixtures("still")
def test_stage_alone_is_run_for_all_students_before_it_is_told_who_failed(
    tiny_inputs: Any, tmp_path: Path, fail_at: Any
) -> None:
    fail_at("student", {"edge": RuntimeError("surprise"), "large": MissingFileError("no file")})
    with pytest.raises(
        StudentsFailedError, match=r"edge: RuntimeError: .*; student large: no fi"
    ) as e:
        build_family(family_of(tiny_inputs, tmp_path), out=tmp_path / "run", only="student")
    assert e.value.exit_code == 4
    assert sorted(path.name for path in (tmp_path / "run" / "errors").iterdir()) == [
        "edge.txt",
        "large.txt",
    ]


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize(
    "error", [NoSpaceError("full"), OSError(28, "No space left on device")], ids=["ours", "system"]
)
def test_full_disk_stops_the_build_of_all(
    tiny_inputs: Any, tmp_path: Path, fail_at: Any, error: Exception
) -> None:
    fail_at("student", {"edge": error})
    with pytest.raises(type(error)):
        build_family(family_of(tiny_inputs, tmp_path), out=tmp_path / "run", only="student")
    assert not (tmp_path / "run" / "students" / "large").exists()


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("missing", [("edge", "large"), ("edge",)], ids=["all", "one"])
def test_family_is_refused_before_images_are_made_when_no_student_can_be_built(
    tiny_inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    def refuse(work: Any) -> None:
        if work.recipe.name.removeprefix("tiny-") in missing:
            raise TargetUnavailableError("no runtime")

    for module in ("build", "family_build"):
        monkeypatch.setattr(sys.modules[f"hydistill_edge.{module}"], "require_builders", refuse)
    expected = TargetUnavailableError if len(missing) == 2 else StudentsFailedError
    with pytest.raises(expected) as caught:
        build_family(family_of(tiny_inputs, tmp_path), out=tmp_path / "run", only="targets")
    assert isinstance(caught.value, HydistillError)
    assert caught.value.exit_code == 3
