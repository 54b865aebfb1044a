"""The one ONNX export of a student: raw pixels in, logits out, re-read and checked.

Every builder starts from this file, so it holds what all of them need and nothing that varies:
one file without external data, one opset domain, a fixed batch, classes and input size in its
metadata, and the same bytes for the same student. The input normalisation stands in front of the
network as four nodes of our own, `Cast -> Transpose -> Sub 128 -> Mul 1/64` (`graph_input.py`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from hydistill_edge import __version__
from hydistill_edge.errors import GraphError
from hydistill_edge.targets.base import Graph
from hydistill_edge.targets.graph_file import (
    CLASSES_KEY,
    LOGITS,
    PRECISION_KEY,
    RESIZE_KEY,
    SIZE_KEY,
    VERSION_KEY,
    all_nodes,
    check_device,
    first_line,
    load_model,
    read_graph,
    save_model,
)
from hydistill_edge.targets.graph_float16 import to_float16
from hydistill_edge.targets.graph_input import (
    NORMALIZED,
    keep_items,
    prepend_pixels,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "OPSET",
    "Exportable",
    "check_device",
    "export_student",
    "load_model",
    "read_graph",
    "save_model",
    "to_float16",
]

OPSET = 18
"""What torch's exporter writes natively; every other number is a conversion that may fail."""


class Exportable(Protocol):
    """What of a student the export needs; `models.student.Student` has it."""

    @property
    def network(self) -> nn.Module:
        """Maps `(pixel - 128) / 64`, shape (N, C, H, W), to logits, shape (N, classes)."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Class names in the order of the logits."""
        ...

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...


def export_student(
    student: Exportable,
    out: Path,
    *,
    batch: int | None = 1,
    opset: int | None = None,
    resize: str,
) -> Graph:
    """Write the student as one ONNX file and return what was read back from it.

    The student itself is not touched: a copy goes to the CPU, to float32 and to eval mode. A
    student that keeps an explicit normalisation inside its network exports those operations too.

    Args:
        student: a `models.student.Student`, or anything with its four attributes.
        out: the file to write; its folder exists.
        batch: images per run; None makes it dynamic, which costs speed in every runtime.
        opset: ONNX opset; None takes `OPSET`.
        resize: name of the rule by which images are brought to the input size.

    Raises:
        GraphError: torch cannot export the network, or delivered something else than asked for.
    """
    wanted = OPSET if opset is None else opset
    if wanted < OPSET:
        raise GraphError(
            f"opset {wanted} was asked for, and torch's exporter writes opset {OPSET} and newer; "
            f"use opset {OPSET}, or a device whose runtime reads it"
        )
    if batch is not None and batch < 1:
        raise GraphError(f"batch is {batch}; expected at least 1, or None for a dynamic batch")
    model = _tidy(_export_network(student, batch=batch, opset=wanted))
    prepend_pixels(model)
    classes = json.dumps(list(student.classes), ensure_ascii=False)
    height, width = student.size
    helper.set_model_props(
        model,
        {
            CLASSES_KEY: classes,
            SIZE_KEY: f"{height}x{width}x{student.channels}",
            RESIZE_KEY: resize,
            VERSION_KEY: __version__,
            PRECISION_KEY: "fp32",
        },
    )
    save_model(model, out)
    graph = read_graph(out)
    if (graph.opset, graph.batch) != (wanted, batch):
        raise GraphError(
            f"torch exported opset {graph.opset} and batch {graph.batch} where opset {wanted} and "
            f"batch {batch} were asked for; ask for what it can write"
        )
    return graph


def _export_network(student: Exportable, *, batch: int | None, opset: int) -> onnx.ModelProto:
    import torch

    # Contiguous weights: with channels-last ones the exporter writes stride arithmetic as nodes.
    network = copy.deepcopy(student.network).cpu().float().eval()
    network = network.to(memory_format=torch.contiguous_format)
    # A dynamic axis needs an example of at least 2: torch takes 0 and 1 for constants.
    example = torch.zeros(2 if batch is None else batch, student.channels, *student.size)
    dynamic = ({0: torch.export.Dim("batch")},) if batch is None else None
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[NORMALIZED],
                output_names=[LOGITS],
                dynamic_shapes=dynamic,
            )
    except Exception as error:  # the exporter raises many kinds, all of them about the network
        raise GraphError(
            f"torch cannot export the student's network: {first_line(error)}; use operations that "
            "torch.onnx knows, and no Python control flow that depends on pixel values"
        ) from error
    if program is None:
        raise GraphError("torch.onnx.export returned nothing for the student's network")
    model: onnx.ModelProto = program.model_proto
    return model


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what varies (paths, stack traces, node documentation) and what nobody reads."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    graph.name, graph.doc_string, model.doc_string = "student", "", ""
    model.producer_name, model.producer_version = "hydistill-edge", __version__
    del graph.metadata_props[:], model.metadata_props[:]
    # The exporter's own shapes stay: ONNX infers none behind a GroupNormalization, and quantizers
    # leave tensors without a shape in float.
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
        value.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    model = onnx.shape_inference.infer_shapes(model)
    _pool_globally(model.graph)
    _drop_unused(model.graph)
    return onnx.shape_inference.infer_shapes(model)


def _pool_globally(graph: onnx.GraphProto) -> None:
    """Turn the mean over height and width into the operator that quantizers know.

    torch writes `adaptive_avg_pool2d(1)` as ReduceMean, which stays in float between int8 layers:
    in a MobileNetV3 of 96 pixels that cost 7 % of the int8 latency in ONNX Runtime 1.31.
    """
    axes = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == 7}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    for node in list(graph.node):
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in axes:
            continue
        spatial = sorted(int(axis) % 4 for axis in np.ravel(axes[node.input[1]])) == [2, 3]
        if not spatial or ranks.get(node.input[0]) != 4:
            continue
        flat = any(a.name == "keepdims" and a.i == 0 for a in node.attribute)
        pooled = f"{node.output[0]}_pooled" if flat else node.output[0]
        pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)
        if flat:
            after = helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{pooled}_flat")
            graph.node.insert(list(graph.node).index(node) + 1, after)
        node.CopyFrom(pool)


def _drop_unused(graph: onnx.GraphProto) -> None:
    read = {name for node in all_nodes(graph) for name in node.input}
    keep_items(graph.initializer, lambda tensor: tensor.name in read)
    made = {name for node in graph.node for name in node.output}
    keep_items(graph.value_info, lambda value: value.name in made)
