"""The one ONNX export of a student: raw pixels in, logits out, re-read and checked.

Every builder starts from this file, so it holds what all of them need and nothing that varies:
one file without external data, one opset domain, a fixed batch, classes and input size in its
metadata, and the same bytes for the same student. The input normalisation stands in front of the
network as four nodes of our own, `Cast -> Transpose -> Sub 128 -> Mul 1/64`, so that an int8
builder can put its own integers there (`split_input`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from hydistill_edge import __version__
from hydistill_edge.errors import GraphError, MissingFileError
from hydistill_edge.targets.base import Graph

if TYPE_CHECKING:
    from torch import nn

    from hydistill_edge.targets.profiles import DeviceProfile

_Item = TypeVar("_Item")

OPSET = 18
"""What torch's exporter writes natively; every other number is a conversion that may fail."""

IMAGE, NORMALIZED, LOGITS = "image", "normalized", "logits"
PIXEL_ZERO_POINT, PIXEL_SCALE = 128, 1 / 64
"""The student sees `(pixel - 128) / 64`: uint8 pixels are then a quantized tensor already."""

CLASSES_KEY, SIZE_KEY, RESIZE_KEY, VERSION_KEY, PRECISION_KEY = (
    f"hydistill.{word}" for word in ("classes", "input_size", "resize", "version", "precision")
)

FLOAT16_MAX = float(np.finfo(np.float16).max)


class Exportable(Protocol):
    """What of a student the export needs; `models.student.Student` has it."""

    @property
    def network(self) -> nn.Module:
        """Maps `(pixel - 128) / 64`, shape (N, C, H, W), to logits, shape (N, classes)."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Class names in the order of the logits."""
        ...

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...


def export_student(
    student: Exportable,
    out: Path,
    *,
    batch: int | None = 1,
    opset: int | None = None,
    resize: str,
) -> Graph:
    """Write the student as one ONNX file and return what was read back from it.

    The student itself is not touched: a copy goes to the CPU, to float32 and to eval mode. A
    student that keeps an explicit normalisation inside its network exports those operations too.

    Args:
        student: a `models.student.Student`, or anything with its four attributes.
        out: the file to write; its folder exists.
        batch: images per run; None makes it dynamic, which costs speed in every runtime.
        opset: ONNX opset; None takes `OPSET`.
        resize: name of the rule by which images are brought to the input size.

    Raises:
        GraphError: torch cannot export the network, or delivered something else than asked for.
    """
    wanted = OPSET if opset is None else opset
    if wanted < OPSET:
        raise GraphError(
            f"opset {wanted} was asked for, and torch's exporter writes opset {OPSET} and newer; "
            f"use opset {OPSET}, or a device whose runtime reads it"
        )
    if batch is not None and batch < 1:
        raise GraphError(f"batch is {batch}; expected at least 1, or None for a dynamic batch")
    model = _tidy(_export_network(student, batch=batch, opset=wanted))
    _prepend_pixels(model)
    classes = json.dumps(list(student.classes), ensure_ascii=False)
    height, width = student.size
    helper.set_model_props(
        model,
        {
            CLASSES_KEY: classes,
            SIZE_KEY: f"{height}x{width}x{student.channels}",
            RESIZE_KEY: resize,
            VERSION_KEY: __version__,
            PRECISION_KEY: "fp32",
        },
    )
    save_model(model, out)
    graph = read_graph(out)
    if (graph.opset, graph.batch) != (wanted, batch):
        raise GraphError(
            f"torch exported opset {graph.opset} and batch {graph.batch} where opset {wanted} and "
            f"batch {batch} were asked for; ask for what it can write"
        )
    return graph


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
        raise GraphError(f"{path} is not valid ONNX: {_first_line(error)}") from error
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


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write one file without external data; equal models give equal bytes.

    Unused opset domains are stripped: device runtimes refuse files that name domains they lack.
    """
    used = {node.domain for node in _nodes(model.graph)} | {""}
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


def split_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network alone: float32 `normalized`, shape (N, C, H, W), to logits.

    Raises:
        GraphError: the four nodes of the pixel input are not there.
    """
    core = copy.deepcopy(model)
    head = [node.op_type for node in core.graph.node[:4]]
    if head != ["Cast", "Transpose", "Sub", "Mul"] or core.graph.node[3].output[0] != NORMALIZED:
        raise GraphError(
            f"the graph begins with {' -> '.join(head)}; expected Cast -> Transpose -> Sub -> Mul "
            f'that make "{NORMALIZED}" from pixels, as hydistill-edge exports them'
        )
    prefix = list(core.graph.node[:4])
    del core.graph.node[:4]
    constants = {name for node in prefix for name in node.input} - {IMAGE}
    _keep(core.graph.initializer, lambda tensor: tensor.name not in constants)
    made = {name for node in prefix for name in node.output}
    _keep(core.graph.value_info, lambda value: value.name not in made)
    batch, height, width, channels = core.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value or dim.dim_param for dim in (batch, channels, height, width)]
    del core.graph.input[:]
    core.graph.input.append(helper.make_tensor_value_info(NORMALIZED, TensorProto.FLOAT, shape))
    return core


def image_value(core: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the uint8 (N, H, W, C) input that belongs to a network from `split_input`."""
    batch, channels, height, width = core.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value or dim.dim_param for dim in (batch, height, width, channels)]
    return helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, shape)


def to_float16(graph: Graph) -> onnx.ModelProto:
    """Return the graph with float16 weights and arithmetic; input and output types stay.

    Pixels are exact in float16: `(pixel - 128) / 64` has eight significant bits.

    Raises:
        GraphError: a weight exceeds float16, or an operator takes float32 only.
    """
    model = load_model(graph)
    keep = {node.input[2] for node in model.graph.node if node.op_type == "Resize"}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in keep:
            tensor.CopyFrom(_half(tensor))
    for node in model.graph.node:
        for attribute in node.attribute:
            if (attribute.name, attribute.i) == ("to", TensorProto.FLOAT):
                attribute.i = TensorProto.FLOAT16
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half(attribute.t))
    half_logits = f"{LOGITS}_float16"
    for node in model.graph.node:
        _rename(node.input, LOGITS, half_logits)
        _rename(node.output, LOGITS, half_logits)
    last = helper.make_node("Cast", [half_logits], [LOGITS], name=LOGITS, to=TensorProto.FLOAT)
    model.graph.node.append(last)
    del model.graph.value_info[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"{graph.path} has no float16 form: {_first_line(error)}") from error
    set_precision(model, "fp16")
    return model


def set_precision(model: onnx.ModelProto, precision: str) -> None:
    """Record the precision in the metadata, where runners read it."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**properties, PRECISION_KEY: precision})


def _export_network(student: Exportable, *, batch: int | None, opset: int) -> onnx.ModelProto:
    import torch

    # Contiguous weights: with channels-last ones the exporter writes stride arithmetic as nodes.
    network = copy.deepcopy(student.network).cpu().float().eval()
    network = network.to(memory_format=torch.contiguous_format)
    # A dynamic axis needs an example of at least 2: torch takes 0 and 1 for constants.
    example = torch.zeros(2 if batch is None else batch, student.channels, *student.size)
    dynamic = ({0: torch.export.Dim("batch")},) if batch is None else None
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[NORMALIZED],
                output_names=[LOGITS],
                dynamic_shapes=dynamic,
            )
    except Exception as error:  # the exporter raises many kinds, all of them about the network
        raise GraphError(
            f"torch cannot export the student's network: {_first_line(error)}; use operations that "
            "torch.onnx knows, and no Python control flow that depends on pixel values"
        ) from error
    if program is None:
        raise GraphError("torch.onnx.export returned nothing for the student's network")
    model: onnx.ModelProto = program.model_proto
    return model


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what varies (paths, stack traces, node documentation) and what nobody reads."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    graph.name, graph.doc_string, model.doc_string = "student", "", ""
    model.producer_name, model.producer_version = "hydistill-edge", __version__
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    model = onnx.shape_inference.infer_shapes(model)
    _pool_globally(model.graph)
    _drop_unused(model.graph)
    return onnx.shape_inference.infer_shapes(model)


def _pool_globally(graph: onnx.GraphProto) -> None:
    """Turn the mean over height and width into the operator that quantizers know.

    torch writes `adaptive_avg_pool2d(1)` as ReduceMean, which stays in float between int8 layers:
    in a MobileNetV3 of 96 pixels that cost 7 % of the int8 latency in ONNX Runtime 1.31.
    """
    axes = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == 7}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    for node in list(graph.node):
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in axes:
            continue
        spatial = sorted(int(axis) % 4 for axis in np.ravel(axes[node.input[1]])) == [2, 3]
        if not spatial or ranks.get(node.input[0]) != 4:
            continue
        flat = any(a.name == "keepdims" and a.i == 0 for a in node.attribute)
        pooled = f"{node.output[0]}_pooled" if flat else node.output[0]
        pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)
        if flat:
            after = helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{pooled}_flat")
            graph.node.insert(list(graph.node).index(node) + 1, after)
        node.CopyFrom(pool)


def _drop_unused(graph: onnx.GraphProto) -> None:
    read = {name for node in _nodes(graph) for name in node.input}
    _keep(graph.initializer, lambda tensor: tensor.name in read)
    made = {name for node in graph.node for name in node.output}
    _keep(graph.value_info, lambda value: value.name in made)


def _prepend_pixels(model: onnx.ModelProto) -> None:
    """Put `(pixel - 128) / 64` of uint8 (N, H, W, C) in front of the network."""
    graph = model.graph
    image = image_value(model)
    zero, scale = f"{IMAGE}_zero_point", f"{IMAGE}_scale"
    nodes = [
        helper.make_node("Cast", [IMAGE], [f"{IMAGE}_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [f"{IMAGE}_float"], [f"{IMAGE}_nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", [f"{IMAGE}_nchw", zero], [f"{IMAGE}_centered"]),
        helper.make_node("Mul", [f"{IMAGE}_centered", scale], [NORMALIZED]),
    ]
    for node in nodes:
        node.name = node.output[0]
    constants = [
        numpy_helper.from_array(np.float32(PIXEL_ZERO_POINT), zero),
        numpy_helper.from_array(np.float32(PIXEL_SCALE), scale),
    ]
    rest = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *rest])
    graph.input.append(image)
    graph.initializer.extend(constants)


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
        node.domain for node in _nodes(model.graph)
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


def _half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    # ReLU6 and its kin may carry the largest float as "no limit"; infinity means the same.
    limit = math.inf if values.ndim == 0 and largest == np.finfo(np.float32).max else FLOAT16_MAX
    if largest > limit:
        raise GraphError(
            f'weight "{tensor.name}" reaches {largest:g}, beyond float16 ({FLOAT16_MAX:g}); use '
            "fp32, bf16 or int8 for this student"
        )
    with np.errstate(over="ignore"):
        return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


def _keep(items: MutableSequence[_Item], wanted: Callable[[_Item], bool]) -> None:
    kept = [copy.deepcopy(item) for item in items if wanted(item)]
    del items[:]
    items.extend(kept)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
