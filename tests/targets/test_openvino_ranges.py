from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydistill_edge.errors import GraphError, InputError
from hydistill_edge.targets.openvino.libraries import load_openvino
from hydistill_edge.targets.openvino.quantize import quantize, quantize_by_data
from hydistill_edge.targets.openvino.ranges import fit, set_ranges

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("nncf", reason="NNCF is not installed")

ov = load_openvino()

KINDS = ["residual", "depthwise", "squeeze", "explicit", "dead", "joined"]


def by_extremes(kind: str, tiny_graph: Any, calibration: Callable[..., Any]) -> Any:
    graph = tiny_graph(kind)
    return quantize_by_data(ov.convert_model(graph.path), graph, calibration("openvino"))


def bounds(model: Any) -> dict[str, list[Any]]:
    """Return input_low, input_high, output_low, output_high of each activation by its name."""
    return {
        node.get_friendly_name(): [node.input_value(port).get_node().data for port in (1, 2, 3, 4)]
        for node in model.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize"
        and node.input_value(0).get_node().get_type_name() != "Constant"
    }


def scaled(calibration: Callable[..., Any], factor: float) -> Any:
    """An estimate that returns a part of the extremes."""
    extremes = calibration("openvino").estimate

    def estimate(path: Path, names: Sequence[str]) -> Mapping[str, tuple[float, float]]:
        found = extremes(path, names)
        return {name: (low * factor, high * factor) for name, (low, high) in found.items()}

    return estimate


@pytest.mark.parametrize("kind", KINDS)
def test_each_node_gets_the_range_of_its_own_tensor(
    kind: str, tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    model = by_extremes(kind, tiny_graph, calibration)
    expected = bounds(model)

    done = set_ranges(
        model, tiny_graph(kind).path, calibration("openvino").estimate, symmetric=False
    )

    # NNCF read extremes in OpenVINO, we in the exported graph: only equal tensors have equal ones,
    # but for what either widens so that zero is a step.
    assert done
    for name, found in bounds(model).items():
        span = np.max(expected[name][1] - expected[name][0])
        np.testing.assert_allclose(found, expected[name], atol=0.04 * span, err_msg=name)


def test_ranges_are_written_to_input_and_output_when_smaller(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    model = by_extremes("depthwise", tiny_graph, calibration)
    before = bounds(model)

    set_ranges(model, tiny_graph("depthwise").path, scaled(calibration, 0.5), symmetric=False)

    after = bounds(model)
    for name, (low, high, *outputs) in after.items():
        part = 1.0 if high.size > 1 else 0.5  # one range per channel: left as it was
        np.testing.assert_allclose(
            high - low, part * (before[name][1] - before[name][0]), rtol=0.02
        )
        np.testing.assert_array_equal(outputs, [low, high])
    assert {high.size for _, high, *_ in after.values()} == {1, 16}


def test_joined_tensors_share_the_widest_range(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    model = by_extremes("joined", tiny_graph, calibration)

    set_ranges(model, tiny_graph("joined").path, scaled(calibration, 0.5), symmetric=False)

    (join,) = [node for node in model.get_ordered_ops() if node.get_type_name() == "Concat"]
    nodes = [value.get_node() for value in join.input_values()]
    assert [node.get_type_name() for node in nodes] == ["FakeQuantize"] * 2
    one, other = (bounds(model)[node.get_friendly_name()] for node in nodes)
    assert one == other


def test_tensor_of_zeros_keeps_its_range(tiny_graph: Any, calibration: Callable[..., Any]) -> None:
    model = by_extremes("dead", tiny_graph, calibration)

    set_ranges(model, tiny_graph("dead").path, calibration("openvino").estimate, symmetric=False)

    assert all((high > low).all() for low, high, *_ in bounds(model).values())


def test_pixel_range_stays_that_of_pixels_when_ranges_are_ours(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    graph, chosen = tiny_graph("residual"), calibration("openvino", range_estimator="entropy")

    model = quantize(ov.convert_model(graph.path), graph, chosen)

    low, high, *_ = next(iter(bounds(model).values()))
    assert low / (high - low) == pytest.approx(-128 / 255)


def test_range_beyond_the_extremes_is_refused(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    model = by_extremes("residual", tiny_graph, calibration)

    with pytest.raises(GraphError, match="it was changed on the way"):
        set_ranges(model, tiny_graph("residual").path, scaled(calibration, 3), symmetric=False)


def test_estimate_without_a_tensor_is_refused(
    tiny_graph: Any, calibration: Callable[..., Any]
) -> None:
    model = by_extremes("residual", tiny_graph, calibration)

    with pytest.raises(InputError, match="gave no range for tensor"):
        set_ranges(model, tiny_graph("residual").path, lambda *_: {}, symmetric=False)


@pytest.mark.parametrize(
    ("signed", "symmetric", "expected"),
    [
        (False, False, (0.0, 2.0)),
        (True, False, (-0.4941, 2.0059)),  # zero at step 50 or 51 of 255, not between
        (True, True, (-2.0157, 2.0)),
    ],
    ids=["unsigned", "asymmetric", "symmetric"],
)
def test_fit_holds_zero_exactly(
    signed: bool, symmetric: bool, expected: tuple[float, float]
) -> None:
    low, high = fit(-0.494, 2.006, signed=signed, symmetric=symmetric)

    step = (high - low) / 255
    assert (-low / step) == pytest.approx(round(-low / step), abs=1e-9)
    assert (low, high) == pytest.approx(expected, abs=0.01)
