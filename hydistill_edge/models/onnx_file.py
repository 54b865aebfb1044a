"""Reading a foreign ONNX file: nothing outside its folder, one float image input, one output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
from onnx import GraphProto, ModelProto, TensorProto
from onnx.inliner import inline_local_functions

from hydistill_edge.errors import MissingFileError, TeacherError

MIN_OPSET = 9


@dataclass(frozen=True)
class OnnxInput:
    """The image input of a graph, float (N, C, H, W).

    Attributes:
        name: of the input.
        batch: fixed batch size, None if free.
        channels: fixed channels, None if free.
        height: fixed height in pixels, None if free.
        width: fixed width in pixels, None if free.
    """

    name: str
    batch: int | None
    channels: int | None
    height: int | None
    width: int | None


def read_model(path: Path) -> ModelProto:
    """Return a checked model with all its weights inside.

    Raises:
        MissingFileError: the file, or one it keeps weights in, does not exist.
        TeacherError: no ONNX model, an old opset, or weights stored outside the file's folder.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; expected an ONNX model")
    if path.is_dir():
        raise TeacherError(f"{path}: a folder; name the .onnx file inside it")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own, which has no types
        raise TeacherError(
            f"{path}: not an ONNX model, or a damaged one ({error}); export it again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise TeacherError(f"{path}: not an ONNX model, or an empty one; export it again")
    check_external_data(model, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
        if model.functions:
            model = inline_local_functions(model)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise TeacherError(f"{path}: a damaged ONNX model ({first}); export it again") from error
    opset = opset_of(model)
    if opset < MIN_OPSET:
        raise TeacherError(
            f"{path}: opset {opset}, and {MIN_OPSET} is the oldest that is read; "
            "export again, or raise it with onnx.version_converter"
        )
    return model


def check_external_data(model: ModelProto, path: Path) -> None:
    """Refuse weights stored elsewhere than in plain files beside the model, before reading any.

    Raises:
        TeacherError: a location that is absolute, climbs out, or goes through a link.
        MissingFileError: a file that does not exist.
    """
    folder = path.parent.resolve()
    for tensor, location in _external(model):
        parts = PurePosixPath(location).parts
        plain = (
            bool(parts)
            and not location.startswith("/")
            and "\\" not in location
            and ":" not in location
        )
        inside = plain and ".." not in parts
        steps = (
            [folder.joinpath(*parts[: index + 1]) for index in range(len(parts))] if inside else []
        )
        target = steps[-1] if steps else folder
        if (
            not inside
            or any(step.is_symlink() for step in steps)
            or not target.resolve().is_relative_to(folder)
        ):
            raise TeacherError(
                f'{path}: keeps the weights of "{tensor.name}" in "{location}", which leads '
                "outside the "
                "model's folder; a model may only read plain files beside it: export it as one "
                "file "
                "(torch.onnx.export(..., external_data=False))"
            )
        if not target.is_file():
            raise MissingFileError(
                f'{path}: keeps the weights of "{tensor.name}" in "{location}", which is missing; '
                "copy it "
                "beside the model, or export as one file (torch.onnx.export(..., "
                "external_data=False))"
            )
        if target.stat().st_nlink > 1:
            raise TeacherError(
                f'{path}: its weight file "{location}" is a hard link, whose other name may lie '
                "outside "
                "the model's folder; replace it by a copy"
            )


def external_files(path: Path) -> list[Path]:
    """Return the files beside a model that it keeps weights in; none where it cannot be read.

    Places outside the model's folder are left out: `read_model` refuses them.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # `read_model` says what is wrong with it
        return []
    places = {PurePosixPath(name) for _, name in _external(model)}
    inside = (place for place in places if not place.is_absolute() and ".." not in place.parts)
    return sorted(path.parent / place for place in inside)


def read_input(model: ModelProto, source: str) -> OnnxInput:
    """Return the graph's image input.

    Raises:
        TeacherError: not exactly one input, not float, or not (N, C, H, W).
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise TeacherError(
            f"{source}: {len(inputs)} inputs ({', '.join(value.name for value in inputs)}): "
            "expected one, the image"
        )
    kind = inputs[0].type.tensor_type
    sides = [side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim]
    if kind.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        raise TeacherError(
            f'{source}: input "{inputs[0].name}" has type '
            f"{TensorProto.DataType.Name(kind.elem_type)}: "
            "expected float images, normalised; export without the step from raw pixels"
        )
    if len(sides) != 4:
        raise TeacherError(
            f"{source}: the input has shape {sides}: expected float images (N, C, H, W)"
        )
    batch, channels, height, width = sides
    if width in (1, 3, 4) and channels not in (1, 3, 4):
        raise TeacherError(
            f"{source}: the input has shape {sides}, with the channels last: expected (N, C, H, "
            "W); "
            "export with the channels first"
        )
    # Some exporters write a free batch as 0 or -1.
    fixed = batch if batch is not None and batch > 0 else None
    return OnnxInput(inputs[0].name, fixed, channels or None, height or None, width or None)


def opset_of(model: ModelProto) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return max(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        default=0,
    )


def _external(model: ModelProto) -> Iterator[tuple[TensorProto, str]]:
    """Yield the tensors stored outside, each with the place that it names."""
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            places = (entry.value for entry in tensor.external_data if entry.key == "location")
            yield tensor, next(places, "")


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _attribute_tensors(node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _attribute_tensors(node)


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_tensors(graph)
