"""Checks of what TensorRT's ONNX parser takes at all: opsets, operators, element types."""

from __future__ import annotations

from collections.abc import Iterator

from hydistill_edge.targets.tensorrt.graph_view import (
    FLOATS,
    WEIGHTED,
    Broken,
    ElementType,
    GraphView,
    attribute,
    label,
    type_name,
)
from hydistill_edge.targets.tensorrt.operators import NEWEST_IR, OPSETS, SUPPORTED


def opset(view: GraphView, generation: int) -> Iterator[Broken]:
    """Opset and IR version are within what the parser is built with."""
    oldest, newest = OPSETS[generation]
    if not oldest <= view.opset <= newest:
        yield "graph", f"opset is {view.opset}; TensorRT {generation} takes {oldest} to {newest}"
    if view.model.ir_version > NEWEST_IR[generation]:
        limit = NEWEST_IR[generation]
        yield "graph", f"IR version is {view.model.ir_version}; expected at most {limit}"


def operators(view: GraphView, generation: int) -> Iterator[Broken]:
    """Every operator is a standard one that the parser knows."""
    for node in view.nodes:
        if node.domain not in {"", "ai.onnx"}:
            yield label(node), f"{node.domain}.{node.op_type} is no standard operator"
        elif node.op_type not in SUPPORTED:
            yield label(node), f"{node.op_type} is not among the operators of TensorRT's parser"


def restrictions(view: GraphView, generation: int) -> Iterator[Broken]:
    """Attributes are within what the parser takes."""
    for node in view.nodes:
        if node.op_type in {"MaxPool", "AveragePool", "LpPool"}:
            dilations = attribute(node, "dilations", [])
            if any(value != 1 for value in dilations):
                yield label(node), f"dilations are {list(dilations)}; expected ones"
        if node.op_type == "MaxPool" and len(node.output) > 1:
            yield label(node), "has the output Indices, which is not supported"
        if node.op_type == "Resize" and attribute(node, "antialias", 0):
            yield label(node), "resizes with antialiasing, which is not supported"
        if node.op_type.startswith("Reduce") and len(node.input) > 1:
            axes = node.input[1]
            if axes and axes not in view.constants:
                yield label(node), "computes its axes; expected constant ones"


def type_inference(view: GraphView, generation: int) -> Iterator[Broken]:
    """Types agree everywhere."""
    if view.inference_error:
        yield "graph", view.inference_error


def uint8(view: GraphView, generation: int) -> Iterator[Broken]:
    """UINT8 is found at inputs and outputs only, and is cast at once."""
    edges = {*view.inputs, *view.outputs}
    for tensor, kind in view.types.items():
        if kind != ElementType.UINT8:
            continue
        if tensor not in edges:
            yield tensor, "is UINT8 inside the graph; UINT8 is for network inputs and outputs only"
        for node in view.consumers.get(tensor, []):
            if node.op_type != "Cast":
                yield label(node), f'reads UINT8 "{tensor}"; expected a Cast to float first'


def float64(view: GraphView, generation: int) -> Iterator[Broken]:
    """No tensor is float64."""
    for tensor, kind in view.types.items():
        if kind == ElementType.DOUBLE:
            yield tensor, "is float64, which TensorRT clamps to float32; expected float32"


def int64_arithmetic(view: GraphView, generation: int) -> Iterator[Broken]:
    """No sum or product is taken of int64."""
    arithmetic = WEIGHTED | {"Add", "Sub", "Mul", "Div"}
    for node in view.nodes:
        wrong = [t for t in node.input if view.types.get(t) == ElementType.INT64]
        if node.op_type in arithmetic and wrong:
            yield label(node), f'computes with int64 "{wrong[0]}"; expected floats'


def one_float_type(view: GraphView, generation: int) -> Iterator[Broken]:
    """All layers with weights compute in one float type."""
    nodes = [node for node in view.nodes if node.op_type in WEIGHTED]
    kinds = [view.types.get(str(node.input[0])) for node in nodes]
    floats = sorted({kind for kind in kinds if kind in FLOATS})
    if len(floats) < 2:
        return
    common = max(floats, key=kinds.count)
    for node, kind in zip(nodes, kinds, strict=True):
        if kind in FLOATS and kind != common:
            yield (
                label(node),
                f"computes in {type_name(kind)}, most of the graph in {type_name(common)}",
            )
