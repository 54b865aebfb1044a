"""The layers that an ONNX network is made of, one per node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from hydistill_edge.errors import TeacherError
from hydistill_edge.models.onnx_ops import (
    Array,
    Function,
    Node,
    Value,
    pad_spatial,
    spatial_pads,
)


class OpLayer(nn.Module):
    """A node without weights of its own: a function with some inputs bound to constants.

    Args:
        node: the operator.
        function: computes it on tensors.
        constants: bound inputs by position; floats follow the device, whole numbers stay arrays.
        arity: number of inputs, bound ones included.
    """

    def __init__(
        self, node: Node, function: Function, constants: Mapping[int, Array], arity: int
    ) -> None:
        super().__init__()
        self.node = node
        self.function = function
        self.arity = arity
        self.arrays = {}
        for position, constant in constants.items():
            if constant.dtype.kind == "f" and constant.size > 1:
                self.register_buffer(f"input_{position}", torch.from_numpy(constant))
            else:
                self.arrays[position] = constant

    def forward(self, *given: Value | None) -> Any:
        """Return the node's value, or a tuple of them."""
        rest = iter(given)
        values = [
            self.arrays[position]
            if position in self.arrays
            else getattr(self, f"input_{position}")
            if f"input_{position}" in self._buffers
            else next(rest)
            for position in range(self.arity)
        ]
        if not any(isinstance(value, Tensor) for value in values):
            return evaluate(self.node, values)
        try:
            return self.function(self.node, *values)
        except Exception as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in values if value is not None)
            raise TeacherError(
                f'ONNX node "{self.node.name}" ({self.node.op}) fails on inputs of shapes '
                f"{shapes}: {error}"
            ) from error

    def extra_repr(self) -> str:
        """Show the operator."""
        return self.node.op


class SamePad(nn.Module):
    """Padding that torch's convolution has no argument for: uneven, or resolved by the size."""

    def __init__(self, node: Node, kernel: Sequence[int]) -> None:
        super().__init__()
        self.node = node
        self.kernel = tuple(kernel)

    def forward(self, images: Tensor) -> Tensor:
        """Return the padded map."""
        return pad_spatial(images, spatial_pads(self.node, images.shape[2:], self.kernel))


def evaluate(node: Node, values: Sequence[Value | None]) -> Any:
    """Compute a node of arrays by onnx's reference evaluator."""
    names = ["" if value is None else f"x{index}" for index, value in enumerate(values)]
    count = node.get("outputs", 1)
    attributes = {
        key: value for key, value in node.attributes.items() if key not in ("outputs", "batch")
    }
    proto = helper.make_node(node.op, names, [f"y{index}" for index in range(count)], **attributes)
    feeds = {name: np.asarray(value) for name, value in zip(names, values, strict=True) if name}
    results = evaluate_node(proto, feeds, node.opset)
    return results[0] if count == 1 else tuple(results)


def evaluate_node(proto: NodeProto, feeds: Mapping[str, Array], opset: int) -> list[Array]:
    """Compute a node by onnx's reference evaluator; `feeds` holds its inputs by name."""
    graph = helper.make_graph(
        [proto],
        "constants",
        [helper.make_value_info(name, onnx.TypeProto()) for name in feeds],
        [helper.make_value_info(name, onnx.TypeProto()) for name in proto.output],
    )
    try:
        evaluator = ReferenceEvaluator(graph, opsets={"": opset})
    except RuntimeError:
        # It has only the newer versions of some operators, which do the same on constants.
        evaluator = ReferenceEvaluator(graph, opsets={"": onnx.defs.onnx_opset_version()})
    results = evaluator.run(None, dict(feeds))
    return [np.asarray(result) for result in results]


def weighted_layer(node: Node, constants: Mapping[int, Array], inputs: int) -> nn.Module | None:
    """Return one of torch's layers if the node's weights are constants of the usual form."""
    if 0 in constants:
        return None
    if node.op == "Conv" and 1 in constants:
        return _conv(node, constants[1], constants.get(2))
    if node.op == "Gemm" and constants.keys() >= {1} and not node.get("transA", 0):
        weight = constants[1] if node.get("transB", 0) else constants[1].T
        weight = node.get("alpha", 1.0) * weight
        if inputs == 2:
            return linear_layer(weight, None)
        if 2 in constants and constants[2].size == weight.shape[0]:
            return linear_layer(weight, node.get("beta", 1.0) * constants[2].reshape(-1))
    if node.op == "MatMul" and 1 in constants and constants[1].ndim == 2:
        return linear_layer(constants[1].T, None)
    if node.op == "BatchNormalization" and constants.keys() >= {1, 2, 3, 4}:
        if node.get("training_mode", 0):
            raise TeacherError(
                f'ONNX node "{node.name}" is a batch norm in training mode; export the model after '
                ".eval()"
            )
        return _batch_norm(node, [constants[index] for index in (1, 2, 3, 4)])
    if node.op == "Relu":
        return nn.ReLU()
    return None


def _conv(node: Node, weight: Array, bias: Array | None) -> nn.Module:
    kernel = weight.shape[2:]
    if len(kernel) != 2:
        raise TeacherError(
            f'ONNX node "{node.name}": a convolution over {len(kernel)} axes: expected 2, images'
        )
    groups = node.get("group", 1)
    automatic = node.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID", "NOTSET", "VALID")
    pads = [0] * 4 if automatic else spatial_pads(node, (0, 0), kernel)
    plain = not automatic and pads[:2] == pads[2:]
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (kernel[0], kernel[1]),
        tuple(node.get("strides", [1, 1])),
        (pads[0], pads[1]) if plain else 0,
        tuple(node.get("dilations", [1, 1])),
        groups,
        bias=bias is not None,
    )
    _fill(conv.weight, weight)
    if conv.bias is not None and bias is not None:
        _fill(conv.bias, bias)
    return conv if plain else nn.Sequential(SamePad(node, kernel), conv)


def linear_layer(weight: Array, bias: Array | None) -> nn.Linear:
    """Return a linear layer with weights of shape (outputs, inputs)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _fill(layer.weight, weight)
    if bias is not None:
        _fill(layer.bias, bias)
    return layer


def _batch_norm(node: Node, statistics: Sequence[Array]) -> nn.BatchNorm2d:
    scale, bias, mean, variance = statistics
    layer = nn.BatchNorm2d(scale.size, eps=node.get("epsilon", 1e-5))
    _fill(layer.weight, scale)
    _fill(layer.bias, bias)
    for buffer, values in ((layer.running_mean, mean), (layer.running_var, variance)):
        assert buffer is not None
        _fill(buffer, values)
    return layer


def _fill(target: Tensor, values: Array) -> None:
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.array(values, dtype=np.float32)))
