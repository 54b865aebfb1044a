"""TensorRT's ONNX file: explicit int8 that other runtimes agree with, and that breaks no rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from hydistill_edge.calibration.ranges import METHODS, estimate_ranges
from hydistill_edge.errors import GraphError, InputError
from hydistill_edge.targets.base import Artifact, Calibration
from hydistill_edge.targets.profiles import load_profile
from hydistill_edge.targets.tensorrt.builder import TensorRTBuilder
from hydistill_edge.targets.tensorrt.rules import check_rules

ort = pytest.importorskip("onnxruntime")

DEVICE = load_profile("jetson-orin-nano")
KINDS = ("residual", "depthwise", "squeeze", "explicit")

# The gate of the parity ladder is 20 dB; these nets are small and plain, so more is expected. The
# depthwise one is the worst: one scale serves channels of very different ranges.
INT8_SNR_DB = 25
FLOAT16_SNR_DB = 50  # 11 significant bits are about 66 dB, a dozen layers take some

Build = Callable[..., Artifact]


def run(path: Path, images: Any) -> Any:
    """Compute the graph as it stands: a CPU's own int8 layers may saturate where a GPU's do not."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def snr_db(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    noise = np.sum((reference - found) ** 2, dtype=np.float64)
    return float(10 * np.log10(np.sum(reference**2, dtype=np.float64) / noise))


@pytest.fixture
def ranged(calibration: Callable[..., Any]) -> Callable[[str], Calibration]:
    """A function from a range estimator's name to a calibration that estimates ranges with it."""
    from hydistill_edge.targets.onnxruntime.activations import make_activation_reader

    def make(method: str = "minmax") -> Calibration:
        base: Calibration = calibration("tensorrt", "jetson-orin-nano", range_estimator=method)

        def estimate(model: Path, tensors: Sequence[str]) -> Mapping[str, tuple[float, float]]:
            reader = make_activation_reader()
            return estimate_ranges(reader, model, tensors, base.images, method=method)

        return replace(base, estimate=estimate)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_int8_graph_agrees_with_float(
    kind: str, tiny_graph: Any, ranged: Any, pixels: Any, folder: Path
) -> None:
    graph, images = tiny_graph(kind), pixels(16)

    artifact = TensorRTBuilder().build(graph, "int8", DEVICE, ranged(), folder)

    assert snr_db(run(graph.path, images), run(artifact.file, images)) > INT8_SNR_DB


@pytest.mark.parametrize("method", METHODS)
def test_int8_graph_agrees_with_float_by_every_estimator(
    method: str, tiny_graph: Any, ranged: Any, pixels: Any, folder: Path
) -> None:
    graph, images = tiny_graph("residual"), pixels(16)

    artifact = TensorRTBuilder().build(graph, "int8", DEVICE, ranged(method), folder)

    assert snr_db(run(graph.path, images), run(artifact.file, images)) > 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_graph_breaks_no_rule_of_either_generation(
    precision: Any, kind: str, tiny_graph: Any, ranged: Any, folder: Path
) -> None:
    artifact = TensorRTBuilder().build(tiny_graph(kind), precision, DEVICE, ranged(), folder)

    assert check_rules(artifact.file, 10) == []
    assert check_rules(artifact.file, 11) == []
    onnx.checker.check_model(onnx.load(artifact.file), full_check=True)


def test_int8_graph_agrees_with_the_reference_evaluator(
    tiny_graph: Any, ranged: Any, pixels: Any, folder: Path
) -> None:
    image = pixels(1)

    artifact = TensorRTBuilder().build(tiny_graph("depthwise"), "int8", DEVICE, ranged(), folder)

    model = onnx.load(artifact.file)
    model.opset_import[0].version = 19  # the evaluator has no older Q/DQ; per-axis means the same
    reference = ReferenceEvaluator(model)
    outputs: Any = reference.run(None, {"image": image})
    # Sums in another order move single values over a rounding edge, by one step of the last scale.
    assert snr_db(outputs[0], run(artifact.file, image)) > 40


def test_every_convolution_and_product_reads_int8(
    tiny_graph: Any, ranged: Any, folder: Path
) -> None:
    artifact = TensorRTBuilder().build(tiny_graph("squeeze"), "int8", DEVICE, ranged(), folder)

    nodes = onnx.load(artifact.file).graph.node
    made_by = {name: node.op_type for node in nodes for name in node.output}
    layers = [node for node in nodes if node.op_type in {"Conv", "Gemm", "MatMul"}]
    assert len(layers) == 5
    assert {made_by[name] for node in layers for name in node.input[:2]} == {"DequantizeLinear"}


def test_pixels_become_int8_without_loss(tiny_graph: Any, ranged: Any, folder: Path) -> None:
    artifact = TensorRTBuilder().build(tiny_graph("residual"), "int8", DEVICE, ranged(), folder)

    model = onnx.load(artifact.file)
    every_pixel = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    names = ["normalized", "normalized/float", "normalized/int8"]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    before, after, int8 = session.run(names, {"image": every_pixel})
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(np.unique(int8), np.arange(-128, 128))


def test_skip_of_a_sum_is_quantized_and_its_convolution_is_not(
    tiny_graph: Any, ranged: Any, folder: Path
) -> None:
    artifact = TensorRTBuilder().build(tiny_graph("residual"), "int8", DEVICE, ranged(), folder)

    nodes = onnx.load(artifact.file).graph.node
    made_by = {name: node.op_type for node in nodes for name in node.output}
    (total,) = (node for node in nodes if node.op_type == "Add")
    assert sorted(made_by[name] for name in total.input) == ["Conv", "DequantizeLinear"]


def test_weights_are_stored_in_int8_and_biases_in_float(
    tiny_graph: Any, ranged: Any, folder: Path
) -> None:
    graph = tiny_graph("residual")

    artifact = TensorRTBuilder().build(graph, "int8", DEVICE, ranged(), folder)

    kinds = {t.name: t.data_type for t in onnx.load(artifact.file).graph.initializer}
    assert kinds["fc.weight/axis0/int8"] == onnx.TensorProto.INT8
    assert kinds["fc.bias"] == onnx.TensorProto.FLOAT
    assert artifact.size_bytes < 0.6 * graph.path.stat().st_size


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_build_gives_the_same_bytes_twice(
    precision: Any, tiny_graph: Any, ranged: Any, folder: Path
) -> None:
    graph, files = tiny_graph("squeeze"), []
    for _ in range(2):
        artifact = TensorRTBuilder().build(graph, precision, DEVICE, ranged(), folder)
        files.append(artifact.file.read_bytes())

    assert files[0] == files[1]


def test_float_graph_is_the_exported_one(tiny_graph: Any, pixels: Any, folder: Path) -> None:
    graph, images = tiny_graph("squeeze"), pixels(4)

    full = TensorRTBuilder().build(graph, "fp32", DEVICE, None, folder)
    assert full.file.read_bytes() == graph.path.read_bytes()

    half = TensorRTBuilder().build(graph, "fp16", DEVICE, None, folder)
    assert snr_db(run(graph.path, images), run(half.file, images)) > FLOAT16_SNR_DB


def test_artifact_says_that_parity_is_simulated(tiny_graph: Any, folder: Path) -> None:
    artifact = TensorRTBuilder().build(tiny_graph("residual"), "fp16", DEVICE, None, folder)

    assert (artifact.target, artifact.device) == ("tensorrt", "jetson-orin-nano")
    assert "parity is simulated" in artifact.note
    assert "latency is not measured" in artifact.note


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_build_refuses_a_precision_that_it_cannot_make(
    precision: Any, tiny_graph: Any, folder: Path
) -> None:
    with pytest.raises(InputError, match=precision):
        TensorRTBuilder().build(tiny_graph("residual"), precision, DEVICE, None, folder)


def test_build_refuses_a_device_without_tensorrt(tiny_graph: Any, folder: Path) -> None:
    device = load_profile("raspberry-pi-5")

    with pytest.raises(InputError, match="raspberry-pi-5"):
        TensorRTBuilder().build(tiny_graph("residual"), "fp32", device, None, folder)


def test_build_asks_for_an_estimator_when_int8_has_none(
    tiny_graph: Any, calibration: Any, folder: Path
) -> None:
    bare = replace(calibration("tensorrt", "jetson-orin-nano"), estimate=None)

    with pytest.raises(InputError, match="estimate="):
        TensorRTBuilder().build(tiny_graph("residual"), "int8", DEVICE, bare, folder)


def test_build_names_the_tensor_that_got_no_range(
    tiny_graph: Any, ranged: Any, folder: Path
) -> None:
    silent = replace(ranged(), estimate=lambda model, tensors: {})

    with pytest.raises(InputError, match=r"no range for \d+ tensors"):
        TensorRTBuilder().build(tiny_graph("residual"), "int8", DEVICE, silent, folder)


def test_build_refuses_a_graph_that_has_changed(
    tiny_graph: Any, tmp_path: Path, folder: Path
) -> None:
    graph = tiny_graph("residual")
    other = tmp_path / "other.onnx"
    other.write_bytes(graph.path.read_bytes() + b"\x00")

    with pytest.raises(GraphError, match="has changed"):
        TensorRTBuilder().build(replace(graph, path=other), "fp32", DEVICE, None, folder)


def test_check_says_why_this_machine_cannot_run() -> None:
    found = TensorRTBuilder().check()

    assert found.can_build
    assert found.can_run or found.why
