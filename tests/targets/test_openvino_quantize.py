from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hydistill_edge.calibration.ranges import METHODS
from hydistill_edge.errors import InputError, ShapeError
from hydistill_edge.targets.openvino.libraries import load_openvino
from hydistill_edge.targets.openvino.quantize import pin_pixel_range, quantize, quantize_by_data

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("nncf", reason="NNCF is not installed")

ov = load_openvino()


def convert(graph: Any) -> Any:
    return ov.convert_model(graph.path)


def compile_model(model: Any) -> Any:
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run(model: Any, images: Any) -> Any:
    compiled = compile_model(model)
    return np.concatenate([compiled(image[None])[0] for image in images])


def input_quantizers(model: Any) -> list[Any]:
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    return nodes[:1]


def ranges(node: Any) -> list[float]:
    return [float(node.input_value(port).get_node().data.ravel()[0]) for port in (1, 2, 3, 4)]


def executed(model: Any) -> Counter[tuple[str, str]]:
    nodes = compile_model(model).get_runtime_model().get_ordered_ops()
    infos = [node.get_rt_info() for node in nodes]
    return Counter((i["layerType"].astype(str), i["runtimePrecision"].astype(str)) for i in infos)


@pytest.mark.parametrize("kind", ["residual", "squeeze"])
def test_pixel_range_is_exact_when_images_are_dark(
    kind: str, tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    chosen = calibration("openvino")
    dark = replace(chosen, images=chosen.images // 2)
    model = quantize_by_data(convert(tiny_graph(kind)), tiny_graph(kind), dark)
    before = ranges(*input_quantizers(model))

    assert pin_pixel_range(model)

    low, high, *outputs = ranges(*input_quantizers(model))
    assert before[1] < high
    assert outputs == [low, high]
    # Whether OpenVINO has moved the factor 1/64 into the first layer or not: 256 even steps.
    assert (high - low) / 255 in (1.0, 1 / 64)
    assert low / (high - low) == pytest.approx(-128 / 255)


def test_pixels_reach_first_layer_unconverted_when_range_is_exact(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    graph, chosen = tiny_graph("residual"), calibration("openvino")
    dark = replace(chosen, images=chosen.images // 2)

    by_data = executed(quantize_by_data(convert(graph), graph, dark))
    pinned = executed(quantize(convert(graph), graph, dark))

    assert pinned.total() < by_data.total()
    assert by_data["Subgraph", "u8"] == pinned["Subgraph", "u8"] + 1


@pytest.mark.parametrize("kind", ["depthwise", "squeeze"])
def test_every_convolution_is_integer(
    kind: str, tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    graph = tiny_graph(kind)

    nodes = executed(quantize(convert(graph), graph, calibration("openvino")))

    types = {precision for layer, precision in nodes if layer == "Convolution"}
    assert types <= {"u8", "i8"}


def test_pixel_range_is_left_alone_when_student_keeps_own_statistics(
    tiny_graph: Any, calibration: Callable[..., Any], pixels: Any
) -> None:
    graph = tiny_graph("explicit")
    model = quantize_by_data(convert(graph), graph, calibration("openvino"))
    before = run(model, pixels(4))

    assert not pin_pixel_range(model)

    np.testing.assert_array_equal(run(model, pixels(4)), before)


@pytest.mark.usefixtures("needs_exact_int8")
@pytest.mark.parametrize(
    ("kind", "profile"),
    [
        ("residual", "x86-vnni"),
        ("depthwise", "x86-avx2"),
        ("squeeze", "x86-vnni"),
        ("explicit", "x86-avx2"),
    ],
)
def test_int8_stays_near_float(
    kind: str, profile: str, tiny_graph: Any, calibration: Callable[..., Any], pixels: Any
) -> None:
    graph, images = tiny_graph(kind), pixels(24)
    expected = run(convert(graph), images)

    logits = run(quantize(convert(graph), graph, calibration("openvino", profile)), images)

    noise = np.square(logits - expected).mean()
    assert 10 * np.log10(np.square(expected).mean() / noise) > 20


@pytest.mark.parametrize(
    ("profile", "largest"), [("x86-vnni", 127), ("x86-avx2", 64)], ids=["vnni", "avx2"]
)
def test_weights_keep_to_seven_bits_when_sums_saturate(
    profile: str, largest: int, tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    graph = tiny_graph("residual")

    model = quantize(convert(graph), graph, calibration("openvino", profile))

    weights = [
        node.data
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8
    ]
    assert max(int(np.abs(values.astype(int)).max()) for values in weights) == largest


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
    chosen = calibration("openvino", exact_profile, range_estimator=estimator)
    expected = run(convert(graph), images)

    logits = run(quantize(convert(graph), graph, chosen), images)

    noise = np.square(logits - expected).mean()
    assert 10 * np.log10(np.square(expected).mean() / noise) > 20


@pytest.mark.parametrize("batch", [4, None])
def test_quantize_takes_batches_of_the_graph(
    batch: int | None, tiny_graph: Any, calibration: Callable[..., Any], pixels: Any
) -> None:
    graph, chosen = tiny_graph("residual", batch), calibration("openvino")
    some = replace(chosen, images=chosen.images[:10], ids=chosen.ids[:10])

    model = quantize(convert(graph), graph, some)

    assert compile_model(model)(pixels(4))[0].shape == (4, 3)


def test_quantize_refuses_scheme_when_it_is_for_another_quantizer(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    graph = tiny_graph("residual")

    with pytest.raises(InputError, match='is for quantizer "onnxruntime"'):
        quantize(convert(graph), graph, calibration("onnxruntime"))


def test_quantize_refuses_estimator_when_nobody_has_it(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    graph = tiny_graph("residual")
    chosen = replace(calibration("openvino", range_estimator="entropy"), estimate=None)

    with pytest.raises(InputError, match="came without estimates of ours"):
        quantize(convert(graph), graph, chosen)


def test_quantize_refuses_images_when_size_differs(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    graph, chosen = tiny_graph("residual"), calibration("openvino")

    with pytest.raises(ShapeError, match="resize them to the graph's input"):
        quantize(convert(graph), graph, replace(chosen, images=chosen.images[:, :, :8]))
