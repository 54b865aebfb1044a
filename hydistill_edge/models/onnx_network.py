"""An ONNX classifier as a torch network, gradients included.

Every node becomes a small module, named after the node, so that features can be tapped. Weights of
convolutions, linear layers and batch norms become parameters of torch's own layers. What only
constants feed is computed once, at load, by onnx's reference evaluator; what only shapes feed is
computed with numpy while running.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor, nn

from hydistill_edge.errors import TeacherError
from hydistill_edge.models.onnx_file import OnnxInput, opset_of, read_input, read_model
from hydistill_edge.models.onnx_layers import OpLayer, evaluate_node, linear_layer, weighted_layer
from hydistill_edge.models.onnx_ops import (
    OPS,
    Array,
    Batch,
    Node,
)
from hydistill_edge.models.weights import check_finite

__all__ = ["OnnxInput", "OnnxNetwork", "load_onnx"]

ONE_BY_ONE_TOLERANCE = 1e-4
"""Largest difference, over the largest logit, that batching may make: float32 rounding."""

TRIAL_SIDE_PX = 32
"""Height and width of the trial where the graph leaves them free."""


@dataclass(frozen=True)
class Step:
    """One node of the plan: which layer reads and writes which values.

    Attributes:
        layer: name of the module.
        inputs: names of values, None for a missing optional one.
        outputs: names of values.
        last_use: values that nothing reads afterwards.
    """

    layer: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    last_use: tuple[str, ...] = ()


class OnnxNetwork(nn.Module):
    """A classifier read from an ONNX graph; made by `load_onnx`.

    Attributes:
        input: the image input, as the graph declares it.
        note: what was changed while reading, e.g. a softmax left out.
        one_by_one: the graph was exported for one batch size and mixes images when given another,
            so batches are cut into pieces of that size: right, and slow.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        plan: Sequence[Step],
        *,
        graph_input: OnnxInput,
        output: str,
        batch: Batch | None,
        note: str,
        model: bytes,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.plan = tuple(plan)
        self.input = graph_input
        self.output = output
        self.batch = batch
        self.note = note
        self.one_by_one = False
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of normalised images (N, C, H, W)."""
        return self._in_pieces(images) if self.one_by_one else self._run(images)

    def _run(self, images: Tensor) -> Tensor:
        if self.batch is not None:
            self.batch.now = images.shape[0]
        values: dict[str, Any] = {self.input.name: images}
        for step in self.plan:
            given = [None if name is None else values[name] for name in step.inputs]
            result = self.layers[step.layer](*given)
            results = result if isinstance(result, tuple) else (result,)
            values.update(zip(step.outputs, results, strict=False))
            for name in step.last_use:
                del values[name]
        logits: Tensor = values[self.output]
        return logits

    def _in_pieces(self, images: Tensor) -> Tensor:
        assert self.batch is not None
        size = self.batch.exported
        missing = -images.shape[0] % size
        if missing:
            images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        logits = torch.cat([self._run(piece) for piece in torch.split(images, size)])
        return logits[: len(logits) - missing]


def load_onnx(path: Path, *, output: str | None = None) -> OnnxNetwork:
    """Return the network of an ONNX file, in eval mode, with float32 weights and gradients.

    A softmax at the end is left out, since methods need the logits before it.

    Args:
        path: of the file; weights stored beside it are read, anything outside is refused.
        output: name of the tensor with the logits, needed if the graph has several outputs.

    Raises:
        MissingFileError: the file or its weights do not exist.
        TeacherError: not a float image classifier, an operator that has no counterpart here (the
            message names operator and node), broken weights.
    """
    return build_onnx(read_model(path), source=str(path), output=output)


def build_onnx(model: onnx.ModelProto, *, source: str, output: str | None = None) -> OnnxNetwork:
    """Return the network of a checked model with all its weights inside.

    Args:
        model: as `read_model` returns it.
        source: named in messages.
        output: name of the tensor with the logits, needed if the graph has several outputs.

    Raises:
        TeacherError: as in `load_onnx`.
    """
    graph_input = read_input(model, source)
    logits, note = _find_logits(model, source, output)
    nodes = _needed(model, logits)
    _check_operators(nodes, [tensor.name for tensor in model.graph.initializer], source)
    batch = None if graph_input.batch is None else Batch(graph_input.batch, graph_input.batch)
    layers, plan = _Reader(model, source, batch).read(nodes)
    network = OnnxNetwork(
        layers,
        _with_last_uses(plan, logits),
        graph_input=graph_input,
        output=logits,
        batch=batch,
        note=note,
        model=model.SerializeToString(),
    )
    network.eval()
    check_finite(dict(network.named_parameters()), source=source)
    _settle_batch(network)
    return network


class _Reader:
    """Turns the nodes of a graph into layers and steps, folding constants on the way."""

    def __init__(self, model: onnx.ModelProto, source: str, batch: Batch | None) -> None:
        self.source = source
        self.batch = batch
        self.opset = opset_of(model)
        self.constants: dict[str, Array] = {
            tensor.name: _as_float32(numpy_helper.to_array(tensor))
            for tensor in model.graph.initializer
        }
        self.layers: dict[str, nn.Module] = {}
        self.plan: list[Step] = []

    def read(self, nodes: Sequence[NodeProto]) -> tuple[dict[str, nn.Module], list[Step]]:
        uses: dict[str, int] = {}
        for node in nodes:
            for name in node.input:
                uses[name] = uses.get(name, 0) + 1
        skip: set[int] = set()
        for index, node in enumerate(nodes):
            if index in skip:
                continue
            if all(name in self.constants for name in node.input if name):
                self._fold(node)
                continue
            bias_at = self._bias_after(nodes, index, uses)
            if bias_at is not None:
                skip.add(bias_at)
            self._add(node, None if bias_at is None else nodes[bias_at])
        return self.layers, self.plan

    def _fold(self, node: NodeProto) -> None:
        feeds = {name: self.constants[name] for name in node.input if name}
        try:
            results = evaluate_node(node, feeds, self.opset)
        except Exception as error:
            raise TeacherError(
                f'{self.source}: ONNX node "{node.name}" ({node.op_type}) of constants cannot be '
                f"computed: {error}"
            ) from error
        self.constants.update(zip(node.output, map(_as_float32, results), strict=True))

    def _bias_after(
        self, nodes: Sequence[NodeProto], index: int, uses: Mapping[str, int]
    ) -> int | None:
        """Return the place of the Add that gives a MatMul its bias: together, a linear layer."""
        node = nodes[index]
        if node.op_type != "MatMul" or self.constants.get(node.input[1], np.empty(0)).ndim != 2:
            return None
        for later in range(index + 1, len(nodes)):
            if node.output[0] in nodes[later].input:
                addition = nodes[later]
                other = [name for name in addition.input if name != node.output[0]]
                bias = self.constants.get(other[0]) if other else None
                width = self.constants[node.input[1]].shape[1]
                single = addition.op_type == "Add" and uses[node.output[0]] == 1
                return later if single and bias is not None and bias.shape == (width,) else None
        return None

    def _add(self, proto: NodeProto, bias: NodeProto | None) -> None:
        node = self._describe(proto)
        constants = {
            index: self.constants[name]
            for index, name in enumerate(proto.input)
            if name in self.constants
        }
        layer = weighted_layer(node, constants, len(proto.input))
        if bias is not None:
            weight = constants[1]
            shift = next(self.constants[name] for name in bias.input if name in self.constants)
            layer = linear_layer(weight.T, shift)
        if layer is not None:
            inputs: tuple[str | None, ...] = (proto.input[0],)
        else:
            layer = OpLayer(node, OPS[node.op].function, constants, len(proto.input))
            inputs = tuple(
                name or None for index, name in enumerate(proto.input) if index not in constants
            )
        name = self._free_name(proto)
        self.layers[name] = layer
        self.plan.append(Step(name, inputs, tuple(bias.output if bias else proto.output)))

    def _describe(self, proto: NodeProto) -> Node:
        attributes = {item.name: helper.get_attribute_value(item) for item in proto.attribute}
        name = proto.name or proto.output[0]
        unknown = set(attributes) - OPS[proto.op_type].attributes
        if unknown:
            raise TeacherError(
                f'{self.source}: ONNX node "{name}" ({proto.op_type}) has attributes that are not '
                f"understood: {', '.join(sorted(unknown))}"
            )
        if proto.op_type == "Split":
            attributes["outputs"] = len(proto.output)
        if proto.op_type == "Reshape" and self.batch is not None:
            attributes["batch"] = self.batch
        return Node(proto.op_type, name, attributes, self.opset)

    def _free_name(self, proto: NodeProto) -> str:
        stem = re.sub(r"\W+", "_", proto.name or proto.output[0]).strip("_") or proto.op_type
        stem = stem if stem[0].isalpha() else f"{proto.op_type}_{stem}"
        name, number = stem, 1
        while name in self.layers or hasattr(nn.ModuleDict, name):
            number += 1
            name = f"{stem}_{number}"
        return name


def _as_float32(values: Array) -> Array:
    # Half floats and the like save space in files; everything here runs in float32.
    return values.astype(np.float32) if values.dtype.kind not in "biuUSO" else np.array(values)


def _find_logits(model: onnx.ModelProto, source: str, output: str | None) -> tuple[str, str]:
    """Return the name of the logits, before a softmax, and a note if one was left out."""
    names = [value.name for value in model.graph.output]
    makers = {name: node for node in model.graph.node for name in node.output}
    if output is None and len(names) != 1:
        raise TeacherError(
            f"{source}: {len(names)} outputs ({', '.join(names)}): name the logits with the option "
            '"output"'
        )
    name = names[0] if output is None else output
    if name not in makers:
        raise TeacherError(
            f'{source}: no tensor "{name}" to take as logits; outputs: {", ".join(names)}'
        )
    while (node := makers.get(name)) is not None and node.op_type == "Identity":
        name = node.input[0]
    if node is not None and node.op_type in ("Softmax", "LogSoftmax"):
        return node.input[
            0
        ], f"the {node.op_type} at the end was left out: logits are taken before it"
    return name, ""


def _needed(model: onnx.ModelProto, output: str) -> list[NodeProto]:
    """Return the nodes that the output depends on, in order."""
    wanted, kept = {output}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(name for name in node.input if name)
    return kept[::-1]


def _check_operators(nodes: Sequence[NodeProto], constants: Iterable[str], source: str) -> None:
    """Refuse operators that work on data and are not in the table; all are told together."""
    constant = set(constants)
    unknown: dict[str, None] = {}
    for node in nodes:
        if node.domain in ("", "ai.onnx"):
            if all(name in constant for name in node.input if name):
                constant.update(node.output)
                continue
            if node.op_type in OPS:
                continue
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
        unknown[f'{domain}{node.op_type} (node "{node.name or node.output[0]}")'] = None
    if unknown:
        raise TeacherError(
            f"{source}: operators without a counterpart here: {', '.join(list(unknown)[:8])}; "
            "export the model "
            "in eval mode from plain layers, or hand over its weights with a Python factory"
        )


def _with_last_uses(plan: Sequence[Step], output: str) -> list[Step]:
    """Return the plan with the values that each step is the last to read."""
    seen = {output}
    steps = []
    for step in reversed(plan):
        names = dict.fromkeys([*step.outputs, *(name for name in step.inputs if name)])
        last = tuple(name for name in names if name and name not in seen)
        seen.update(last)
        steps.append(Step(step.layer, step.inputs, step.outputs, last))
    return steps[::-1]


def _settle_batch(network: OnnxNetwork) -> None:
    """Find out whether a graph exported for one batch size can take another."""
    if network.batch is None:
        return
    size, graph = network.batch.exported, network.input
    generator = torch.Generator().manual_seed(0)
    shape = (graph.channels or 3, graph.height or TRIAL_SIDE_PX, graph.width or TRIAL_SIDE_PX)
    images = torch.randn((2 * size + 1, *shape), generator=generator)
    with torch.no_grad():
        pieces = network._in_pieces(images)
        try:
            together = network._run(images)
        except (TeacherError, RuntimeError):
            together = pieces[:0]
    scale = float(pieces.abs().max()) if pieces.numel() else 1.0
    same = together.shape == pieces.shape and float((together - pieces).abs().max()) <= (
        ONE_BY_ONE_TOLERANCE * max(scale, 1e-12)
    )
    network.one_by_one = not same
    if not same:
        reason = (
            f"the graph is fixed to batches of {size}, so images run in pieces of that size (slow)"
        )
        network.note = "; ".join(part for part in (network.note, reason) if part)
