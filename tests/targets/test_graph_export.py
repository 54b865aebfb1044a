from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from hydistill_edge.errors import GraphError
from hydistill_edge.targets.graph import (
    check_device,
    export_student,
    load_model,
    save_model,
    to_float16,
)
from hydistill_edge.targets.graph_input import split_input

ort = pytest.importorskip("onnxruntime")

KINDS = ("residual", "depthwise", "squeeze", "explicit")

# R1 of the parity ladder: float32 rounding over a few layers, as a share of the largest logit.
EXPORT_TOLERANCE = 1e-4


def run(model: onnx.ModelProto, images: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    rows = [session.run(None, {"image": image[None]})[0] for image in images]
    return np.concatenate(rows)


def torch_logits(student: Any, images: Any) -> Any:
    import torch

    normalized = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 128) / 64
    with torch.no_grad():
        return student.network(normalized).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_export_equals_torch_within_tolerance(
    kind: str, tiny_student: Callable[..., Any], tiny_graph: Callable[..., Any], pixels: Any
) -> None:
    images = pixels(8)
    expected = torch_logits(tiny_student(kind), images)

    logits = run(load_model(tiny_graph(kind)), images)

    assert np.abs(logits - expected).max() <= EXPORT_TOLERANCE * np.abs(expected).max()


def test_export_carries_contract_in_graph_value(tiny_graph: Callable[..., Any]) -> None:
    graph = tiny_graph("residual")

    assert (graph.batch, graph.height, graph.width, graph.channels) == (1, 16, 16, 3)
    assert graph.classes == ("bolt", "nut", "washer")
    assert (graph.opset, graph.ir_version, graph.resize) == (18, 8, "none")


def test_export_is_one_file_of_standard_operators(tiny_graph: Callable[..., Any]) -> None:
    graph = tiny_graph("squeeze")
    model = load_model(graph)

    assert list(graph.path.parent.glob(f"{graph.path.name}*")) == [graph.path]
    assert [entry.domain for entry in model.opset_import] == [""]
    assert [n.op_type for n in model.graph.node[:4]] == ["Cast", "Transpose", "Sub", "Mul"]
    assert "ReduceMean" not in {node.op_type for node in model.graph.node}


def test_export_gives_equal_bytes_when_repeated(
    tiny_student: Callable[..., Any], tiny_graph: Callable[..., Any], tmp_path: Path
) -> None:
    first = tiny_graph("depthwise")

    again = export_student(tiny_student("depthwise"), tmp_path / "again.onnx", resize="none")

    assert again.sha256 == first.sha256
    assert str(Path(__file__).parent).encode() not in first.path.read_bytes()


def test_export_ignores_memory_format_of_student(
    tiny_student: Callable[..., Any], tiny_graph: Callable[..., Any], tmp_path: Path
) -> None:
    import torch

    student = tiny_student("residual")
    student.network.to(memory_format=torch.channels_last)

    graph = export_student(student, tmp_path / "model.onnx", resize="none")

    assert graph.sha256 == tiny_graph("residual").sha256


def test_export_leaves_student_in_its_mode(
    tiny_student: Callable[..., Any], tmp_path: Path
) -> None:
    student = tiny_student("residual")
    student.network.train()

    export_student(student, tmp_path / "model.onnx", resize="none")

    assert student.network.training


def test_export_runs_any_batch_when_dynamic(
    tiny_student: Callable[..., Any], tiny_graph: Callable[..., Any], pixels: Any
) -> None:
    graph, images = tiny_graph("residual", None), pixels(3)
    session = ort.InferenceSession(graph.path, providers=["CPUExecutionProvider"])

    (logits,) = session.run(None, {"image": images})

    assert graph.batch is None
    expected = torch_logits(tiny_student("residual"), images)
    np.testing.assert_allclose(logits, expected, atol=EXPORT_TOLERANCE * np.abs(expected).max())


def test_export_knows_every_shape_when_onnx_cannot_infer_it(tmp_path: Path) -> None:
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    )
    student = SimpleNamespace(network=network, classes=("a", "b", "c"), channels=3, size=(8, 8))

    graph = export_student(student, tmp_path / "model.onnx", opset=21, resize="none")

    model = load_model(graph)
    shaped = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    assert shaped >= {name for node in model.graph.node[4:] for name in node.output}
    assert "GroupNormalization" in {node.op_type for node in model.graph.node}
    assert graph.opset == 21


@pytest.mark.parametrize("opset", [13, 17])
def test_export_refuses_opset_when_exporter_cannot_write_it(
    opset: int, tiny_student: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(GraphError, match=f"opset {opset} was asked for"):
        export_student(tiny_student("residual"), tmp_path / "m.onnx", opset=opset, resize="none")


def test_export_raises_graph_error_when_torch_cannot_export(tmp_path: Path) -> None:
    import torch

    class Branching(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    student = SimpleNamespace(network=Branching(), classes=("a", "b", "c"), channels=3, size=(8, 8))
    with pytest.raises(GraphError, match="torch cannot export"):
        export_student(student, tmp_path / "model.onnx", resize="none")


def test_export_refuses_class_names_when_their_number_is_wrong(
    tiny_student: Callable[..., Any], tmp_path: Path
) -> None:
    student = dataclasses.replace(tiny_student("residual"), classes=("a", "b"))

    with pytest.raises(GraphError, match="one logit for each of the 2 classes"):
        export_student(student, tmp_path / "model.onnx", resize="none")


def test_metadata_keeps_class_names_beyond_ascii(
    tiny_student: Callable[..., Any], tmp_path: Path
) -> None:
    names = ("Ölfleck", "螺栓", "a,b")
    student = dataclasses.replace(tiny_student("residual"), classes=names)

    graph = export_student(student, tmp_path / "model.onnx", resize="none")

    assert graph.classes == names
    properties = {p.key: p.value for p in load_model(graph).metadata_props}
    assert json.loads(properties["hydistill.classes"]) == list(names)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"max_opset": 17}, "opset 18"),
        ({"max_ir": 7}, "IR version 8"),
        ({"batch": 4}, "batch 1"),
    ],
    ids=["opset", "ir", "batch"],
)
def test_check_device_refuses_graph_when_beyond_limits(
    limits: dict[str, int], problem: str, tiny_graph: Callable[..., Any]
) -> None:
    device: Any = SimpleNamespace(
        **{"name": "old-box", "max_opset": 21, "max_ir": 10, "batch": 1, **limits}
    )

    with pytest.raises(GraphError, match=problem):
        check_device(tiny_graph("residual"), device)


def test_split_input_gives_network_that_takes_normalized_pixels(
    tiny_graph: Callable[..., Any], pixels: Any
) -> None:
    model, images = load_model(tiny_graph("residual")), pixels(1)
    core = split_input(model)
    onnx.checker.check_model(core, full_check=True)
    session = ort.InferenceSession(core.SerializeToString(), providers=["CPUExecutionProvider"])

    normalized = (images.astype(np.float32).transpose(0, 3, 1, 2) - 128) / 64
    (logits,) = session.run(None, {"normalized": normalized})

    np.testing.assert_array_equal(logits, run(model, images))


def test_load_model_raises_graph_error_when_file_changed(
    tiny_graph: Callable[..., Any], tmp_path: Path
) -> None:
    graph = tiny_graph("residual")
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(graph.path.read_bytes() + b"\x00")

    with pytest.raises(GraphError, match="has changed since it was checked"):
        load_model(dataclasses.replace(graph, path=copy))


@pytest.mark.parametrize("kind", KINDS)
def test_float16_stays_near_float32(
    kind: str, tiny_graph: Callable[..., Any], pixels: Any, tmp_path: Path
) -> None:
    graph, images = tiny_graph(kind), pixels(8)
    save_model(to_float16(graph), tmp_path / "half.onnx")

    half = onnx.load(tmp_path / "half.onnx")

    assert {t.data_type for t in half.graph.initializer} <= {onnx.TensorProto.FLOAT16, 7}
    expected = run(load_model(graph), images)
    # Eleven significant bits a value and a few layers: a hundredth of the scale is ample.
    assert np.abs(run(half, images) - expected).max() <= 1e-2 * np.abs(expected).max()
    assert half.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_float16_refuses_weight_when_beyond_its_range(
    tiny_student: Callable[..., Any], tmp_path: Path
) -> None:
    student = tiny_student("residual")
    student.network.fc.weight.data[0, 0] = 1e6
    graph = export_student(student, tmp_path / "model.onnx", resize="none")

    with pytest.raises(GraphError, match=r"reaches 1e\+06, beyond float16"):
        to_float16(graph)
