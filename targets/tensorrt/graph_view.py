"""An ONNX graph, and what quantizing asks of it: who makes a tensor, who reads it, its type."""

from __future__ import annotations

from collections import defaultdict
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from hydistill_edge.errors import GraphError, MissingFileError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


class ElementType(IntEnum):
    """Element types as ONNX numbers them.

    Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, TensorProto.DataType.
    """

    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    INT32 = 6
    INT64 = 7
    FLOAT16 = 10
    DOUBLE = 11
    BFLOAT16 = 16


FLOATS = frozenset({ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16})

# Operators with weights that TensorRT runs in int8; the weights are the second input.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Operators that move values without changing them: quantizing before or after is the same.
COMMUTING = frozenset(
    {"Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
AVERAGES = frozenset({"AveragePool", "GlobalAveragePool"})
ACTIVATIONS = frozenset(
    {"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh"}
)


Broken = tuple[str, str]
"""A node, or a tensor, that breaks a rule, and what is wrong with it."""


class GraphView:
    """A loaded ONNX model, read only.

    Attributes:
        model: the model itself.
        nodes: its nodes, in topological order.
        constants: initializers and Constant nodes, by tensor name.
        producers: the node that makes a tensor.
        consumers: the nodes that read a tensor, in order.
        types: element type of a tensor, where inference finds it.
        ranks: number of dimensions, likewise.
        inference_error: what type inference had to say; empty if it found no contradiction.
    """

    def __init__(self, model: ModelProto) -> None:
        from onnx import numpy_helper

        self.model = model
        graph = model.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.inputs = [item.name for item in graph.input]
        self.outputs = [item.name for item in graph.output]
        self.constants: dict[str, NDArray[Any]] = {
            item.name: numpy_helper.to_array(item) for item in graph.initializer
        }
        self.producers: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.producers.update({name: node for name in node.output if name})
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)
            value = attribute(node, "value") if node.op_type == "Constant" else None
            if value is not None:
                self.constants[node.output[0]] = numpy_helper.to_array(value)
        inferred, self.inference_error = _inferred(model)
        self.types: dict[str, int] = {item.name: item.data_type for item in graph.initializer}
        self.ranks: dict[str, int] = {name: value.ndim for name, value in self.constants.items()}
        for group in (inferred.graph.input, inferred.graph.value_info, inferred.graph.output):
            for item in group:
                tensor = item.type.tensor_type
                self.types[item.name] = tensor.elem_type
                if tensor.HasField("shape"):
                    self.ranks[item.name] = len(tensor.shape.dim)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        versions = [o.version for o in self.model.opset_import if o.domain in {"", "ai.onnx"}]
        return int(versions[0]) if versions else 0

    @property
    def has_int8(self) -> bool:
        """Whether any tensor is quantized here."""
        return any(node.op_type == "QuantizeLinear" for node in self.nodes)

    @property
    def quantizers(self) -> list[NodeProto]:
        """Every QuantizeLinear and DequantizeLinear."""
        return [n for n in self.nodes if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]

    @property
    def weighted(self) -> list[NodeProto]:
        """Every layer whose weights are constant."""
        return [node for node in self.nodes if self.weights(node) is not None]

    def is_dequantized(self, tensor: str) -> bool:
        """Return whether a tensor comes out of a DequantizeLinear."""
        return self.producer_type(tensor) == "DequantizeLinear"

    def is_int8(self, tensor: str) -> bool:
        """Return whether a tensor comes out of a QuantizeLinear."""
        return self.producer_type(tensor) == "QuantizeLinear"

    def producer_type(self, tensor: str) -> str:
        """Return the operator that makes a tensor; empty for inputs and constants."""
        node = self.producers.get(tensor)
        return node.op_type if node is not None and tensor not in self.constants else ""

    @property
    def unfolded(self) -> list[NodeProto]:
        """Every batch normalization behind a layer with weights, into which it could be folded.

        One in front of a layer (behind a sum, as in pre-activation networks) cannot be folded.
        """
        return [
            node
            for node in self.nodes
            if node.op_type == "BatchNormalization"
            and self.producer_type(str(node.input[0])) in WEIGHTED
        ]

    def weights(self, node: NodeProto) -> str | None:
        """Return the name of a weighted node's constant weights; None if it has none.

        Weights that come out of a DequantizeLinear count.
        """
        if node.op_type not in WEIGHTED or len(node.input) < 2 or node.input[0] in self.constants:
            return None
        name = str(node.input[1])
        if self.producer_type(name) == "DequantizeLinear":
            name = str(self.producers[name].input[0])
            if self.producer_type(name) == "QuantizeLinear":
                name = str(self.producers[name].input[0])
        value = self.constants.get(name)
        return name if value is not None and value.ndim >= 2 else None


def _inferred(model: ModelProto) -> tuple[ModelProto, str]:
    """Return the model with the types of its tensors, and what contradicts them."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True), ""
    except onnx.shape_inference.InferenceError as error:
        contradiction = str(error).strip()
    try:
        return onnx.shape_inference.infer_shapes(model), contradiction
    except onnx.shape_inference.InferenceError:  # not even the operators are known
        return model, contradiction


def read_model(path: Path) -> ModelProto:
    """Read an ONNX file, but no other file that it may point to."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist; export the student first") from error
    except Exception as error:  # protobuf's error class is not part of onnx's interface
        raise GraphError(f"{path} is not an ONNX file: {error}") from error
    return model


def external_weights(model: ModelProto) -> list[str]:
    """Return the names of weights that lie in other files."""
    return [item.name for item in model.graph.initializer if item.data_location == item.EXTERNAL]


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return an attribute's value, or `default` where the node does not have it."""
    from onnx import helper

    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def label(node: NodeProto) -> str:
    """Return how to name a node to a person: its name, else its operator and first output."""
    return str(node.name) or f"{node.op_type} -> {node.output[0]}"


def type_name(kind: int | None) -> str:
    """Return how to name an element type to a person."""
    return ElementType(kind).name.lower() if kind in set(ElementType) else f"type {kind}"


def channel_axis(node: NodeProto) -> int:
    """Return the axis of a weighted node's weights along which output channels lie.

    Conv (M, C/group, k, k): 0. ConvTranspose (C, M/group, k, k): 1. Gemm (K, N): 1, transposed
    (N, K): 0. MatMul (..., K, N): the last one, -1.
    """
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[node.op_type]
