from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hydistill_edge.calibration.ranges import METHODS
from hydistill_edge.errors import InputError, ShapeError

ort = pytest.importorskip("onnxruntime")

from hydistill_edge.targets.onnxruntime.quantize import (  # noqa: E402
    attach_float_input,
    attach_pixels,
    quantize,
    quantize_network,
)

KINDS = ("residual", "depthwise", "squeeze", "explicit")
SCHEMES = {"u8s8": "x86-vnni", "u8s8 reduced": "x86-avx2", "s8s8": "raspberry-pi-5"}


def open_session(model: onnx.ModelProto, optimized: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def run(model: onnx.ModelProto, images: Any) -> Any:
    session = open_session(model)
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def constant(model: onnx.ModelProto, name: str) -> Any:
    (tensor,) = [item for item in model.graph.initializer if item.name == name]
    return onnx.numpy_helper.to_array(tensor)


@pytest.mark.parametrize("profile", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_pixel_input_equals_float_input_bit_for_bit(
    kind: str, profile: str, tiny_graph: Any, calibration: Callable[..., Any], pixels: Any
) -> None:
    network = quantize_network(tiny_graph(kind), calibration("onnxruntime", profile))
    slow = attach_float_input(onnx.ModelProto.FromString(network.SerializeToString()))
    fast = attach_pixels(network)

    images = np.concatenate([pixels(6), np.full((1, 16, 16, 3), 255, np.uint8)])

    np.testing.assert_array_equal(run(fast, images), run(slow, images))


@pytest.mark.parametrize("profile", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("kind", ["residual", "depthwise", "squeeze"])
def test_every_convolution_becomes_integer(
    kind: str, profile: str, tiny_graph: Any, calibration: Callable[..., Any], tmp_path: Path
) -> None:
    model = quantize(tiny_graph(kind), calibration("onnxruntime", profile))

    open_session(model, tmp_path / "optimized.onnx")

    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    operators = Counter(node.op_type for node in nodes)
    assert operators["QLinearConv"] >= 3
    assert {"Conv", "FusedConv", "Relu", "Clip", "Gemm"} & set(operators) == set()


@pytest.mark.parametrize("kind", ["residual", "depthwise"])
def test_unsigned_input_needs_no_arithmetic(
    kind: str, tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    model = quantize(tiny_graph(kind), calibration("onnxruntime"))

    assert [node.op_type for node in model.graph.node if "image" in node.input] == ["Transpose"]
    names = {node.op_type for node in model.graph.node}
    assert {"Cast", "Sub", "Mul"} & names == set()


@pytest.mark.usefixtures("needs_exact_int8")
@pytest.mark.parametrize("profile", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_int8_stays_near_float(
    kind: str, profile: str, tiny_graph: Any, calibration: Callable[..., Any], pixels: Any
) -> None:
    graph, images = tiny_graph(kind), pixels(24)
    expected = run(onnx.load(graph.path), images)

    logits = run(quantize(graph, calibration("onnxruntime", profile)), images)

    noise = np.square(logits - expected).mean()
    assert 10 * np.log10(np.square(expected).mean() / noise) > 20


def test_weights_are_symmetric_per_channel_and_reduced_when_asked(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    model = quantize(tiny_graph("residual"), calibration("onnxruntime", "x86-avx2"))

    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {n: t for n, t in tensors.items() if t.dtype == np.int8 and t.ndim == 4}
    assert weights
    assert max(np.abs(values.astype(int)).max() for values in weights.values()) <= 64
    scales = [tensors[name.replace("_quantized", "_scale")] for name in weights]
    assert [len(scale) for scale in scales] == [len(values) for values in weights.values()]


def test_last_layer_writes_float_logits(tiny_graph: Any, calibration: Callable[..., Any]) -> None:
    model = quantize(tiny_graph("residual"), calibration("onnxruntime"))

    (last,) = [node for node in model.graph.node if "logits" in node.output]
    assert last.op_type == "Gemm"


@pytest.mark.parametrize("estimator", METHODS)
@pytest.mark.parametrize("kind", ["residual", "dead"])
def test_estimators_stay_near_float(
    kind: str,
    estimator: str,
    tiny_graph: Any,
    calibration: Callable[..., Any],
    pixels: Any,
    exact_profile: str,
) -> None:
    graph, images = tiny_graph(kind), pixels(24)
    chosen = calibration("onnxruntime", exact_profile, range_estimator=estimator)
    expected = run(onnx.load(graph.path), images)

    logits = run(quantize(graph, chosen), images)

    noise = np.square(logits - expected).mean()
    assert 10 * np.log10(np.square(expected).mean() / noise) > 20


@pytest.mark.parametrize(
    ("profile", "lowest"), [("x86-vnni", 0), ("raspberry-pi-5", -128)], ids=["u8", "s8"]
)
def test_ranges_of_ours_become_scale_and_zero_point(
    profile: str, lowest: int, tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    chosen = calibration("onnxruntime", profile, range_estimator="entropy")

    def estimate(path: Any, names: Any) -> Any:
        return {name: (-1.0, 4.1) if "relu" not in name else (0.0, 5.1) for name in names}

    model = quantize(tiny_graph("residual"), replace(chosen, estimate=estimate))

    found = {
        node.input[0]: (constant(model, node.input[1]), constant(model, node.input[2]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] != "normalized"
    }
    assert len(found) > 3
    for name, (scale, zero_point) in found.items():
        assert scale == pytest.approx(5.1 / 255)
        assert zero_point == lowest + (0 if "relu" in name else 50)


def test_pixels_stay_the_quantized_input_when_ranges_are_ours(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    model = quantize(tiny_graph("residual"), calibration("onnxruntime", range_estimator="mse"))

    (first,) = [node for node in model.graph.node if "image_nchw" in node.input]
    assert first.op_type == "DequantizeLinear"
    assert [constant(model, name) for name in first.input[1:]] == [1 / 64, 128]


def test_dynamic_batch_quantizes_like_fixed_one(
    tiny_graph: Any, calibration: Callable[..., Any], pixels: Any
) -> None:
    chosen, images = calibration("onnxruntime"), pixels(4)
    dynamic = quantize(tiny_graph("residual", None), chosen)
    fixed = quantize(tiny_graph("residual"), chosen)

    (together,) = open_session(dynamic).run(None, {"image": images})

    np.testing.assert_allclose(together, run(fixed, images), rtol=1e-5, atol=1e-5)


def test_quantize_refuses_scheme_when_it_is_for_another_quantizer(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    with pytest.raises(InputError, match='is for quantizer "nncf"'):
        quantize(tiny_graph("residual"), calibration("openvino"))


def test_quantize_refuses_estimator_when_nobody_has_it(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    chosen = replace(calibration("onnxruntime", range_estimator="mse"), estimate=None)

    with pytest.raises(InputError, match="came without estimates of ours"):
        quantize(tiny_graph("residual"), chosen)


def test_quantize_names_the_tensor_without_a_range(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    chosen = calibration("onnxruntime", range_estimator="mse")

    with pytest.raises(InputError, match="gave no range for 7 tensors"):
        quantize(tiny_graph("residual"), replace(chosen, estimate=lambda *_: {}))


def test_quantize_refuses_images_when_size_differs(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    chosen = calibration("onnxruntime")
    wrong = replace(chosen, images=chosen.images[:, :8])

    with pytest.raises(ShapeError, match=r"calibration images are uint8 \(24, 8, 16, 3\)"):
        quantize(tiny_graph("residual"), wrong)
