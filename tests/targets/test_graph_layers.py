"""The tensors that layers read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hydistill_edge.targets.graph_layers import layer_inputs


def test_layer_inputs_are_activations_in_order_each_once(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["first"]),
        helper.make_node("Relu", ["first"], ["positive"]),
        helper.make_node("Conv", ["positive", "weight"], ["left"]),
        helper.make_node("Conv", ["positive", "weight"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["sum"]),
        helper.make_node("Conv", ["sum", "weight"], ["last"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 2, 4, 4])
    last = helper.make_tensor_value_info("last", TensorProto.FLOAT, [1, 2, 4, 4])
    graph = helper.make_graph(nodes, "net", [image], [last], [weight])
    onnx.save(helper.make_model(graph), str(tmp_path / "net.onnx"))

    assert layer_inputs(tmp_path / "net.onnx") == ["positive", "sum"]
    assert layer_inputs(tmp_path / "net.onnx", leave_out=("sum",)) == ["positive"]
