"""Where Q/DQ pairs are placed, and with which scales, on graphs written out by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hydistill_edge.errors import GraphError
from hydistill_edge.targets.tensorrt.graph_view import GraphView
from hydistill_edge.targets.tensorrt.qdq import Placement, quantize_graph

WEIGHTS = "float[2,2,1,1] w = {1,2,3,4}, float[2,2,1,1] v = {4,3,2,1}"


def graph(body: str, *, output: str = "float[1,2,4,4] y", constants: str = WEIGHTS) -> GraphView:
    text = f"""
    <ir_version: 8, opset_import: ["" : 18]>
    student (float[1,2,4,4] x) => ({output}) <{constants}> {{ {body} }}
    """
    return GraphView(onnx.parser.parse_model(text))


def readers(view: GraphView) -> dict[str, list[str]]:
    """Return which nodes read each quantized tensor, by the name of their first output."""
    placed = Placement(view).readers
    return {
        tensor: [view.nodes[position].output[0] for position, _ in consumers]
        for tensor, consumers in placed.items()
    }


def test_inputs_of_layers_with_weights_are_quantized() -> None:
    view = graph("a = Conv (x, w) b = Relu (a) y = Conv (b, v)")

    assert readers(view) == {"x": ["a"], "b": ["y"]}


def test_sum_takes_its_skip_quantized_when_its_layer_can_absorb_it() -> None:
    view = graph("a = Conv (x, w) s = Add (x, a) r = Relu (s) y = Conv (r, v)")

    assert readers(view) == {"x": ["a", "s"], "r": ["y"]}


def test_sum_absorbs_the_later_layer_when_both_are_convolutions() -> None:
    view = graph("a = Conv (x, w) b = Conv (x, v) s = Add (b, a) y = Conv (s, v)")

    assert readers(view) == {"x": ["a", "b"], "s": ["y"], "a": ["s"]}


def test_sum_takes_both_quantized_when_no_layer_can_absorb_it() -> None:
    view = graph("a = Sigmoid (x) b = Tanh (x) s = Add (a, b) y = Conv (s, v)")

    assert readers(view) == {"s": ["y"], "a": ["s"], "b": ["s"]}


def test_sum_stays_in_float_when_nothing_quantizes_it_again() -> None:
    view = graph("a = Conv (x, w) y = Add (x, a)")

    assert readers(view) == {"x": ["a"]}


def test_average_is_quantized_when_its_result_is() -> None:
    view = graph("a = GlobalAveragePool (x) y = Conv (a, w)", output="float[1,2,1,1] y")

    assert readers(view) == {"a": ["y"], "x": ["a"]}


def test_average_stays_in_float_at_the_end() -> None:
    view = graph("a = Conv (x, w) y = GlobalAveragePool (a)", output="float[1,2,1,1] y")

    assert readers(view) == {"x": ["a"]}


POOL = "m = MaxPool <kernel_shape = [1,1]> (x) a = Conv (x, w) b = Conv (m, v) y = Add (a, b)"


def test_max_pool_reads_int8_at_one_scale_when_both_sides_are_quantized() -> None:
    view = graph(POOL)
    placement = Placement(view)

    assert readers(view) == {"x": ["a", "m"], "m": ["b"]}
    assert placement.groups == {"x": "x", "m": "x"}


def test_concat_reads_int8_at_one_scale_when_all_sides_are_quantized() -> None:
    view = graph(
        "a = Conv (x, w) c = Concat <axis = 1> (x, a) b = Conv (a, w) d = Conv (c, u) "
        "y = Add (b, d)",
        constants=WEIGHTS + ", float[2,4,1,1] u = {1,2,3,4,5,6,7,8}",
    )

    assert readers(view)["a"] == ["b", "c"]
    assert len(set(Placement(view).groups.values())) == 1


def quantized(view: GraphView, ranges: dict[str, tuple[float, float]]) -> dict[str, np.ndarray]:
    model = quantize_graph(view.model, ranges, Placement(view))
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def test_scales_by_hand() -> None:
    view = graph("y = Conv (x, w)", constants="float[2,2,1,1] w = {0.5, -1.27, 0.0, 2.54}")

    values = quantized(view, {"x": (-0.3, 1.27)})

    assert values["x/scale"] == pytest.approx(0.01)
    assert values["w/axis0/scale"] == pytest.approx([0.01, 0.02])
    assert values["w/axis0/int8"].ravel().tolist() == [50, -127, 0, 127]


def test_shared_scale_covers_the_wider_range() -> None:
    values = quantized(graph(POOL), {"x": (-2.54, 1), "m": (0, 1)})

    assert values["m/scale"] == values["x/scale"] == pytest.approx(0.02)


def test_scales_stay_positive_when_everything_is_zero() -> None:
    view = graph("y = Conv (x, w)", constants="float[2,2,1,1] w = {0, 0, 1e-45, 0}")

    values = quantized(view, {"x": (0.0, 0.0)})

    assert values["x/scale"] > 0
    assert (values["w/axis0/scale"] > 0).all()
    assert np.isfinite(values["w/axis0/scale"]).all()


@pytest.mark.parametrize(
    ("operator", "weights", "axis", "channels"),
    [
        ("Gemm <transB = 1> (x, w)", "float[3,4] w", 0, 3),
        ("Gemm (x, w)", "float[4,3] w", 1, 3),
        ("MatMul (x, w)", "float[4,3] w", 1, 3),
    ],
    ids=["gemm-transposed", "gemm", "matmul"],
)
def test_products_have_one_scale_per_output(
    operator: str, weights: str, axis: int, channels: int
) -> None:
    text = f"""
    <ir_version: 8, opset_import: ["" : 18]>
    g (float[1,4] x) => (float[1,3] y) <{weights} = {{1,2,3,4,5,6,7,8,9,10,11,12}}> {{
      y = {operator} }}
    """
    values = quantized(GraphView(onnx.parser.parse_model(text)), {"x": (-1, 1)})

    assert values[f"w/axis{axis}/scale"].shape == (channels,)


def test_transposed_convolution_has_one_scale_per_output() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    g (float[1,2,2,2] x) => (float[1,3,2,2] y) <float[2,3,1,1] w = {1,2,3,4,5,6}> {
      y = ConvTranspose (x, w) }
    """
    values = quantized(GraphView(onnx.parser.parse_model(text)), {"x": (-1, 1)})

    assert values["w/axis1/scale"] * 127 == pytest.approx([4, 5, 6])


def test_shared_weights_are_stored_once() -> None:
    view = graph("a = Conv (x, w) y = Conv (a, w)")

    values = quantized(view, {"x": (-1, 1), "a": (-1, 1)})

    assert sorted(name for name in values if name.startswith("w")) == [
        "w/axis0/int8",
        "w/axis0/scale",
        "w/axis0/zero_point",
    ]


def test_model_handed_over_is_not_touched() -> None:
    view = graph("y = Conv (x, w)")
    before = view.model.SerializeToString()

    quantized(view, {"x": (-1, 1)})

    assert view.model.SerializeToString() == before


NORM = WEIGHTS + ", float[2] o = {1,1}"


def test_batch_normalization_behind_a_convolution_must_be_folded() -> None:
    view = graph("a = Conv (x, w) y = BatchNormalization (a, o, o, o, o)", constants=NORM)

    with pytest.raises(GraphError, match="BatchNormalization -> y"):
        quantized(view, {"x": (-1, 1)})


def test_batch_normalization_in_front_of_a_convolution_stays_in_float() -> None:
    body = "b = BatchNormalization (x, o, o, o, o) r = Relu (b) y = Conv (r, w)"
    view = graph(body, constants=NORM)

    assert readers(view) == {"r": ["y"]}
    assert "w/axis0/int8" in quantized(view, {"r": (-1, 1)})
