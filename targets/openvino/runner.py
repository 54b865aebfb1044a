"""OpenVINO on the device: one infer request on the CPU, raw pixels in, logits out."""

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
from hydistill_edge.targets.openvino.libraries import load_openvino
from hydistill_edge.targets.pixel_check import check_pixels

if TYPE_CHECKING:
    from typing_extensions import Self

INPUT, OUTPUT = "image", "logits"

# Where OpenVINO keeps the metadata of an ONNX file, in memory and in its own format.
PRECISION_PATH = ("framework", "hydistill.precision")


class OpenVinoRunner:
    """One IR (or exported ONNX graph), compiled for the CPU with its precision pinned.

    Attributes:
        batch: images per inference; None where any number goes.
        input_shape: (height, width, channels) of an image.
        precision: as recorded in the file.
        computed_in: the float type that OpenVINO computes in: "f32", "bf16" or "f16".
    """

    def __init__(self, file: Path, *, threads: int = 1, precision: Precision | None = None) -> None:
        """Load and compile the file.

        Args:
            file: `model.xml` with its `model.bin` beside it, or an exported graph (fp32).
            threads: of one inference, at least 1.
            precision: what the caller expects; None takes what the file says.

        Raises:
            TargetUnavailableError: openvino is not installed, or this CPU lacks the precision.
            MissingFileError: there is no such file.
            GraphError: the file is not a model of ours, or another precision than expected.
        """
        if threads < 1:
            raise UsageError(f"threads is {threads}; expected at least 1")
        for part in [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]:
            if not part.is_file():
                raise MissingFileError(f"model {part} does not exist; build the artifact first")
        ov = load_openvino()
        core = ov.Core()
        model = _read(ov, core, file)
        batch, *shape = _signature(model, file)
        self.batch: int | None = batch
        self.input_shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self.precision = _precision(model, file, precision)
        self.computed_in = _float_type(core, self.precision)
        self._threads = threads
        self._version = str(ov.__version__)
        compiled = _compile(core, model, file, threads, self.computed_in)
        self._request: Any = compiled.create_infer_request()
        if batch is not None:
            # Views of the request's own memory: no tensor is made per inference.
            self._pixels = self._request.get_input_tensor().data
            self._logits = self._request.get_output_tensor().data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._request = None

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
        if self._request is None:
            raise UsageError("the runner is closed; open a new one")
        if self.batch is None:
            logits: Logits = self._request.infer(images)[0]
            return logits
        if len(images) == self.batch:
            return self._infer(images)
        return run_in_batches(self._infer, images, self.batch)

    def conditions(self) -> Mapping[str, Any]:
        """Return what a number measured here depends on, as plain values."""
        return {
            "runtime": "openvino",
            "version": self._version,
            "device": "CPU",
            "precision": self.precision,
            "computed_in": self.computed_in,
            "threads": self._threads,
            "batch": self.batch,
            "streams": 1,
            "performance_hint": "LATENCY",
        }

    def _infer(self, images: Images) -> Logits:
        self._pixels[...] = images
        self._request.infer(share_outputs=True)
        logits: Logits = self._logits.copy()
        return logits


def _read(ov: Any, core: Any, file: Path) -> Any:
    try:
        return core.read_model(file)
    except Exception as error:  # OpenVINO's errors share no base class but Exception
        raise GraphError(
            f"OpenVINO {ov.__version__} cannot read {file}: {_short(error)}; build the artifact "
            "again, for this device's profile"
        ) from error


def _compile(core: Any, model: Any, file: Path, threads: int, float_type: str) -> Any:
    settings = {
        # Named always: on a CPU with bfloat16, OpenVINO would take that for float32 by itself.
        "INFERENCE_PRECISION_HINT": float_type,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    try:
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise GraphError(f"OpenVINO cannot compile {file}: {_short(error)}") from error
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if taken != float_type:
        raise TargetUnavailableError(
            f"OpenVINO computes {file} in {taken} on this CPU where {float_type} was asked for; "
            "use an artifact of another precision here"
        )
    return compiled


def _float_type(core: Any, precision: Precision) -> str:
    """Return the type to pin.

    Raises:
        TargetUnavailableError: bf16 on a CPU without it.
    """
    can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16":
        if "BF16" not in can:
            raise TargetUnavailableError(
                f"this CPU has no bfloat16 for OpenVINO (it has {', '.join(can)}); use an fp32 or "
                "int8 artifact here"
            )
        return "bf16"
    return "f16" if precision == "fp16" and "FP16" in can else "f32"


def _signature(model: Any, file: Path) -> tuple[int | None, int, int, int]:
    inputs = [
        (p.get_any_name(), p.element_type.get_type_name(), p.partial_shape)
        for p in model.inputs
        if p.get_names()
    ]
    outputs = [(p.get_any_name(), p.element_type.get_type_name()) for p in model.outputs]
    good = (
        len(inputs) == 1
        and inputs[0][:2] == (INPUT, "u8")
        and len(inputs[0][2]) == 4
        and all(dim.is_static for dim in list(inputs[0][2])[1:])
        and outputs == [(OUTPUT, "f32")]
    )
    if not good:
        shown = [(name, kind, str(shape)) for name, kind, shape in inputs]
        raise GraphError(
            f"{file} maps {shown} to {outputs}; expected {INPUT}: u8 (N, H, W, C) to {OUTPUT}: "
            "f32: is it an artifact of hydistill-edge?"
        )
    batch, *shape = list(inputs[0][2])
    height, width, channels = (int(dim.get_length()) for dim in shape)
    return (int(batch.get_length()) if batch.is_static else None), height, width, channels


def _precision(model: Any, file: Path, expected: Precision | None) -> Precision:
    path = list(PRECISION_PATH)
    found = model.get_rt_info(path).astype(str) if model.has_rt_info(path) else ""
    known: tuple[Precision, ...] = get_args(Precision)
    for name in known:
        if name == found and expected in (None, name):
            return name
    raise GraphError(
        f'{file} says precision "{found}"; expected {expected or "one of " + ", ".join(known)}: '
        "open it as what it was built as"
    )


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
