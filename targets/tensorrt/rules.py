"""The published rules of explicitly quantized, strongly typed graphs for TensorRT 10 and 11.

TensorRT cannot be asked on a machine without it, so its rules are written down here, each with its
source, and every graph is checked before it ships. A rule is a function that yields the nodes that
break it. "must" rules make the parser or the builder refuse the graph; "should" rules cost speed,
because a Q/DQ pair in the wrong place keeps layers from being fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydistill_edge.errors import GraphError
from hydistill_edge.targets.tensorrt import checks_numbers as numbers
from hydistill_edge.targets.tensorrt import checks_parser as parser
from hydistill_edge.targets.tensorrt import checks_placement as placement
from hydistill_edge.targets.tensorrt.graph_view import (
    Broken,
    GraphView,
    external_weights,
    read_model,
)
from hydistill_edge.targets.tensorrt.operators import OPSETS

_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt/"
EXPLICIT = _DOCS + "latest/inference-library/quantized-types-explicit-quantization.html"
TYPES = _DOCS + "latest/inference-library/work-quantized-types.html"
QUANTIZE = _DOCS + "archives/tensorrt-1030/api/c_api/classnvinfer1_1_1_i_quantize_layer.html"
OPSET_GUIDE = _DOCS + "latest/reference/onnx-opset-guide.html"
MIGRATION = _DOCS + "11.4.1/api/migration/tensorrt-10x-to-11x-python-api-patterns.html"
OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/10.0-GA/docs/operators.md"
PARSER = "https://github.com/onnx/onnx-tensorrt/blob/10.1-GA/onnxOpImporters.cpp"

Check = Callable[[GraphView, int], Iterable[Broken]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One published rule.

    Attributes:
        check: yields (node, what is wrong) for each node that breaks the rule; takes the graph
            and the generation of TensorRT.
    """

    id: str
    level: Literal["must", "should"]
    title: str
    source: str
    check: Check


@dataclass(frozen=True, slots=True)
class Violation:
    """One node that breaks one rule."""

    rule: str
    level: Literal["must", "should"]
    node: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.node}: {self.message}"


def check_rules(path: Path, generation: int) -> list[Violation]:
    """Return every violation in an ONNX file, in the order of `RULES`.

    Args:
        path: the file that would go to the device.
        generation: major version of TensorRT, 10 or 11.

    Raises:
        GraphError: the file is not ONNX, or the generation is not one of the two.
    """
    if generation not in OPSETS:
        raise GraphError(f"TensorRT generation is {generation}; expected one of 10, 11")
    model = read_model(path)
    outside = external_weights(model)
    if outside:  # without the weights no other rule can be judged
        message = "weights lie in another file; expected one file, so that a signature covers all"
        return [Violation("single-file", "must", name, message) for name in outside]
    view = GraphView(model)
    return [
        Violation(rule.id, rule.level, node, message)
        for rule in RULES
        for node, message in rule.check(view, generation)
    ]


def _unchecked(view: GraphView, generation: int) -> Iterator[Broken]:
    return iter(())


RULES: tuple[Rule, ...] = (
    # check_rules itself looks at this one, before the graph is read
    Rule("single-file", "must", "all weights in one file", PARSER, _unchecked),
    Rule("opset", "must", "opset and IR version within the parser's", OPSET_GUIDE, parser.opset),
    Rule("operators", "must", "only operators that the parser knows", OPERATORS, parser.operators),
    Rule(
        "restrictions", "must", "attributes that the parser takes", OPERATORS, parser.restrictions
    ),
    Rule(
        "types", "must", "strongly typed: types agree everywhere", MIGRATION, parser.type_inference
    ),
    Rule("uint8", "must", "UINT8 for inputs and outputs only, then Cast", OPERATORS, parser.uint8),
    Rule("float64", "must", "no float64", OPERATORS, parser.float64),
    Rule("int64", "must", "no arithmetic on int64", OPERATORS, parser.int64_arithmetic),
    Rule("one-float-type", "must", "one float type throughout", MIGRATION, parser.one_float_type),
    Rule(
        "int8",
        "must",
        "quantized tensors are INT8, stated by the zero point",
        PARSER,
        numbers.int8_only,
    ),
    Rule("zero-point", "must", "zero points are constant and 0", QUANTIZE, numbers.zero_points),
    Rule("scale", "must", "scales are constant, positive and finite", QUANTIZE, numbers.scales),
    Rule("scale-count", "must", "one scale, or one per channel", QUANTIZE, numbers.scale_counts),
    Rule(
        "per-tensor", "must", "activations have one scale", PARSER, numbers.activations_per_tensor
    ),
    Rule(
        "per-channel", "should", "weights per output channel", EXPLICIT, numbers.weights_per_channel
    ),
    Rule("weight-range", "must", "int8 weights within -127 to 127", TYPES, numbers.weight_values),
    Rule("bias", "must", "bias in float, no INT32 to dequantize", PARSER, numbers.bias),
    Rule("pairs", "must", "each Q with its DQ, of one scale", EXPLICIT, placement.pairs),
    Rule(
        "both-inputs", "should", "input and weights both quantized", EXPLICIT, placement.both_inputs
    ),
    Rule(
        "weighted-output",
        "should",
        "no Q before an activation",
        EXPLICIT,
        placement.weighted_outputs,
    ),
    Rule(
        "residual",
        "should",
        "skip input of a sum quantized, the other not",
        EXPLICIT,
        placement.residuals,
    ),
    Rule(
        "int8-out",
        "should",
        "int8 in, int8 out without weights",
        EXPLICIT,
        placement.unweighted_outputs,
    ),
    Rule("one-scale", "should", "one scale around moved values", EXPLICIT, placement.moved_scales),
    Rule("batch-norm", "should", "batch normalization folded", EXPLICIT, placement.batch_norm),
)
