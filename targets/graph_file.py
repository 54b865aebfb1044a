"""The exported graph as a file: written alike, read back with every check, nothing executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hydistill_edge.errors import GraphError, MissingFileError
from hydistill_edge.targets.base import Graph

if TYPE_CHECKING:
    from hydistill_edge.targets.profiles import DeviceProfile

IMAGE, LOGITS = "image", "logits"

CLASSES_KEY, SIZE_KEY, RESIZE_KEY, VERSION_KEY, PRECISION_KEY = (
    f"hydistill.{word}" for word in ("classes", "input_size", "resize", "version", "precision")
)


def read_graph(path: Path) -> Graph:
    """Read an exported graph and check everything that builders rely on; nothing is executed.

    Raises:
        MissingFileError: there is no such file.
        GraphError: the file is not ONNX, refers to other files, or breaks the export contract.
    """
    data = _read_bytes(path)
    model = _parse(data, path)
    _refuse_foreign_parts(model, path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"{path} is not valid ONNX: {first_line(error)}") from error
    batch, height, width, channels = _check_input(model, path)
    classes, resize = _check_metadata(model, path, size=(height, width, channels))
    _check_output(model, path, batch=batch, classes=len(classes))
    _check_weights(model, path)
    return Graph(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        classes=classes,
        opset=next(entry.version for entry in model.opset_import if entry.domain == ""),
        ir_version=model.ir_version,
        resize=resize,
        input_name=IMAGE,
        output_name=LOGITS,
    )


def load_model(graph: Graph) -> onnx.ModelProto:
    """Return the graph's ONNX model.

    Raises:
        GraphError: the file has changed since it was read.
    """
    data = _read_bytes(graph.path)
    if hashlib.sha256(data).hexdigest() != graph.sha256:
        raise GraphError(
            f"{graph.path} has changed since it was checked (sha256 is no longer "
            f"{graph.sha256[:12]}...); export the student again"
        )
    return _parse(data, graph.path)


def parse_model(path: Path) -> onnx.ModelProto:
    """Return a self-contained ONNX model that need not keep the whole export contract.

    Raises:
        MissingFileError: there is no such file.
        GraphError: the file is not ONNX, or refers to other files.
    """
    model = _parse(_read_bytes(path), path)
    _refuse_foreign_parts(model, path)
    return model


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write one file without external data; equal models give equal bytes.

    Unused opset domains are stripped: device runtimes refuse files that name domains they lack.
    """
    used = {node.domain for node in all_nodes(model.graph)} | {""}
    kept = sorted(
        (entry for entry in model.opset_import if entry.domain in used),
        key=lambda entry: entry.domain,
    )
    imports = [helper.make_opsetid(entry.domain, entry.version) for entry in kept]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    properties = dict(sorted((entry.key, entry.value) for entry in model.metadata_props))
    helper.set_model_props(model, properties)
    path.write_bytes(model.SerializeToString(deterministic=True))


def check_device(graph: Graph, device: DeviceProfile) -> None:
    """Check that the device's runtimes can read the graph and run it at its batch.

    Raises:
        GraphError: opset, IR version or batch is not the device's.
    """
    for what, value, limit in (
        ("opset", graph.opset, device.max_opset),
        ("IR version", graph.ir_version, device.max_ir),
    ):
        if value > limit:
            raise GraphError(
                f'{graph.path} has ONNX {what} {value}, and device "{device.name}" reads up to '
                f"{limit}; update the device's runtime, or choose another device profile"
            )
    if graph.batch not in (None, device.batch):
        raise GraphError(
            f'{graph.path} is exported at batch {graph.batch}, and device "{device.name}" runs '
            f"batch {device.batch}; export the student at that batch"
        )


def set_precision(model: onnx.ModelProto, precision: str) -> None:
    """Record the precision in the metadata, where runners read it."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**properties, PRECISION_KEY: precision})


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from all_nodes(inner)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message: the rest is its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"graph {path} does not exist; export the student first") from error
    except OSError as error:
        raise GraphError(f"graph {path} cannot be read: {error.strerror}") from error


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's error class is not part of onnx's interface
        raise GraphError(f"{path} is not an ONNX file ({len(data)} bytes of something)") from error
    if not model.graph.node:
        raise GraphError(f"{path} holds no ONNX graph ({len(data)} bytes)")
    return model


def _refuse_foreign_parts(model: onnx.ModelProto, path: Path) -> None:
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            where = {entry.key: entry.value for entry in tensor.external_data}.get("location", "?")
            raise GraphError(
                f'{path} keeps weight "{tensor.name}" in another file ({where!r}), which no digest '
                "of this file covers; export it as a single file"
            )
    if model.functions or model.training_info:
        raise GraphError(f"{path} holds local functions or training graphs; export it plainly")
    foreign = {entry.domain for entry in model.opset_import} | {
        node.domain for node in all_nodes(model.graph)
    }
    foreign -= {"", "ai.onnx"}
    if foreign:
        raise GraphError(
            f"{path} uses operator domain {', '.join(sorted(foreign))}; expected standard ONNX "
            "only, which every runtime reads"
        )


def _check_input(model: onnx.ModelProto, path: Path) -> tuple[int | None, int, int, int]:
    inputs = [(value.name, value.type.tensor_type.elem_type) for value in model.graph.input]
    if inputs != [(IMAGE, TensorProto.UINT8)]:
        shown = ", ".join(f"{name}: {_type_name(kind)}" for name, kind in inputs) or "nothing"
        raise GraphError(f"{path} takes {shown}; expected one input, {IMAGE}: UINT8")
    batch, *shape = _shape(model.graph.input[0])
    sizes = [size for size in shape if size]
    if len(shape) != 3 or len(sizes) != 3 or sizes[2] not in (1, 3):
        raise GraphError(
            f"{path} takes images of shape {(batch, *shape)}; expected (batch, height, width, "
            "channels) with 1 or 3 channels, all but the batch fixed"
        )
    return batch, sizes[0], sizes[1], sizes[2]


def _check_output(model: onnx.ModelProto, path: Path, *, batch: int | None, classes: int) -> None:
    outputs = [(value.name, value.type.tensor_type.elem_type) for value in model.graph.output]
    if outputs != [(LOGITS, TensorProto.FLOAT)]:
        shown = ", ".join(f"{name}: {_type_name(kind)}" for name, kind in outputs) or "nothing"
        raise GraphError(f"{path} returns {shown}; expected one output, {LOGITS}: FLOAT")
    shape = _shape(model.graph.output[0])
    if shape != (batch, classes):
        raise GraphError(
            f"{path} returns logits of shape {shape}; expected {(batch, classes)}: the input's "
            f"batch, and one logit for each of the {classes} classes in the metadata"
        )


def _check_metadata(
    model: onnx.ModelProto, path: Path, *, size: tuple[int, int, int]
) -> tuple[tuple[str, ...], str]:
    properties = {entry.key: entry.value for entry in model.metadata_props}
    missing = [k for k in (CLASSES_KEY, SIZE_KEY, RESIZE_KEY, VERSION_KEY) if not properties.get(k)]
    if missing:
        raise GraphError(
            f"{path} lacks metadata {', '.join(missing)}; export it with hydistill-edge, which "
            "writes classes, input size and resize rule into the file"
        )
    expected = "x".join(str(length) for length in size)
    if properties[SIZE_KEY] != expected:
        raise GraphError(
            f"{path} says input size {properties[SIZE_KEY]} in its metadata, and its input is "
            f"{expected}; export it again"
        )
    try:
        classes = json.loads(properties[CLASSES_KEY])
    except ValueError as error:
        raise GraphError(f"{path} has class names that are not JSON: {error}") from error
    names = isinstance(classes, list) and all(isinstance(name, str) and name for name in classes)
    if not names or not classes or len(set(classes)) < len(classes):
        raise GraphError(
            f"{path} has class names {str(classes)[:80]}; expected a list of distinct names"
        )
    return tuple(classes), properties[RESIZE_KEY]


def _check_weights(model: onnx.ModelProto, path: Path) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            if not np.isfinite(values).all():
                raise GraphError(
                    f'{path} has NaN or infinity in weight "{tensor.name}"; train the student '
                    "again, with a lower learning rate"
                )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)) if kind else "something that is no tensor"
