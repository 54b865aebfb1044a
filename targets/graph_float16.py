"""The float16 form of an exported graph: for runtimes that take precision from the types."""

from __future__ import annotations

import math
from collections.abc import MutableSequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hydistill_edge.errors import GraphError
from hydistill_edge.targets.base import Graph
from hydistill_edge.targets.graph_file import LOGITS, first_line, load_model, set_precision

FLOAT16_MAX = float(np.finfo(np.float16).max)


def to_float16(graph: Graph) -> onnx.ModelProto:
    """Return the graph with float16 weights and arithmetic; input and output types stay.

    Pixels are exact in float16: `(pixel - 128) / 64` has eight significant bits.

    Raises:
        GraphError: a weight exceeds float16, or an operator takes float32 only.
    """
    model = load_model(graph)
    keep = {node.input[2] for node in model.graph.node if node.op_type == "Resize"}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in keep:
            tensor.CopyFrom(_half(tensor))
    for node in model.graph.node:
        for attribute in node.attribute:
            if (attribute.name, attribute.i) == ("to", TensorProto.FLOAT):
                attribute.i = TensorProto.FLOAT16
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half(attribute.t))
    half_logits = f"{LOGITS}_float16"
    for node in model.graph.node:
        _rename(node.input, LOGITS, half_logits)
        _rename(node.output, LOGITS, half_logits)
    last = helper.make_node("Cast", [half_logits], [LOGITS], name=LOGITS, to=TensorProto.FLOAT)
    model.graph.node.append(last)
    del model.graph.value_info[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"{graph.path} has no float16 form: {first_line(error)}") from error
    set_precision(model, "fp16")
    return model


def _half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    # ReLU6 and its kin may carry the largest float as "no limit"; infinity means the same.
    limit = math.inf if values.ndim == 0 and largest == np.finfo(np.float32).max else FLOAT16_MAX
    if largest > limit:
        raise GraphError(
            f'weight "{tensor.name}" reaches {largest:g}, beyond float16 ({FLOAT16_MAX:g}); use '
            "fp32, bf16 or int8 for this student"
        )
    with np.errstate(over="ignore"):
        return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new
