"""ONNX Runtime on the device: one session, raw pixels in, logits out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

from hydistill_edge.errors import (
    GraphError,
    MissingFileError,
    TargetUnavailableError,
    UsageError,
)
from hydistill_edge.targets.base import Images, Logits, Precision
from hydistill_edge.targets.batching import run_in_batches
from hydistill_edge.targets.pixel_check import check_pixels

if TYPE_CHECKING:
    from typing_extensions import Self

INPUT, OUTPUT = "image", "logits"
PRECISION_KEY = "hydistill.precision"


class OnnxRuntimeRunner:
    """One ONNX file, loaded for the CPU.

    Attributes:
        batch: images per inference; None where any number goes.
        input_shape: (height, width, channels) of an image.
        precision: as recorded in the file.
    """

    def __init__(self, file: Path, *, threads: int = 1, precision: Precision | None = None) -> None:
        """Load the file.

        Args:
            file: an artifact of `OnnxRuntimeBuilder`, or the exported graph itself.
            threads: of one inference, at least 1.
            precision: what the caller expects; None takes what the file says.

        Raises:
            TargetUnavailableError: onnxruntime is not installed.
            MissingFileError: there is no such file.
            GraphError: the file is not a model of ours, or another precision than expected.
        """
        if threads < 1:
            raise UsageError(f"threads is {threads}; expected at least 1")
        if not file.is_file():
            raise MissingFileError(f"model {file} does not exist; build the artifact first")
        self._session: Any = _open_session(file, threads)
        self._threads = threads
        batch, *shape = _signature(self._session, file)
        self.batch: int | None = batch
        self.input_shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self.precision = _precision(self._session, file, precision)
        self._outputs = [OUTPUT]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = None

    def run(self, images: Images) -> Logits:
        """Return the logits of raw pixels.

        Args:
            images: shape (N, H, W, C) uint8; N may differ from the file's batch.

        Returns:
            Shape (N, classes) float32.

        Raises:
            ShapeError: the images are not uint8 of the model's size.
            UsageError: the runner is closed.
        """
        check_pixels(images, self.input_shape)
        if self.batch is None or len(images) == self.batch:
            return self._infer(images)
        return run_in_batches(self._infer, images, self.batch)

    def conditions(self) -> Mapping[str, Any]:
        """Return what a number measured here depends on, as plain values."""
        import onnxruntime

        return {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "providers": self._session.get_providers() if self._session else [],
            "precision": self.precision,
            "threads": self._threads,
            "batch": self.batch,
            "spinning": False,
            "graph_optimization": "all",
        }

    def _infer(self, images: Images) -> Logits:
        if self._session is None:
            raise UsageError("the runner is closed; open a new one")
        logits: Logits = self._session.run(self._outputs, {INPUT: images})[0]
        return logits


def _open_session(file: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise TargetUnavailableError(
            'target "onnxruntime" is not installed; run pip install "hydistill-edge[onnxruntime]"'
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    # Waiting threads would burn the cores that the line's own program needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # An int8 file made for ARM keeps its integers on x86 too: slower there, and the same answers.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    try:
        return onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class but Exception
        first = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise GraphError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {file}: {first}; build the "
            "artifact again, for this device's profile"
        ) from error


def _signature(session: Any, file: Path) -> tuple[int | None, int, int, int]:
    inputs = [(value.name, value.type, value.shape) for value in session.get_inputs()]
    outputs = [(value.name, value.type) for value in session.get_outputs()]
    good = (
        len(inputs) == 1
        and inputs[0][:2] == (INPUT, "tensor(uint8)")
        and len(inputs[0][2]) == 4
        and all(isinstance(size, int) for size in inputs[0][2][1:])
        and outputs == [(OUTPUT, "tensor(float)")]
    )
    if not good:
        raise GraphError(
            f"{file} maps {inputs} to {outputs}; expected {INPUT}: uint8 (N, H, W, C) to "
            f"{OUTPUT}: float: is it an artifact of hydistill-edge?"
        )
    batch, height, width, channels = inputs[0][2]
    return (batch if isinstance(batch, int) else None), height, width, channels


def _precision(session: Any, file: Path, expected: Precision | None) -> Precision:
    found = session.get_modelmeta().custom_metadata_map.get(PRECISION_KEY, "")
    known: tuple[Precision, ...] = get_args(Precision)
    for name in known:
        if name == found and expected in (None, name):
            return name
    raise GraphError(
        f'{file} says precision "{found}"; expected {expected or "one of " + ", ".join(known)}: '
        "open it as what it was built as"
    )
