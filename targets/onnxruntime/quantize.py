"""Int8 for ONNX Runtime: its own static quantizer, with the pixels as the quantized input.

The student sees `(pixel - 128) / 64`. A uint8 pixel therefore is a quantized tensor already, with
scale 1/64 and zero point 128, zero padding included, and the input needs no arithmetic at all:

    uint8:  Transpose -> DequantizeLinear(1/64, 128) -> first layer
    int8:   Transpose -> DequantizeLinear(1/64, 128) -> QuantizeLinear(1/64, 0) -> Dequantize...

in place of Cast, Transpose, Sub, Mul and QuantizeLinear. Both give the same integers as those.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hydistill_edge.errors import InputError, ShapeError
from hydistill_edge.targets.base import Calibration, Graph, Images, Scheme
from hydistill_edge.targets.graph import load_model
from hydistill_edge.targets.graph_file import IMAGE, LOGITS, set_precision
from hydistill_edge.targets.graph_input import (
    NORMALIZED,
    PIXEL_SCALE,
    PIXEL_ZERO_POINT,
    image_value,
    keep_items,
    prepend_pixels,
    split_input,
)

OWN = ("minmax",)
"""Range estimators that are left to ONNX Runtime.

Its percentile and entropy are not. Both widen their histograms in steps of the first chunk's bins,
so a tensor that is nearly dead in that chunk (a closed gate) ends in a MemoryError, or in billions
of bins; and its entropy merges 128 bins into 128 levels: it has one candidate, the extremes.
"""

ELEMENTWISE = {"Mul", "Add", "Sub", "Div"}


def quantize(graph: Graph, calibration: Calibration) -> onnx.ModelProto:
    """Return the int8 graph: uint8 pixels in, float32 logits out.

    Raises:
        InputError: the scheme is not one of ONNX Runtime's.
        ShapeError: the calibration images are not of the graph's size.
    """
    model = attach_pixels(quantize_network(graph, calibration))
    set_precision(model, "int8")
    return model


def quantize_network(graph: Graph, calibration: Calibration) -> onnx.ModelProto:
    """Return the network of the graph in QDQ form: float32 `normalized` in, float32 logits out.

    The tensor `normalized` is quantized with scale 1/64 and the zero point of pixel 128.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    scheme = calibration.scheme
    _check(graph, calibration)
    model = load_model(graph)
    core = split_input(model)
    with _quiet(), tempfile.TemporaryDirectory(prefix="hydistill-quantize-") as temporary:
        prepared, quantized = Path(temporary, "prepared.onnx"), Path(temporary, "int8.onnx")
        # Without ONNX Runtime's optimisation: the exporter has folded the batch norms, and it
        # would take HardSwish apart, whose halves are then quantized one by one (6 % slower in a
        # MobileNetV3). Without symbolic shapes: the graph's own are complete, and a dynamic batch
        # breaks them.
        quant_pre_process(
            core, prepared, skip_optimization=True, skip_symbolic_shape=True, verbose=0
        )
        overrides = {NORMALIZED: [_pixel_parameters(scheme)]}
        images = calibration.images
        if scheme.range_estimator not in OWN:
            # Which tensors are quantized does not depend on the images: one tells their names.
            images = images[:1]
            reader = _Reader(images, batch=graph.batch)
            _quantize_static(prepared, quantized, reader, scheme, overrides)
            overrides |= _our_ranges(quantized, graph, calibration)
        reader = _Reader(images, batch=graph.batch)
        _quantize_static(prepared, quantized, reader, scheme, overrides)
        made = onnx.load(quantized)
    del made.metadata_props[:], made.graph.value_info[:]
    made.metadata_props.extend(model.metadata_props)
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    # The quantizer raises both to what it knows; the operators it adds need no more than before.
    made.ir_version = max(model.ir_version, helper.find_min_ir_version_for(made.opset_import))
    _free_logits(made.graph)
    return onnx.shape_inference.infer_shapes(made)


def attach_pixels(network: onnx.ModelProto) -> onnx.ModelProto:
    """Put uint8 pixels in front of a quantized network, as the quantized tensor they are."""
    graph = network.graph
    image = image_value(network)
    del graph.input[:]
    graph.input.append(image)
    scale, zero = f"{IMAGE}_scale", f"{IMAGE}_zero_point"
    pixels = f"{IMAGE}_nchw"
    transpose = helper.make_node("Transpose", [IMAGE], [pixels], name=pixels, perm=[0, 3, 1, 2])
    unsigned = [
        node
        for node in graph.node
        if node.op_type == "QuantizeLinear"
        and node.input[0] == NORMALIZED
        and _zero_point(graph, node) == (TensorProto.UINT8, PIXEL_ZERO_POINT)
    ]
    for node in unsigned:
        for reader in graph.node:
            if reader.input and reader.input[0] == node.output[0]:
                reader.input[0] = pixels
    dropped = {node.name for node in unsigned}
    rest = [node for node in graph.node if node.name not in dropped]
    front = [transpose]
    if any(NORMALIZED in node.input for node in rest):
        # int8 activations, or a first layer that stays in float: both read the float tensor.
        front.append(
            helper.make_node(
                "DequantizeLinear", [pixels, scale, zero], [NORMALIZED], name=NORMALIZED
            )
        )
        graph.initializer.append(numpy_helper.from_array(np.float32(PIXEL_SCALE), scale))
        graph.initializer.append(numpy_helper.from_array(np.uint8(PIXEL_ZERO_POINT), zero))
    kept = [*front, *(_copied(node) for node in rest)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    read = {name for node in graph.node for name in node.input}
    keep_items(graph.initializer, lambda tensor: tensor.name in read)
    return onnx.shape_inference.infer_shapes(network)


def attach_float_input(network: onnx.ModelProto) -> onnx.ModelProto:
    """Put the float arithmetic of the export in front instead: what `attach_pixels` saves.

    Kept for the test that both are equal bit for bit, and for the benchmark of the difference.
    """
    prepend_pixels(network)
    return network


def _quantize_static(
    prepared: Path,
    quantized: Path,
    reader: _Reader,
    scheme: Scheme,
    overrides: Mapping[str, list[dict[str, Any]]],
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    quantize_static(
        prepared,
        quantized,
        reader,
        per_channel=scheme.per_channel,
        reduce_range=scheme.reduce_range,
        activation_type=types[scheme.activation_type],
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=_explicit_normalisation(onnx.load(prepared)),
        extra_options={
            "ActivationSymmetric": scheme.symmetric_activations,
            "WeightSymmetric": True,
            "TensorQuantOverrides": dict(overrides),
        },
    )


def _our_ranges(
    quantized: Path, graph: Graph, calibration: Calibration
) -> dict[str, list[dict[str, Any]]]:
    """Return, as overrides, the range of each activation that the quantizer has quantized."""
    estimate = calibration.estimate
    assert estimate is not None  # `_check` has asked for it
    nodes = onnx.load(quantized).graph.node
    # The quantizer renames what comes before a graph's output, to write the output itself.
    names = {
        LOGITS if node.input[0].startswith(f"{LOGITS}_") else node.input[0]
        for node in nodes
        if node.op_type == "QuantizeLinear" and node.input[0] != NORMALIZED
    }
    ranges = estimate(graph.path, sorted(names))
    missing = sorted(names - set(ranges))
    if missing:
        raise InputError(
            f'the calibration gave no range for {len(missing)} tensors, "{missing[0]}" for one; '
            f"expected all {len(names)}"
        )
    return {
        name: [{"rmin": np.float32(ranges[name][0]), "rmax": np.float32(ranges[name][1])}]
        for name in names
    }


class _Reader:
    """Hands normalised calibration images to the calibrator, a batch of the graph's at a time.

    The calibrator reduces each batch to its extremes inside the graph, so memory is no matter.
    """

    def __init__(self, images: Images, *, batch: int | None) -> None:
        self._batches = _batches(images, batch)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch as the network's input, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {NORMALIZED: batch}


def _batches(images: Images, batch: int | None) -> Iterator[NDArray[np.float32]]:
    """Yield the images as the network sees them; a fixed batch is filled up with the first ones."""
    step = batch or 8
    for first in range(0, len(images), step):
        end = first + step if batch is not None else min(first + step, len(images))
        rows = np.arange(first, end) % len(images)
        pixels = images[rows].astype(np.float32).transpose(0, 3, 1, 2)
        yield np.ascontiguousarray((pixels - PIXEL_ZERO_POINT) * np.float32(PIXEL_SCALE))


def _check(graph: Graph, calibration: Calibration) -> None:
    scheme, images = calibration.scheme, calibration.images
    if scheme.quantizer != "onnxruntime":
        raise InputError(
            f'scheme "{scheme.name}" is for quantizer "{scheme.quantizer}"; expected one for '
            '"onnxruntime": choose it with choose_scheme("onnxruntime", profile)'
        )
    if scheme.range_estimator not in OWN and calibration.estimate is None:
        raise InputError(
            f'range estimator "{scheme.range_estimator}" is not one of ONNX Runtime\'s '
            f"({', '.join(OWN)}), and int8 came without estimates of ours; hand over "
            "Calibration(estimate=...), which returns the ranges of named tensors"
        )
    expected = (graph.height, graph.width, graph.channels)
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        raise ShapeError(
            f"calibration images are {images.dtype} {images.shape}; expected uint8 (N, "
            f"{', '.join(map(str, expected))}): resize them to the graph's input"
        )


def _pixel_parameters(scheme: Scheme) -> dict[str, Any]:
    unsigned = scheme.activation_type == "uint8"
    zero = np.array(PIXEL_ZERO_POINT, np.uint8) if unsigned else np.array(0, np.int8)
    return {"scale": np.array(PIXEL_SCALE, np.float32), "zero_point": zero}


def _explicit_normalisation(core: onnx.ModelProto) -> list[str]:
    """Return the nodes that scale and shift the whole input before the first layer.

    A student that keeps its own statistics has them. In int8 they would round every pixel twice.
    """
    constants = {tensor.name for tensor in core.graph.initializer}
    inputs, found = {NORMALIZED}, []
    for node in core.graph.node:
        fed = [name for name in node.input if name not in constants]
        if node.op_type in ELEMENTWISE and fed and set(fed) <= inputs:
            inputs.add(node.output[0])
            found.append(node.name)
    return found


def _free_logits(graph: onnx.GraphProto) -> None:
    """Let the last layer write float logits: 256 levels over all of them would round decisions."""
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[LOGITS]
    if last.op_type != "DequantizeLinear" or last.input[0] not in makers:
        return
    before = makers[last.input[0]]
    if before.op_type != "QuantizeLinear" or before.input[0] not in makers:
        return
    maker = makers[before.input[0]]
    if maker.op_type not in ("Gemm", "MatMul", "Conv", "Add"):
        return
    exact, gone = before.input[0], {last.name, before.name}
    readers = [n for n in graph.node if exact in n.input and n.name not in gone]
    if readers or any(last.input[0] in n.input for n in graph.node if n.name not in gone):
        return
    maker.output[list(maker.output).index(exact)] = LOGITS
    keep_items(graph.node, lambda node: node.name not in gone)


def _zero_point(graph: onnx.GraphProto, node: onnx.NodeProto) -> tuple[int, int]:
    tensor = next(t for t in graph.initializer if t.name == node.input[2])
    return tensor.data_type, int(numpy_helper.to_array(tensor))


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's prints and its advice on the root logger."""
    import onnxruntime

    root, level = logging.getLogger(), logging.getLogger().level
    onnxruntime.set_default_logger_severity(3)
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
        onnxruntime.set_default_logger_severity(2)
