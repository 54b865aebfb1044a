"""Named tensors of a float graph, read out with ONNX Runtime: what range estimation needs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import GraphError, TargetUnavailableError
from hydistill_edge.targets.base import ActivationReader, Images
from hydistill_edge.targets.pixel_check import check_pixels

DYNAMIC_BATCH = 16
"""Images per inference where the graph leaves it open: bounds the activations held at once."""


def make_activation_reader(*, threads: int = 1) -> ActivationReader:
    """Return a reader that runs a float ONNX file and yields named tensors, batch by batch.

    Args:
        threads: of one inference.

    Returns:
        `read(model, tensor_names, images)`; each yielded mapping holds, by name, the tensors of
        one batch of the graph's own size. Float16 tensors come as float32.

    Raises:
        TargetUnavailableError: onnxruntime is not installed.
        GraphError: (when read) the file is not a graph, or lacks a tensor.
        ShapeError: (when read) the images are not the graph's.
    """
    try:
        import onnxruntime  # noqa: F401  (asked for now, not in the middle of a calibration)
    except ImportError as error:
        raise TargetUnavailableError(
            'activations are read with "onnxruntime", which is not installed; run pip install '
            '"hydistill-edge[build]"'
        ) from error

    def read(
        model: Path, names: Sequence[str], images: Images
    ) -> Iterator[Mapping[str, NDArray[np.float32]]]:
        return _read(model, list(dict.fromkeys(names)), images, threads)

    return read


def _read(
    path: Path, names: list[str], images: Images, threads: int
) -> Iterator[Mapping[str, NDArray[np.float32]]]:
    import onnx
    import onnxruntime

    from hydistill_edge.targets.graph_file import IMAGE, parse_model

    model = parse_model(path)
    made = {name for node in model.graph.node for name in node.output if name}
    for name in names:
        if name not in made:
            close = difflib.get_close_matches(name, sorted(made), n=1)
            hint = f'; the closest is "{close[0]}"' if close else ""
            raise GraphError(f'{path} makes no tensor "{name}" ({len(made)} others){hint}')
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Named tensors come as the graph writes them: fusions would compute them in another order.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    batch, *shape = session.get_inputs()[0].shape
    check_pixels(images, tuple(shape))
    step = batch if isinstance(batch, int) else DYNAMIC_BATCH
    for start in range(0, len(images), step):
        part = images[start : start + step]
        missing = step - len(part) if isinstance(batch, int) else 0
        if missing:
            part = np.concatenate([part, part[-1:].repeat(missing, axis=0)])
        values = session.run(names, {IMAGE: part})
        yield {
            name: np.asarray(value[: step - missing], dtype=np.float32)
            for name, value in zip(names, values, strict=True)
        }
