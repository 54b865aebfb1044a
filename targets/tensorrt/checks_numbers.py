"""Checks of the numbers of quantization: types, zero points, scales, and along which axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hydistill_edge.targets.tensorrt.graph_view import (
    Broken,
    ElementType,
    GraphView,
    attribute,
    channel_axis,
    label,
    type_name,
)

BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
INT8_WEIGHTS = (-127, 127)


def int8_only(view: GraphView, generation: int) -> Iterator[Broken]:
    """Quantized tensors are INT8, which the zero point states."""
    for node in view.quantizers:
        # A missing zero point means UINT8 to ONNX, but INT8 to TensorRT: two different graphs.
        tensor = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        kind = view.types.get(str(tensor))
        if kind != ElementType.INT8:
            yield label(node), f"quantized type is {type_name(kind)}; expected int8"


def zero_points(view: GraphView, generation: int) -> Iterator[Broken]:
    """Zero points are constant, 0, and as many as scales."""
    for node in view.quantizers:
        if len(node.input) < 3 or not node.input[2]:
            continue
        zero_point = view.constants.get(str(node.input[2]))
        if zero_point is None:
            yield label(node), "computes its zero point; expected a constant"
        elif zero_point.any():
            worst = zero_point.ravel()[np.argmax(np.abs(zero_point.astype(np.int64)))]
            yield label(node), f"zero point is {worst}; expected 0 (symmetric)"
        else:
            scale = view.constants.get(str(node.input[1]))
            if scale is not None and scale.size != zero_point.size:
                yield label(node), f"{zero_point.size} zero points for {scale.size} scales"


def scales(view: GraphView, generation: int) -> Iterator[Broken]:
    """Scales are constant, positive and finite."""
    for node in view.quantizers:
        scale = view.constants.get(str(node.input[1]))
        if scale is None:
            yield label(node), "computes its scale; expected a constant"
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield label(node), f"least scale is {scale.min()}; expected positive, finite ones"


def scale_counts(view: GraphView, generation: int) -> Iterator[Broken]:
    """Weights have one scale, or one per channel."""
    for node in view.quantizers:
        scale = view.constants.get(str(node.input[1]))
        data = view.constants.get(str(node.input[0]))
        if scale is None or scale.size == 1 or data is None:
            continue
        axis = attribute(node, "axis", 1)
        channels = data.shape[axis] if -data.ndim <= axis < data.ndim else 0
        if scale.shape != (channels,):
            yield label(node), f"{scale.size} scales for {channels} channels on axis {axis}"


def activations_per_tensor(view: GraphView, generation: int) -> Iterator[Broken]:
    """Activations have one scale."""
    for node in view.quantizers:
        scale = view.constants.get(str(node.input[1]))
        source = node.input[0]
        if view.is_int8(str(source)):
            source = view.producers[str(source)].input[0]
        if scale is not None and scale.size != 1 and source not in view.constants:
            yield label(node), f"{scale.size} scales for an activation; expected one per tensor"


def weights_per_channel(view: GraphView, generation: int) -> Iterator[Broken]:
    """Weights have one scale per output channel."""
    for node in view.weighted:
        if not view.is_dequantized(str(node.input[1])):
            continue
        dequantize = view.producers[str(node.input[1])]
        weights = view.constants[str(view.weights(node))]
        axis = channel_axis(node) % weights.ndim
        scale = view.constants.get(str(dequantize.input[1]))
        if scale is None:
            continue
        if scale.size == 1:
            if weights.shape[axis] > 1:
                yield label(node), "weights have one scale; expected one per output channel"
            continue
        found = attribute(dequantize, "axis", 1) % weights.ndim
        if found != axis:
            yield label(node), f"weights are quantized along axis {found}; expected {axis}"


def weight_values(view: GraphView, generation: int) -> Iterator[Broken]:
    """Int8 weights use the symmetric range."""
    low, high = INT8_WEIGHTS
    for node in view.weighted:
        name = str(view.weights(node))
        weights = view.constants[name]
        if weights.dtype == np.int8 and (weights.min() < low or weights.max() > high):
            yield label(node), f'weights "{name}" reach {weights.min()}; expected {low} to {high}'


def bias(view: GraphView, generation: int) -> Iterator[Broken]:
    """Biases are in float."""
    for node in view.nodes:
        bias = str(node.input[2]) if node.op_type in BIASED and len(node.input) > 2 else ""
        if view.is_dequantized(bias):
            yield label(node), "bias is quantized; expected float"
        kind = view.types.get(str(node.input[0])) if node.input else None
        if node.op_type == "DequantizeLinear" and kind == ElementType.INT32:
            yield label(node), "dequantizes INT32; expected INT8"
