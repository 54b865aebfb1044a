"""The whole way on a real runtime: pack a model, load the bundle, decide, check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hydistill_edge.device import load

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def brightness_model() -> bytes:
    """Return an ONNX file that computes what `logits_of` does: uint8 (1, 8, 8, 3) to (1, 2)."""
    helper, proto = onnx.helper, onnx.TensorProto
    weight = np.tile(np.array([[-4, 4]], np.float32) / 128 / 3, (3, 1))
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=proto.FLOAT),
            helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
            helper.make_node("Gemm", ["mean", "weight", "bias"], ["logits"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", proto.UINT8, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("logits", proto.FLOAT, [1, 2])],
        [
            onnx.numpy_helper.from_array(np.array([1, 2]), "axes"),
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(np.array([4, -4], np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"hydistill.precision": "fp32"})
    data: bytes = model.SerializeToString()
    return data


def test_bundle_decides_and_checks_itself_when_a_real_runtime_opens_it(
    make: Callable[..., Path],
) -> None:
    with load(make(model=brightness_model())) as model:
        bright, dark = model.batch([np.full((40, 60, 3), 250, np.uint8), np.zeros((8, 8), "u1")])
        gates = model.check()

    assert (bright.label, bright.accepted) == ("bright", True)
    assert (dark.label, dark.accepted) == ("dark", True)
    assert {gate.passed for gate in gates} == {True}
