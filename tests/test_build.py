"""The good path: a recipe in, checked artifacts out, from the command line and from Python."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml

from hydistill_edge import Build, Recipe, build

ARTIFACT = "onnxruntime-x86-avx2-int8"

SUMMARY = {
    "schema_version": int,
    "name": str,
    "method": str,
    "teacher": dict,
    "student": dict,
    "transfer": dict,
    "overlap": dict,
    "artifacts": list,
    "method_facts": dict,
    "wall_s": dict,
    "peak_memory_mib": dict,
    "passed": bool,
}

Contents = Callable[[Path], dict[str, str]]


def times(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_second_build_skips_every_stage(
    quick: None, tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml")
    before = times(run_copy)

    assert hydistill("build", recipe, "--out", run_copy, "--json").code == 0

    after = times(run_copy)
    told_anew = {"recipe.yaml", "environment.json", "summary.json", "preview.npz", "report.html"}
    assert {Path(name).name for name in after if after[name] != before[name]} == told_anew


def test_summary_holds_what_people_and_ci_read(finished_build: Path) -> None:
    summary = json.loads((finished_build / "summary.json").read_text())

    assert {name: type(value) for name, value in summary.items()} == SUMMARY
    assert (summary["schema_version"], summary["name"], summary["method"]) == (1, "tiny", "kd")
    assert summary["teacher"].keys() >= {"arch", "params", "macs", "accuracy"}
    assert summary["student"].keys() >= {"arch", "params", "macs", "accuracy", "teacher_agreement"}
    assert summary["transfer"] == {**summary["transfer"], "images": 96, "real": 32, "synthetic": 64}
    (artifact,) = summary["artifacts"]
    assert (artifact["target"], artifact["device"]) == ("onnxruntime", "x86-avx2")
    assert (finished_build / artifact["file"]).stat().st_size == artifact["bytes"]
    assert artifact["latency"].keys() >= {"scope", "p50_ms", "p90_ms", "p99_ms", "n", "verdict"}
    assert 0 <= artifact["student_agreement"] <= 1
    assert summary["wall_s"].keys() >= {"teacher", "images", "student", "graph", "bundle"}


def test_run_directory_holds_recipe_and_environment(finished_build: Path) -> None:
    recipe = Recipe.load(finished_build / "recipe.yaml")
    environment = json.loads((finished_build / "environment.json").read_text())

    assert recipe.name == "tiny"
    assert environment["packages"]["torch"]
    assert (finished_build / "report.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in finished_build.rglob("*partial*")) == []


def test_build_from_python_answers_with_the_summary(
    quick: None, tiny_inputs: Any, run_copy: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    recipe = Recipe.load(tiny_inputs.recipe(tmp_path / "recipe.yaml"))

    result = build(recipe, out=run_copy, report=lambda stage, *_: told.append(stage))

    assert isinstance(result, Build)
    assert result.passed is True
    assert result.summary["artifacts"][0]["target"] == "onnxruntime"
    assert (told[0], told[-1]) == ("teacher", "report")


def own_student(tiny_inputs: Any, weights: Path, **student: Any) -> dict[str, Any]:
    shape = {"height": 8, "width": 8, "channels": 1, "mean": [0.5], "std": [0.25]}
    section = {"weights": str(weights), "classes": list(tiny_inputs.classes), "input": shape}
    none = {"architecture": None, "width": None, "options": None}
    return {
        "name": "own",
        "method": "none",
        "teacher": None,
        "training": None,
        "student": {**none, **section, **student},
    }


def test_own_torch_student_runs_everything_after_training(
    quick: None, tiny_inputs: Any, tmp_path: Path
) -> None:
    network = {"architecture": "zoo:resnet8", "options": {"width": 0.25}}
    changes = own_student(tiny_inputs, tiny_inputs.teacher, **network)
    recipe = Recipe.load(tiny_inputs.recipe(tmp_path / "recipe.yaml", **changes))

    result = build(recipe, out=tmp_path / "run")

    assert result.passed is True
    assert result.summary["method"] == "none"
    assert result.summary["teacher"]["role"] == "the student itself (method none)"
    assert result.summary["student"]["teacher_agreement"] == 1.0
    assert len(list((result.path / "bundle").iterdir())) == 1


def write_onnx(path: Path, *, classes: int = 4) -> Path:
    """Write a classifier of 8x8 grey images: one convolution, mean over the map, one matrix."""
    from onnx import TensorProto, helper, numpy_helper

    chance = np.random.default_rng(0)
    weights = {"kernel": (8, 1, 3, 3), "matrix": (classes, 8), "bias": (classes,)}
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["map"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        [
            numpy_helper.from_array(chance.normal(size=shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_own_onnx_student_runs_everything_after_training(
    quick: None, tiny_inputs: Any, tmp_path: Path
) -> None:
    changes = own_student(tiny_inputs, write_onnx(tmp_path / "own.onnx"))
    # Without batch norms images only drift away from what they started as.
    changes = {**changes, "images": {"synthetic": {"inversion": {"iterations": 2}}}}
    recipe = Recipe.load(tiny_inputs.recipe(tmp_path / "recipe.yaml", **changes))

    result = build(recipe, out=tmp_path / "run")

    (artifact,) = result.summary["artifacts"]
    assert result.summary["student"]["arch"] == "onnx:own.onnx"
    assert artifact["parity"]["passed"] is True
    assert (result.path / artifact["file"]).is_file()


def test_init_writes_a_recipe_that_checks_and_builds(
    quick: None, tiny_inputs: Any, tmp_path: Path, hydistill: Any
) -> None:
    teacher, recipe = write_onnx(tmp_path / "the teacher (2).onnx"), tmp_path / "recipe.yaml"
    pilot = ("--images", tiny_inputs.folder / "pilot.npz", "--device", "x86-avx2")

    written = hydistill("init", teacher, *pilot, "--out", recipe, "--json")
    assert (written.code, written.value["teacher"]["classes"][-1]) == (0, "class_3")
    checked = hydistill("recipe", "check", recipe, "--json")
    assert (checked.code, checked.value["valid"]) == (0, True)

    content = yaml.safe_load(recipe.read_text())  # as long as a test may take
    content["training"] = {"steps": 4, "batch": 16, "evaluations": 1}
    content["images"]["synthetic"] = {"count": 32, "inversion": {"iterations": 2}}
    content["student"]["width"] = 0.25
    content["targets"] = content["targets"][:1]
    content["gates"] = {"int8_agreement_synthetic": 0, "int8_agreement_real": 0}
    content["latency"] = {"mode": "demo"}
    recipe.write_text(yaml.safe_dump(content))
    built = hydistill("build", recipe, "--out", tmp_path / "run", "--json")
    assert built.code in (0, 1)  # four steps make no classifier
    assert built.value["teacher"]["arch"] == "onnx:the teacher (2).onnx"


def test_evaluate_sets_teacher_student_and_artifact_side_by_side(
    finished_build: Path, tiny_inputs: Any, hydistill: Any
) -> None:
    data = tiny_inputs.folder / "holdout.npz"

    found = hydistill("evaluate", finished_build, "--data", data, "--json").value

    assert found["images"] == 40
    assert [model["name"] for model in found["models"]] == ["teacher", "student", ARTIFACT]
    for model in found["models"]:
        assert np.array(model["confusion"]).sum() == 40
        assert [entry["n"] for entry in model["per_class"]] == [10, 10, 10, 10]


def test_evaluate_says_of_a_bundle_what_it_says_of_the_artifact(
    finished_build: Path, tiny_inputs: Any, hydistill: Any
) -> None:
    data = tiny_inputs.folder / "holdout.npz"
    bundle = next((finished_build / "bundle").iterdir())

    of_run = hydistill("evaluate", finished_build, "--data", data, "--json").value["models"][-1]
    of_bundle = hydistill("evaluate", bundle, "--data", data, "--json").value["models"][0]

    assert of_bundle["confusion"] == of_run["confusion"]


def test_verify_climbs_the_ladder_again(
    quick: None, run_copy: Path, hydistill: Any, contents: Contents
) -> None:
    before = contents(run_copy)

    answer = hydistill("verify", run_copy, "--json")

    assert (answer.code, answer.value["passed"]) == (0, True)
    rungs = [rung["rung"] for rung in answer.value["artifacts"][ARTIFACT]["rungs"]]
    assert rungs[:2] == ["R0", "R1"]
    assert rungs[-2:] == ["R6", "R7"]
    assert contents(run_copy).keys() == before.keys()


def test_verify_ends_with_1_when_an_artifact_was_swapped(
    quick: None, run_copy: Path, hydistill: Any
) -> None:
    import onnx

    path = run_copy / "targets" / ARTIFACT / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.raw_data:
            tensor.raw_data = bytes(len(tensor.raw_data))  # knows nothing any more
    path.write_bytes(model.SerializeToString())

    answer = hydistill("verify", run_copy, "--json")

    assert (answer.code, answer.value["passed"]) == (1, False)
    rungs = answer.value["artifacts"][ARTIFACT]["rungs"]
    assert "R4" in [rung["rung"] for rung in rungs if rung["passed"] is False]
    assert json.loads((run_copy / "summary.json").read_text())["passed"] is False


def test_build_ends_with_1_when_a_gate_says_no(
    quick: None, tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", gates={"student_agreement": 1})

    answer = hydistill("build", recipe, "--out", run_copy, "--json")

    (gate,) = answer.value["student"]["gates"]
    assert (answer.code, answer.value["passed"], gate["passed"]) == (1, False, False)


def test_profile_measures_a_run_and_a_bundle(quick: None, run_copy: Path, hydistill: Any) -> None:
    bundle = next((run_copy / "bundle").iterdir())

    for subject, name in ((run_copy, ARTIFACT), (bundle, bundle.name)):
        answer = hydistill("profile", subject, "--mode", "demo", "--json")
        found = answer.value["artifacts"][name]
        assert answer.code == 0
        assert found["scopes"]["engine"]["p50_ms"] > 0
        assert found["advisory"] is True


def test_profile_of_a_run_is_told_by_its_summary(
    quick: None, run_copy: Path, hydistill: Any
) -> None:
    measured = hydistill("profile", run_copy, "--mode", "demo", "--json").value["artifacts"]

    (row,) = json.loads((run_copy / "summary.json").read_text())["artifacts"]
    assert row["latency"]["p50_ms"] == measured[ARTIFACT]["scopes"]["engine"]["p50_ms"]


@pytest.mark.parametrize(("measured", "asked"), [("quick", "demo"), ("demo", "quick")])
def test_build_keeps_a_measurement_that_is_fuller_than_it_asks_for(
    measured: str,
    asked: str,
    quick: None,
    tiny_inputs: Any,
    run_copy: Path,
    tmp_path: Path,
    hydistill: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hydistill_edge.targets import latency

    monkeypatch.setattr(latency, "MODES", dict.fromkeys(latency.MODES, latency.MODES["demo"]))
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", latency={"mode": asked})
    file = run_copy / "targets" / ARTIFACT / "latency.json"
    assert hydistill("profile", run_copy, "--mode", measured, "--json").code == 0
    before = file.read_bytes()

    assert hydistill("build", recipe, "--out", run_copy, "--json").value["artifacts"]

    fuller = measured == "quick"
    assert (file.read_bytes() == before) == fuller
    assert hydistill("profile", run_copy, "--mode", asked, "--json").code == 0
    assert file.read_bytes() != before  # who asks for a measurement gets one


def test_bundle_for_a_profile_of_the_users_own_is_profiled_by_it(
    quick: None, tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any
) -> None:
    from hydistill_edge.targets.profiles import DEVICES

    profile = yaml.safe_load((DEVICES / "x86-avx2.yaml").read_text())
    device = tmp_path / "line3.yaml"
    device.write_text(yaml.safe_dump({**profile, "name": "line3"}))
    targets = [{"target": "onnxruntime", "device": str(device)}]
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", targets=targets)
    assert hydistill("build", recipe, "--out", run_copy, "--json").code == 0
    (bundle,) = (run_copy / "bundle").iterdir()

    answer = hydistill("profile", bundle, "--mode", "demo", "--json")

    conditions = answer.value["artifacts"][bundle.name]["conditions"]
    assert conditions["device_profile"] == "line3"


def test_bundle_shows_verifies_and_unpacks(
    finished_build: Path, tmp_path: Path, hydistill: Any
) -> None:
    bundle = next((finished_build / "bundle").iterdir())

    manifest = hydistill("bundle", "inspect", bundle, "--json").value
    assert (manifest["name"], manifest["target"]) == ("tiny", "onnxruntime")
    assert hydistill("bundle", "verify", bundle, "--json").value["valid"] is True
    unpacked = hydistill("bundle", "unpack", bundle, "--out", tmp_path / "out", "--json").value
    assert all((tmp_path / "out" / name).is_file() for name in unpacked["files"])


def test_whole_build_for_three_runtimes_opens_no_connection(
    quick: None, tiny_inputs: Any, tmp_path: Path, hydistill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        called.append(str(arguments))
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    targets = [
        {"target": "onnxruntime", "device": "x86-avx2", "precisions": ["fp32"]},
        {"target": "openvino", "device": "x86-avx2", "precisions": ["int8"]},
        {"target": "tensorrt", "device": "jetson-orin-nano", "precisions": ["int8"]},
    ]
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", targets=targets)

    answer = hydistill("build", recipe, "--out", tmp_path / "run", "--json")

    assert called == []
    made = {row["target"]: row for row in answer.value["artifacts"]}
    assert made["onnxruntime"]["passed"] is True
    assert made["openvino"]["parity"]["simulated_by"] is None
    assert made["tensorrt"]["latency"]["p50_ms"] is None
    assert "on the device" in made["tensorrt"]["latency"]["note"]
