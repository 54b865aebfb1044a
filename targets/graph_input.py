"""The pixel input of an exported graph, put in front of the network and taken off again.

The student sees `(pixel - 128) / 64`: uint8 pixels are then a quantized tensor already, with scale
1/64 and zero point 128, and an int8 builder can put its own integers in the place of these nodes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableSequence
from typing import TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hydistill_edge.errors import GraphError
from hydistill_edge.targets.graph_file import IMAGE

_Item = TypeVar("_Item")

NORMALIZED = "normalized"
PIXEL_ZERO_POINT, PIXEL_SCALE = 128, 1 / 64


def prepend_pixels(model: onnx.ModelProto) -> None:
    """Put `(pixel - 128) / 64` of uint8 (N, H, W, C) in front of the network."""
    graph = model.graph
    image = image_value(model)
    zero, scale = f"{IMAGE}_zero_point", f"{IMAGE}_scale"
    nodes = [
        helper.make_node("Cast", [IMAGE], [f"{IMAGE}_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [f"{IMAGE}_float"], [f"{IMAGE}_nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", [f"{IMAGE}_nchw", zero], [f"{IMAGE}_centered"]),
        helper.make_node("Mul", [f"{IMAGE}_centered", scale], [NORMALIZED]),
    ]
    for node in nodes:
        node.name = node.output[0]
    constants = [
        numpy_helper.from_array(np.float32(PIXEL_ZERO_POINT), zero),
        numpy_helper.from_array(np.float32(PIXEL_SCALE), scale),
    ]
    rest = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *rest])
    graph.input.append(image)
    graph.initializer.extend(constants)


def split_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network alone: float32 `normalized`, shape (N, C, H, W), to logits.

    Raises:
        GraphError: the four nodes of the pixel input are not there.
    """
    core = copy.deepcopy(model)
    head = [node.op_type for node in core.graph.node[:4]]
    if head != ["Cast", "Transpose", "Sub", "Mul"] or core.graph.node[3].output[0] != NORMALIZED:
        raise GraphError(
            f"the graph begins with {' -> '.join(head)}; expected Cast -> Transpose -> Sub -> Mul "
            f'that make "{NORMALIZED}" from pixels, as hydistill-edge exports them'
        )
    prefix = list(core.graph.node[:4])
    del core.graph.node[:4]
    constants = {name for node in prefix for name in node.input} - {IMAGE}
    keep_items(core.graph.initializer, lambda tensor: tensor.name not in constants)
    made = {name for node in prefix for name in node.output}
    keep_items(core.graph.value_info, lambda value: value.name not in made)
    batch, height, width, channels = core.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value or dim.dim_param for dim in (batch, channels, height, width)]
    del core.graph.input[:]
    core.graph.input.append(helper.make_tensor_value_info(NORMALIZED, TensorProto.FLOAT, shape))
    return core


def image_value(core: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the uint8 (N, H, W, C) input that belongs to a network from `split_input`."""
    batch, channels, height, width = core.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value or dim.dim_param for dim in (batch, height, width, channels)]
    return helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, shape)


def keep_items(items: MutableSequence[_Item], wanted: Callable[[_Item], bool]) -> None:
    """Keep the wanted items of a protobuf list, in place."""
    kept = [copy.deepcopy(item) for item in items if wanted(item)]
    del items[:]
    items.extend(kept)
