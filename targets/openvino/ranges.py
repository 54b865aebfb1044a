"""Ranges of our own for OpenVINO, written into the FakeQuantize nodes that NNCF has placed.

NNCF decides what is quantized; an estimator that it lacks decides how far. Each node is found by
the name that its input has in the exported graph, where the range is taken from: OpenVINO keeps
the names of ONNX tensors through all that it merges and moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hydistill_edge.errors import GraphError, InputError
from hydistill_edge.targets.base import RangeEstimator
from hydistill_edge.targets.openvino.libraries import load_openvino

LEVELS = 256

# NNCF widens a range by a hair to hit zero; a range of the same tensor exceeds it by no more.
SLACK = 0.01

# Layers that only move values: what goes into a Concat through them shares one range with it.
MOVING = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Split", "VariadicSplit"}


class Quantizer(NamedTuple):
    """A FakeQuantize node of an activation, one range for all channels."""

    node: Any
    tensor: str
    low: float
    high: float


def set_ranges(model: Any, path: Path, estimate: RangeEstimator, *, symmetric: bool) -> list[str]:
    """Give every FakeQuantize of an activation the range that `estimate` returns, in place.

    What has one range per channel (the input of a depthwise convolution), and what OpenVINO has
    made itself, so that the exported graph knows no such tensor, keeps the range that it has.

    Args:
        model: an `openvino.Model` that NNCF has quantized by the extremes of its tensors.
        path: the ONNX file that it was converted from.
        estimate: called once, with that file and the tensors' names in it.
        symmetric: signed tensors reach as far below zero as above.

    Returns:
        The tensors whose range was set, in the model's order.

    Raises:
        InputError: the estimate lacks a tensor.
        GraphError: a range exceeds the tensor's extremes: it is not the same tensor.
    """
    quantizers = list(_quantizers(model, _tensors(path)))
    ranges = estimate(path, sorted({quantizer.tensor for quantizer in quantizers}))
    found = {item.tensor: _checked(item, ranges) for item in quantizers}
    shared = _shared(model, quantizers)
    done = []
    for item in quantizers:
        group = [found[name] for name in shared.get(item.tensor, [item.tensor])]
        low, high = min(low for low, _ in group), max(high for _, high in group)
        if not high > low:
            continue  # nothing but zeros: every range fits, and the node has one
        _write(item.node, *fit(low, high, signed=item.low < 0, symmetric=symmetric))
        done.append(item.tensor)
    model.validate_nodes_and_infer_types()
    return done


def fit(low: float, high: float, *, signed: bool, symmetric: bool) -> tuple[float, float]:
    """Return the nearest range of 256 even steps that holds zero exactly.

    Args:
        low: at most 0.
        high: at least 0, above low.
        signed: whether the tensor has negative values; else the range starts at zero.
        symmetric: whether a signed range is to have zero at step 128.
    """
    if not signed:
        return 0.0, high
    if symmetric:
        half = LEVELS // 2
        return -high * half / (half - 1), high
    scale = (high - low) / (LEVELS - 1)
    zero_point = round(-low / scale)
    return -zero_point * scale, (LEVELS - 1 - zero_point) * scale


def _tensors(path: Path) -> set[str]:
    from hydistill_edge.targets.graph_file import parse_model

    return {name for node in parse_model(path).graph.node for name in node.output if name}


def _quantizers(model: Any, tensors: set[str]) -> Iterator[Quantizer]:
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != LEVELS:
            continue
        names = sorted(set(node.input_value(0).get_names()) & tensors)
        bounds = [np.ravel(node.input_value(port).get_node().data) for port in (1, 2)]
        if names and all(len(bound) == 1 for bound in bounds):
            yield Quantizer(node, names[0], float(bounds[0][0]), float(bounds[1][0]))


def _checked(
    quantizer: Quantizer, ranges: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    _, tensor, lowest, highest = quantizer
    if tensor not in ranges:
        raise InputError(f'the calibration gave no range for tensor "{tensor}"; expected one')
    low, high = ranges[tensor]
    reach = max(-lowest, highest)  # a symmetric estimate mirrors the greater side
    slack = SLACK * (highest - lowest)
    if low < -reach - slack or high > reach + slack:
        raise GraphError(
            f'tensor "{tensor}" reaches from {low:.6g} to {high:.6g} in the exported graph, but '
            f"from {lowest:.6g} to {highest:.6g} in OpenVINO: it was changed on the way. Choose a "
            "range estimator of NNCF's own (minmax, percentile or mse)"
        )
    return low, high


def _shared(model: Any, quantizers: list[Quantizer]) -> dict[str, list[str]]:
    """Return, for tensors that meet in a Concat with one range, all of those tensors."""
    tensor_of = {item.node.get_friendly_name(): item for item in quantizers}
    groups: dict[str, list[str]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Concat":
            continue
        met = [tensor_of[name] for name in _sources(node) if name in tensor_of]
        if len({(item.low, item.high) for item in met}) != 1:
            continue  # NNCF gave them ranges of their own
        names = {name for item in met for name in groups.get(item.tensor, [item.tensor])}
        groups |= dict.fromkeys(names, sorted(names))
    return groups


def _sources(node: Any) -> Iterator[str]:
    """Yield the names of the FakeQuantize nodes that feed a Concat, through layers that move."""
    moves = node.get_type_name() != "Concat"  # its other inputs say where the values go
    for value in node.input_values()[:1] if moves else node.input_values():
        source = value.get_node()
        if source.get_type_name() == "FakeQuantize":
            yield source.get_friendly_name()
        elif source.get_type_name() in MOVING | {"Concat"}:
            yield from _sources(source)


def _write(node: Any, low: float, high: float) -> None:
    ov = load_openvino()
    for port, value in ((1, low), (2, high), (3, low), (4, high)):
        shape = list(node.input_value(port).get_shape())
        constant = ov.op.Constant(np.full(shape, value, np.float32))
        constant.set_friendly_name(f"{node.get_friendly_name()}/{port}")
        node.input(port).replace_source_output(constant.output(0))
