from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hydistill_edge.errors import GraphError, MissingFileError
from hydistill_edge.targets.graph import load_model, read_graph


@dataclass(frozen=True)
class Broken:
    """One way to break the export contract, and the words that should tell it."""

    name: str
    harm: Callable[[onnx.ModelProto], None]
    words: str


def external(model: onnx.ModelProto, location: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def set_property(model: onnx.ModelProto, key: str, value: str | None) -> None:
    properties = {entry.key: entry.value for entry in model.metadata_props}
    properties.pop(f"hydistill.{key}")
    if value is not None:
        properties[f"hydistill.{key}"] = value
    helper.set_model_props(model, properties)


def foreign_node(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    node = helper.make_node("Gelu", ["logits"], ["unused"], domain="com.evil")
    model.graph.node.append(node)


def foreign_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Gelu", ["x"], ["y"], domain="com.evil")], "inner", [], []
    )
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner))


def poison(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "fc.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def set_dim(value: Any, axis: int, size: int) -> None:
    value.type.tensor_type.shape.dim[axis].dim_value = size


def set_type(value: Any, kind: int) -> None:
    value.type.tensor_type.elem_type = kind


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"


def add_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


BROKEN = [
    Broken("external data inside", lambda m: external(m, "model.data"), "in another file"),
    Broken("external data outside", lambda m: external(m, "../../etc/passwd"), "in another file"),
    Broken("external data absolute", lambda m: external(m, "/etc/passwd"), "in another file"),
    Broken("foreign domain", foreign_node, "domain com.evil"),
    Broken("foreign domain in a subgraph", foreign_subgraph, "domain com.evil"),
    Broken(
        "unused foreign domain",
        lambda m: m.opset_import.append(helper.make_opsetid("com.evil", 1)),
        "domain com.evil",
    ),
    Broken("input name", rename_input, "takes pixels: UINT8"),
    Broken("input dtype", lambda m: set_type(m.graph.input[0], 3), "takes image: INT8"),
    Broken("input count", add_input, "mask: FLOAT"),
    Broken("channels", lambda m: set_dim(m.graph.input[0], 3, 4), "1 or 3 channels"),
    Broken("output name", rename_output, "returns scores: FLOAT"),
    Broken("output dtype", lambda m: set_type(m.graph.output[0], 11), "not valid ONNX"),
    Broken("output classes", lambda m: set_dim(m.graph.output[0], 1, 7), "not valid ONNX"),
    Broken("no classes", lambda m: set_property(m, "classes", None), "lacks metadata"),
    Broken("no resize rule", lambda m: set_property(m, "resize", None), "hydistill.resize"),
    Broken("empty version", lambda m: set_property(m, "version", ""), "hydistill.version"),
    Broken("classes not JSON", lambda m: set_property(m, "classes", "[bolt"), "not JSON"),
    Broken("classes no list", lambda m: set_property(m, "classes", '{"a":1}'), "distinct names"),
    Broken("classes twice", lambda m: set_property(m, "classes", '["a","a","b"]'), "distinct"),
    Broken("class too many", lambda m: set_property(m, "classes", '["a","b"]'), "one logit for"),
    Broken("other size", lambda m: set_property(m, "input_size", "8x8x3"), "says input size 8x8x3"),
    Broken("NaN weight", poison, 'NaN or infinity in weight "fc.weight"'),
    Broken("no nodes", lambda m: m.graph.ClearField("node"), "no ONNX graph"),
    Broken("dangling node", lambda m: m.graph.node[5].input.__setitem__(0, "x"), "not valid ONNX"),
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_read_graph_raises_graph_error_when_contract_is_broken(
    case: Broken, tiny_graph: Callable[..., Any], tmp_path: Path
) -> None:
    model = load_model(tiny_graph("residual"))
    case.harm(model)
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.SerializeToString())

    with pytest.raises(GraphError, match=case.words):
        read_graph(path)


def test_read_graph_returns_what_export_returned(tiny_graph: Callable[..., Any]) -> None:
    graph = tiny_graph("residual")

    assert read_graph(graph.path) == graph


@given(data=st.binary(max_size=200))
def test_read_graph_raises_graph_error_when_bytes_are_random(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(data)

    with pytest.raises(GraphError):
        read_graph(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_read_graph_raises_graph_error_when_file_is_cut(
    kept: float, tiny_graph: Callable[..., Any], tmp_path: Path
) -> None:
    data = tiny_graph("residual").path.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * kept)])

    with pytest.raises(GraphError):
        read_graph(path)


def test_read_graph_raises_missing_file_error_when_file_is_absent(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"absent\.onnx does not exist"):
        read_graph(tmp_path / "absent.onnx")


def test_read_graph_raises_graph_error_when_path_is_folder(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="cannot be read"):
        read_graph(tmp_path)
