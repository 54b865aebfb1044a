"""Int8 for OpenVINO: NNCF on its own format, with the input's range pinned to that of pixels.

NNCF takes the range of the input from the calibration images. Pixels need no estimate: their 256
values are the 256 levels, and with exactly that range OpenVINO reads the input as it is, while any
other range makes it requantize every pixel.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import InputError, ShapeError
from hydistill_edge.targets.base import Calibration, Graph, Scheme
from hydistill_edge.targets.openvino.libraries import load_nncf, load_openvino, silence
from hydistill_edge.targets.openvino.ranges import set_ranges

DYNAMIC_BATCH = 8

# Between raw pixels and the first layer: these move or scale values, and mix none of them.
POINTWISE = {"Convert", "Transpose", "Reshape", "Add", "Subtract", "Multiply", "Divide"}

OWN = ("minmax", "percentile", "mse")
"""Range estimators that NNCF has."""

OUTLIERS = 1e-4
"""Share of an image's values that "percentile" cuts at either end: NNCF's own default."""

LEVELS = 256

AUTOMATIC_NAME = re.compile(r"\w+_\d+")


def quantize(model: Any, graph: Graph, calibration: Calibration) -> Any:
    """Return the int8 form of a converted graph; `pin_pixel_range` has been applied.

    Args:
        model: an `openvino.Model` with raw pixels as input.
        graph: what it was converted from.
        calibration: images of the graph's size, and a scheme for quantizer "nncf".

    Raises:
        InputError: the scheme is not one of NNCF's.
        ShapeError: the calibration images are not of the graph's size.
    """
    quantized = quantize_by_data(model, graph, calibration)
    scheme, estimate = calibration.scheme, calibration.estimate
    if scheme.range_estimator not in OWN:
        assert estimate is not None  # `_check` has asked for it
        set_ranges(quantized, graph.path, estimate, symmetric=scheme.symmetric_activations)
    pin_pixel_range(quantized)
    return quantized


def quantize_by_data(model: Any, graph: Graph, calibration: Calibration) -> Any:
    """Return what NNCF makes by itself, the input's range taken from the images."""
    scheme = calibration.scheme
    _check(graph, calibration)
    nncf = load_nncf()
    batches = _batches(calibration.images, graph.batch)
    with silence():
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.PERFORMANCE
            if scheme.symmetric_activations
            else nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(batches),
            advanced_parameters=_advanced(nncf, scheme),
        )


def pin_pixel_range(model: Any) -> bool:
    """Set the range of the input's FakeQuantize to that of the pixels, 256 levels, in place.

    Which numbers that is, the graph tells: it is run up to there on black and on white. OpenVINO
    moves the factor 1/64 into the first layer's weights, so [-2, 127/64] may stand as [-128, 127].

    Returns:
        Whether there was one. A student that keeps other statistics per channel has none: its
        input is no longer one range for all channels.
    """
    ov = load_openvino()
    node = _input_quantizer(model)
    if node is None or node.get_attributes()["levels"] != LEVELS:
        return False
    black, middle, white = (_value_before(model, node, pixel) for pixel in (0, 128, 255))
    if black is None or middle is None or white is None or not black < middle < white:
        return False
    for port, value in ((1, black), (2, white), (3, black), (4, white)):
        shape = list(node.input_value(port).get_shape())
        constant = ov.op.Constant(np.full(shape, value, np.float32))
        constant.set_friendly_name(f"pixels/fq/{port}")
        node.input(port).replace_source_output(constant.output(0))
    model.validate_nodes_and_infer_types()
    return True


def name_alike(model: Any) -> None:
    """Give nodes without a name of the graph's the same names in every process.

    OpenVINO numbers them by a counter of the whole process, which makes equal models differ.
    """
    for index, node in enumerate(model.get_ordered_ops()):
        if AUTOMATIC_NAME.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def _input_quantizer(model: Any) -> Any | None:
    """Return the only FakeQuantize that the pixels reach through pointwise nodes, or None."""
    found, waiting, seen = {}, [model.inputs[0].get_node()], set()
    while waiting:
        for target in waiting.pop().output(0).get_target_inputs():
            node = target.get_node()
            name, kind = node.get_friendly_name(), node.get_type_name()
            if kind == "FakeQuantize":
                found[name] = node
            elif kind in POINTWISE and name not in seen:
                seen.add(name)
                waiting.append(node)
    return next(iter(found.values())) if len(found) == 1 else None


def _value_before(model: Any, quantizer: Any, pixel: int) -> float | None:
    """Return what the quantizer reads when all pixels are `pixel`, or None if that differs."""
    ov = load_openvino()
    clone = model.clone()
    name = quantizer.get_friendly_name()
    node = next(op for op in clone.get_ordered_ops() if op.get_friendly_name() == name)
    front = ov.Model([node.input_value(0)], clone.get_parameters())
    shape = [dim.get_length() if dim.is_static else 1 for dim in model.inputs[0].partial_shape]
    compiled = ov.Core().compile_model(front, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = compiled(np.full(shape, pixel, np.uint8))[0]
    return float(values.flat[0]) if (values == values.flat[0]).all() else None


def _advanced(nncf: Any, scheme: Scheme) -> Any:
    overflow = nncf.OverflowFix.ENABLE if scheme.reduce_range else nncf.OverflowFix.DISABLE
    return nncf.AdvancedQuantizationParameters(
        overflow_fix=overflow,
        # NNCF's bias correction moves the biases towards the mean error over the calibration
        # images. Where ranges are wide enough to clip nothing there is no such error to mend, and
        # the correction itself was the larger one: a residual student's int8 logits had 20.8 dB
        # with it and 35.4 dB without.
        disable_bias_correction=True,
        activations_range_estimator_params=_range_estimator(nncf, scheme.range_estimator),
    )


def _range_estimator(nncf: Any, name: str) -> Any:
    """Return NNCF's parameters for an estimator; its extremes for one that it lacks.

    Images are aggregated by their extremes. NNCF's own sets take the mean over images, which cuts
    every image that is stronger than most: a percentile so had 12 dB where this one has 23 dB
    (a steel RegNetY-400MF), and 22 dB in place of 36 dB (a CIFAR ResNet-9).
    """
    ranges = nncf.quantization.range_estimator
    if name == "mse":
        return ranges.RangeEstimatorParametersSet.HISTOGRAM
    if name != "percentile":
        return ranges.RangeEstimatorParametersSet.MINMAX
    low, high = (
        ranges.StatisticsCollectorParameters(
            statistics_type=ranges.StatisticsType.QUANTILE,
            aggregator_type=aggregator,
            quantile_outlier_prob=OUTLIERS,
        )
        for aggregator in (ranges.AggregatorType.MIN, ranges.AggregatorType.MAX)
    )
    return ranges.RangeEstimatorParameters(min=low, max=high)


def _batches(images: NDArray[np.uint8], batch: int | None) -> list[NDArray[np.uint8]]:
    """Return views of the images in batches of the graph's size; a fixed last one is filled up."""
    step = batch or min(DYNAMIC_BATCH, len(images))
    parts = [images[start : start + step] for start in range(0, len(images), step)]
    missing = step - len(parts[-1])
    if missing and batch is not None:
        parts[-1] = np.concatenate([parts[-1], parts[-1][-1:].repeat(missing, axis=0)])
    return parts


def _check(graph: Graph, calibration: Calibration) -> None:
    scheme, images = calibration.scheme, calibration.images
    if scheme.quantizer != "nncf":
        raise InputError(
            f'scheme "{scheme.name}" is for quantizer "{scheme.quantizer}"; expected one for '
            '"nncf": choose it with choose_scheme("openvino", profile)'
        )
    if scheme.range_estimator not in OWN and calibration.estimate is None:
        raise InputError(
            f'range estimator "{scheme.range_estimator}" is not one of NNCF\'s '
            f"({', '.join(OWN)}), and int8 came without estimates of ours; hand over "
            "Calibration(estimate=...), which returns the ranges of named tensors"
        )
    expected = (graph.height, graph.width, graph.channels)
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        raise ShapeError(
            f"calibration images are {images.dtype} {images.shape}; expected uint8 (N, "
            f"{', '.join(map(str, expected))}): resize them to the graph's input"
        )
