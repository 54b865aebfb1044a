"""Checks of where Q/DQ pairs stand: in the wrong place they keep layers from being fused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hydistill_edge.targets.tensorrt.graph_view import (
    ACTIVATIONS,
    AVERAGES,
    COMMUTING,
    WEIGHTED,
    Broken,
    GraphView,
    label,
)

if TYPE_CHECKING:
    from onnx import NodeProto


def pairs(view: GraphView, generation: int) -> Iterator[Broken]:
    """Each Q is read by DQs of its scale only, each DQ reads a Q or a constant."""
    for node in view.quantizers:
        if node.op_type == "QuantizeLinear":
            readers = view.consumers.get(str(node.output[0]), [])
            if node.output[0] in view.outputs or not readers:
                yield label(node), "nothing dequantizes its output"
            for reader in readers:
                if reader.op_type != "DequantizeLinear":
                    yield label(reader), f'reads quantized "{node.output[0]}" directly'
                elif not _same_scale(view, node, reader):
                    yield label(reader), f"scale differs from the one of {label(node)}"
        elif node.input[0] not in view.constants and not view.is_int8(str(node.input[0])):
            yield label(node), f'dequantizes "{node.input[0]}", which nothing quantized'


def _same_scale(view: GraphView, first: NodeProto, second: NodeProto) -> bool:
    one, other = (view.constants.get(str(node.input[1])) for node in (first, second))
    return one is not None and other is not None and np.array_equal(one, other)


def both_inputs(view: GraphView, generation: int) -> Iterator[Broken]:
    """Input and weights are both quantized, or neither."""
    for node in view.weighted if view.has_int8 else ():
        data, weights = (view.is_dequantized(str(name)) for name in node.input[:2])
        if data != weights:
            missing = "weights" if data else "input"
            yield label(node), f"its {missing} is in float, the other in int8; it runs in float"


def weighted_outputs(view: GraphView, generation: int) -> Iterator[Broken]:
    """Yield pairs between a weighted node and the activation or sum that would be fused with it."""
    for node in view.weighted:
        for reader in view.consumers.get(str(node.output[0]), []):
            if reader.op_type != "QuantizeLinear":
                continue
            for after in _behind(view, reader):
                if after.op_type in ACTIVATIONS:
                    yield label(reader), f"stands between {label(node)} and {label(after)}"


def _behind(view: GraphView, quantize: NodeProto) -> Iterator[NodeProto]:
    for dequantize in view.consumers.get(str(quantize.output[0]), []):
        yield from view.consumers.get(str(dequantize.output[0]), [])


def residuals(view: GraphView, generation: int) -> Iterator[Broken]:
    """Of a sum in int8, the skip input is quantized and the fused layer's output is not."""
    for node in view.nodes if view.has_int8 else ():
        names = [str(name) for name in node.input if name not in view.constants]
        if node.op_type != "Add" or len(set(names)) < 2 or not _requantized(view, node):
            continue
        quantized = [name for name in names if view.is_dequantized(name)]
        fusible = [name for name in names if view.producer_type(name) in WEIGHTED]
        if fusible and not quantized:
            yield label(node), "its skip input is in float, so the sum cannot stay in int8"
        elif len(quantized) == 2 and any(_dequantized_weighted(view, name) for name in names):
            yield label(node), "both inputs are quantized; the layer before it cannot absorb it"
        elif len(quantized) == 1 and not fusible:
            yield label(node), "one input is quantized, the other in float behind no weighted layer"


def _dequantized_weighted(view: GraphView, tensor: str) -> bool:
    """Return whether a weighted node's output is quantized for this one reader alone."""
    quantize = view.producers.get(str(view.producers[tensor].input[0]))
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return False
    source = str(quantize.input[0])
    alone = len(view.consumers[source]) == 1 and len(list(_behind(view, quantize))) == 1
    return view.producer_type(source) in WEIGHTED and alone


def _requantized(view: GraphView, node: NodeProto) -> bool:
    """Return whether a node's output is quantized again, perhaps behind an activation."""
    through = COMMUTING | ACTIVATIONS
    for reader in view.consumers.get(str(node.output[0]), []):
        if reader.op_type == "QuantizeLinear":
            return True
        if reader.op_type in through and _requantized(view, reader):
            return True
    return False


def unweighted_outputs(view: GraphView, generation: int) -> Iterator[Broken]:
    """An average with int8 input has int8 output."""
    for node in view.nodes:
        int8 = node.op_type in AVERAGES and view.is_dequantized(str(node.input[0]))
        if int8 and not _requantized(view, node):
            yield label(node), "takes int8 but gives float; expected both or none"


def moved_scales(view: GraphView, generation: int) -> Iterator[Broken]:
    """Layers that only move values have one scale before and after."""
    for node in view.nodes:
        if node.op_type not in COMMUTING | {"Concat"}:
            continue
        before = [
            view.producers[str(name)] for name in node.input if view.is_dequantized(str(name))
        ]
        after = [
            reader
            for reader in view.consumers.get(str(node.output[0]), [])
            if reader.op_type == "QuantizeLinear"
        ]
        around = [*before, *after]
        if before and any(not _same_scale(view, around[0], other) for other in around[1:]):
            yield label(node), "moves int8 values between different scales; expected one scale"


def batch_norm(view: GraphView, generation: int) -> Iterator[Broken]:
    """Batch normalization behind a layer with weights is folded into them."""
    for node in view.unfolded if view.has_int8 else ():
        yield label(node), "is not folded, yet the weights before it are quantized"
