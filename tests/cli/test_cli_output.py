"""What commands print: JSON that parses, names as they are, one message for what goes wrong."""

from __future__ import annotations

import errno
import importlib
import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file

SHAPE = ("--architecture", "zoo:resnet8", "--option", "width=0.25", "--size", "8")


@pytest.mark.parametrize(
    "words",
    ["devices list", "devices show raspberry-pi-5", "doctor", "recipe list", "recipe schema"],
)
def test_answer_is_json_when_asked_for(words: str, hydistill: Any) -> None:
    as_json = [] if words == "recipe schema" else ["--json"]  # a schema is JSON anyway
    answer = hydistill(*words.split(), *as_json)
    assert (answer.code, answer.err) == (0, "")
    assert answer.value


def test_device_check_says_in_json_whether_this_machine_is_one(hydistill: Any) -> None:
    answer = hydistill("devices", "check", "raspberry-pi-5", "--json")
    assert answer.code == (0 if answer.value["matches"] else 1)


def test_doctor_names_the_remedy_of_a_runtime_that_is_absent(
    hydistill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(importlib.sys.modules, "openvino", None)  # type: ignore[attr-defined]
    rows = {row["target"]: row for row in hydistill("doctor", "--json").value["targets"]}
    assert rows["openvino"]["can_run"] is False
    assert "hydistill-edge[openvino]" in rows["openvino"]["remedy"]
    assert "hydistill-edge[openvino]" in hydistill("doctor").out


def test_doctor_answers_on_a_machine_that_no_profile_fits(
    hydistill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydistill_edge.targets import profiles

    board = profiles.HostFacts("riscv64", frozenset(), cores=4, memory_mib=4096)
    monkeypatch.setattr(profiles, "read_host", lambda: board)

    assert hydistill("doctor", "--json").value["device_profile"] is None
    assert "no generic profile fits" in " ".join(hydistill("doctor").out.split())


@pytest.mark.parametrize("outputs", [4, 7])
def test_inspect_counts_the_classes_that_the_weights_were_trained_for(
    outputs: int, tiny_inputs: Any, tmp_path: Path, hydistill: Any
) -> None:
    from hydistill_edge.models.zoo import create_network

    network = create_network("resnet8", classes=outputs, channels=1, size=(8, 8), width=0.25)
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")

    answer = hydistill(
        "inspect", tmp_path / "teacher.safetensors", *SHAPE, "--channels", "1", "--json"
    )

    assert len(answer.value["classes"]) == outputs
    assert answer.value["batch_norms"] > 0


@pytest.mark.parametrize(("width", "start"), [(2.0, "factored"), (0.5, "slimmed")])
def test_init_proposes_to_factor_wide_kernels_and_to_slim_the_others(
    width: float, start: str, tmp_path: Path, hydistill: Any
) -> None:
    from hydistill_edge.models.zoo import create_network
    from hydistill_edge.recipe import Recipe

    network = create_network("resnet20", classes=3, channels=1, size=(8, 8), width=width)
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    shape = ("--architecture", "zoo:resnet20", "--option", f"width={width}", "--size", 8)
    recipe = tmp_path / "recipe.yaml"

    teacher = tmp_path / "teacher.safetensors"
    assert hydistill("init", teacher, *shape, "--channels", 1, "--out", recipe).code == 0

    assert Recipe.load(recipe).student.architecture == start


def test_inspect_counts_the_classes_of_a_factory_that_takes_no_count(
    tmp_path: Path, hydistill: Any
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))\n"
    )
    save_file(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)).state_dict(),
              tmp_path / "teacher.safetensors")  # fmt: skip
    network = ("--architecture", f"{tmp_path / 'net.py'}:build", "--size", 8, "--channels", 1)

    answer = hydistill("inspect", tmp_path / "teacher.safetensors", *network, "--json")

    assert len(answer.value["classes"]) == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--option", "depth=[3"), ("depth=[3", "YAML")),
        (("--option", "depth=2026-13-45"), ("depth=2026-13-45", "YAML")),
        (("--channels", 2), ("2 channels", "1 (grey) or 3 (RGB)")),
        (("--classes", "none.txt"), ("none.txt is empty", "one class name per line")),
    ],
    ids=["broken value", "impossible date", "channels", "no class"],
)
def test_inspect_refuses_options_that_describe_no_teacher(
    options: tuple[object, ...], says: tuple[str, ...], refused: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("teacher.pt", "none.txt"):
        Path(name).write_bytes(b"")
    refused("inspect", "teacher.pt", *SHAPE, *options, code=2, says=says)


def test_inspect_refuses_a_size_that_an_onnx_file_contradicts(
    refused: Any, hydistill: Any, tmp_path: Path
) -> None:
    weight = numpy_helper.from_array(np.ones((2, 12), np.float32), "w")
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]),
         helper.make_node("Gemm", ["f", "w"], ["y"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", kind, ("n", 3, 2, 2))],
        [helper.make_tensor_value_info("y", kind, ("n", 2))],
        [weight],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), tmp_path / "t.onnx")

    refused("inspect", tmp_path / "t.onnx", "--size", 8, code=2, says=("2x2 px", "--size 8"))
    refused("inspect", tmp_path / "t.onnx", "--channels", 1, code=2, says=("--channels 1",))
    assert hydistill("inspect", tmp_path / "t.onnx", "--channels", 3, "--json").code == 0


def test_init_refuses_images_that_no_build_could_read(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    command = ("init", "teacher.pt", *SHAPE, "--out", tmp_path / "recipe.yaml", "--images")
    refused(*command, tmp_path / "notes.txt", code=2, says=("notes.txt", "a folder of images"))
    refused(*command, tmp_path / "absent", code=3, says=("absent",))
    assert not (tmp_path / "recipe.yaml").exists()


def test_init_names_the_build_after_the_file_whatever_it_is_called(
    tiny_inputs: Any, tmp_path: Path, hydistill: Any
) -> None:
    for stem, name in (("möbel (1)", "m-bel-1"), ("123", "123"), ("()", "build")):
        weights = tmp_path / f"{stem}.safetensors"
        weights.write_bytes(tiny_inputs.teacher.read_bytes())
        recipe = tmp_path / f"{stem}.yaml"
        assert hydistill("init", weights, *SHAPE, "--channels", 1, "--out", recipe).code == 0
        checked = hydistill("recipe", "check", recipe, "--json")
        assert checked.value["recipe"]["name"] == name


def test_init_takes_images_from_formulas_where_there_are_no_real_ones(
    tiny_inputs: Any, tmp_path: Path, hydistill: Any
) -> None:
    pilot = ("--images", tiny_inputs.folder / "pilot.npz")
    counts = []
    for name, images in (("with", pilot), ("without", ())):
        recipe = tmp_path / f"{name}.yaml"
        command = ("init", tiny_inputs.teacher, *SHAPE, "--channels", 1, *images, "--out", recipe)
        assert hydistill(*command).code == 0
        checked = hydistill("recipe", "check", recipe, "--json").value["recipe"]
        counts.append(checked["images"]["synthetic"]["procedural"]["count"])
    assert counts == [0, 16384]


def test_class_names_in_brackets_are_printed_as_they_are(
    hydistill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {
        "name": "student [v2]",
        "accuracy": 0.5,
        "per_class": [{"class": "[/dent]", "n": 2, "accuracy": 0.5}],
        "roc_auc": None,
        "agreement_with_teacher": None,
    }
    evaluation = importlib.import_module("hydistill_edge.evaluation")
    found = {"images": 2, "models": [model]}
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: found)

    out = hydistill("evaluate", "run", "--data", "holdout").out

    assert "[/dent]" in out
    assert "student [v2]" in out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 3, "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/runs"), 2, "permissions"),
        (ModuleNotFoundError("No module named 'nncf'", name="nncf"), 3, "hydistill-edge[build]"),
        (RuntimeError("surprise"), 4, "a fault of ours"),
    ],
    ids=["full-disk", "not-allowed", "package-absent", "surprise"],
)
def test_error_that_nobody_foresaw_is_one_message_too(
    error: Exception, code: int, said: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr("hydistill_edge.targets.profiles.list_profiles", fail)
    refused("devices", "list", code=code, says=(said,))


def test_debug_shows_the_traceback_and_the_message(hydistill: Any) -> None:
    answer = hydistill("--debug", "devices", "show", "absent", "--json")
    assert answer.code == 2
    assert "Traceback (most recent call last)" in answer.err
    assert json.loads(answer.out)["error"]["kind"] == "ProfileError"


def test_interrupted_command_says_how_to_go_on(
    hydistill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("hydistill_edge.targets.profiles.list_profiles", interrupt)
    answer = hydistill("devices", "list")
    assert (answer.code, answer.out) == (130, "")
    assert "run the same command again" in answer.err
