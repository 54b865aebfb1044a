"""Write explicit int8 into a float graph, the way TensorRT wants it.

Every quantized tensor is symmetric int8 with zero point 0: activations with one scale, weights with
one scale per output channel and stored as int8; biases stay in float. Where the Q/DQ pairs stand
follows NVIDIA's placement recommendations, so that TensorRT can fuse the layers between them:

- before every layer with weights, and never between such a layer and its activation;
- on the skip input of a sum, while the layer that the sum is fused with hands over floats;
- before an average where its output is quantized again, else not at all;
- once around layers that only move values (max pooling, reshapes): one scale before and after.

Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import GraphError
from hydistill_edge.targets.tensorrt.graph_view import (
    ACTIVATIONS,
    AVERAGES,
    COMMUTING,
    WEIGHTED,
    ElementType,
    GraphView,
    channel_axis,
    label,
)

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

HIGHEST = 127  # int8 reaches -128, but a symmetric range must not use it
OLDEST_OPSET = 13  # the first with one scale per channel

MOVING = COMMUTING | {"Concat"}

Consumer = tuple[int, int]  # position of a node, position of one of its inputs


class Placement:
    """Which tensors of a float graph are quantized, and who reads them quantized.

    Attributes:
        readers: for each quantized activation, the inputs that read its int8 form.
        groups: for each quantized activation, the tensor whose scale it shares (often itself).
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._position = {id(node): index for index, node in enumerate(view.nodes)}
        self.readers: dict[str, list[Consumer]] = {}
        for node in view.nodes:
            weights = view.weights(node)
            if weights and _is_float(view, weights) and _is_float(view, str(node.input[0])):
                self._read(node, 0)
        while self._extend():  # a pool or a sum that becomes int8 can make the one before it int8
            pass
        self.groups = self._shared_scales()

    def _extend(self) -> bool:
        before = sum(len(readers) for readers in self.readers.values())
        for node in self._view.nodes:
            if node.op_type in AVERAGES and self._ends_in_int8(node):
                self._read(node, 0)
            elif node.op_type == "Add" and self._ends_in_int8(node):
                for slot in self._skip_inputs(node):
                    self._read(node, slot)
            elif node.op_type in MOVING and self._ends_in_int8(node, through=COMMUTING):
                slots = range(len(node.input)) if node.op_type == "Concat" else range(1)
                if all(str(node.input[slot]) in self.readers for slot in slots):
                    for slot in slots:
                        self._read(node, slot)
        return sum(len(readers) for readers in self.readers.values()) > before

    def _read(self, node: NodeProto, slot: int) -> None:
        consumer = (self._position[id(node)], slot)
        readers = self.readers.setdefault(str(node.input[slot]), [])
        if consumer not in readers:
            readers.append(consumer)

    def _ends_in_int8(
        self, node: NodeProto, *, through: frozenset[str] = COMMUTING | ACTIVATIONS
    ) -> bool:
        """Return whether a node's output is quantized, at once or behind layers that fuse."""
        tensor = str(node.output[0])
        return tensor in self.readers or any(
            reader.op_type in through and self._ends_in_int8(reader, through=through)
            for reader in self._view.consumers.get(tensor, [])
        )

    def _skip_inputs(self, node: NodeProto) -> list[int]:
        """Return the inputs of a sum to quantize: all but the one it is fused with.

        Fused is a layer with weights that nothing else reads; of two such, the later one.
        """
        view = self._view
        names = [str(name) for name in node.input]
        if len(set(names)) < 2 or any(n in view.constants or not _is_float(view, n) for n in names):
            return []
        fusible = [
            (self._position[id(view.producers[name])], slot)
            for slot, name in enumerate(names)
            if view.producer_type(name) in WEIGHTED and len(view.consumers[name]) == 1
        ]
        fused = max(fusible)[1] if fusible else None
        return [slot for slot in range(len(names)) if slot != fused]

    def _shared_scales(self) -> dict[str, str]:
        """Join tensors that only differ by where their values lie; the first stands for all."""
        group = {tensor: tensor for tensor in self.readers}
        for node in self._view.nodes:
            output = str(node.output[0])
            inputs = node.input if node.op_type == "Concat" else node.input[:1]
            for name in map(str, inputs):
                if node.op_type in MOVING and output in group and name in group:
                    old, new = group[output], group[name]
                    group = {t: new if g == old else g for t, g in group.items()}
        return group


def quantize_graph(
    model: ModelProto, ranges: Mapping[str, tuple[float, float]], placement: Placement
) -> ModelProto:
    """Return the model with explicit int8; the model handed over is not touched.

    Args:
        model: float graph with batch normalization folded where it can be.
        ranges: (low, high) of every tensor in `placement.readers`.
        placement: of this same model.

    Raises:
        GraphError: batch normalization is left that could be folded, or the opset is too old.
    """
    import onnx

    view = GraphView(model)
    _check(view)
    scales = _activation_scales(ranges, placement)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in view.nodes]
    added: dict[str, TensorProto] = {}
    before: dict[int, list[NodeProto]] = {}  # weights: dequantized just before their first reader
    for index, node in enumerate(view.nodes):
        name = view.weights(node)
        if name is None or str(node.input[0]) not in scales:
            continue
        new_name, tensors, dequantize = _quantized_weights(view.constants[name], name, node)
        if tensors[0].name not in added:
            before[index] = [dequantize]
            added.update({tensor.name: tensor for tensor in tensors})
        nodes[index].input[1] = new_name
    pairs = {}
    for tensor, scale in scales.items():
        pairs[tensor], constants = _activation_pair(tensor, scale)
        added.update({item.name: item for item in constants})
        for index, slot in placement.readers[tensor]:
            nodes[index].input[slot] = pairs[tensor][1].output[0]
    del result.graph.node[:]
    for name in view.inputs:
        result.graph.node.extend(pairs.get(name, []))
    for index, node in enumerate(nodes):
        result.graph.node.extend([*before.get(index, []), node])
        for output in node.output:
            result.graph.node.extend(pairs.get(str(output), []))
    _replace_initializers(result, added.values())
    return result


def _check(view: GraphView) -> None:
    left = [label(node) for node in view.unfolded]
    if left:
        raise GraphError(
            f"{len(left)} batch normalizations are left behind convolutions, {left[0]} for one; "
            "expected them folded into the layers before them. Export the student in eval mode"
        )
    if view.opset < OLDEST_OPSET:
        raise GraphError(
            f"opset is {view.opset}; one scale per channel needs {OLDEST_OPSET} or later"
        )


def _is_float(view: GraphView, tensor: str) -> bool:
    return view.types.get(tensor) == ElementType.FLOAT


def _activation_scales(
    ranges: Mapping[str, tuple[float, float]], placement: Placement
) -> dict[str, float]:
    bounds: dict[str, float] = {}
    for tensor, group in placement.groups.items():
        low, high = ranges[tensor]
        bounds[group] = max(bounds.get(group, 0.0), abs(low), abs(high))
    # A tensor of nothing but zeros fits every scale; it must only be positive.
    return {t: (bounds[g] or HIGHEST) / HIGHEST for t, g in placement.groups.items()}


def _quantized_weights(
    weights: NDArray[np.float32], name: str, node: NodeProto
) -> tuple[str, list[TensorProto], NodeProto]:
    """Return the name of the dequantized weights, their three tensors and the DequantizeLinear."""
    from onnx import helper, numpy_helper

    axis = channel_axis(node) % weights.ndim
    others = tuple(index for index in range(weights.ndim) if index != axis)
    bound = np.abs(weights).max(axis=others)
    scale = (np.where(bound > 0, bound, HIGHEST) / HIGHEST).astype(np.float32)
    # A channel of denormal weights has a scale that rounds to zero in float32.
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    spread = scale.reshape([-1 if index == axis else 1 for index in range(weights.ndim)])
    int8 = np.clip(np.rint(weights / spread), -HIGHEST, HIGHEST).astype(np.int8)
    prefix = f"{name}/axis{axis}"
    tensors = [
        numpy_helper.from_array(int8, f"{prefix}/int8"),
        numpy_helper.from_array(scale, f"{prefix}/scale"),
        numpy_helper.from_array(np.zeros(len(scale), dtype=np.int8), f"{prefix}/zero_point"),
    ]
    output = f"{prefix}/float"
    names = [tensor.name for tensor in tensors]
    dequantize = helper.make_node(
        "DequantizeLinear", names, [output], name=f"{prefix}/DequantizeLinear", axis=axis
    )
    return output, tensors, dequantize


def _activation_pair(
    tensor: str, scale: float
) -> tuple[list[NodeProto], tuple[TensorProto, TensorProto]]:
    from onnx import helper, numpy_helper

    constants = (
        numpy_helper.from_array(np.float32(scale), f"{tensor}/scale"),
        numpy_helper.from_array(np.int8(0), f"{tensor}/zero_point"),
    )
    names = [item.name for item in constants]
    int8, back = f"{tensor}/int8", f"{tensor}/float"
    return [
        helper.make_node(
            "QuantizeLinear", [tensor, *names], [int8], name=f"{tensor}/QuantizeLinear"
        ),
        helper.make_node(
            "DequantizeLinear", [int8, *names], [back], name=f"{tensor}/DequantizeLinear"
        ),
    ], constants


def _replace_initializers(model: ModelProto, added: Iterable[TensorProto]) -> None:
    """Drop the float weights that nobody reads any more, and add the int8 ones."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in read]
    tensors = [type(item).FromString(item.SerializeToString()) for item in (*kept, *added)]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
