"""The target protocol: what a runtime must offer to be a target, on one page.

A target is a runtime (ONNX Runtime, OpenVINO, TensorRT) with a device profile and a precision.
Its `Builder` turns the exported graph into an `Artifact` on the host; its `Runner` executes the
artifact on the device. Both look alike for every runtime: same file names, same verbs.

Nothing here imports a runtime, torch or onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

    from hydistill_edge.targets.profiles import DeviceProfile

TargetName = Literal["onnxruntime", "openvino", "tensorrt"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

Images = NDArray[np.uint8]
"""Raw pixels, shape (N, H, W, C), C = 1 (grey) or 3 (RGB)."""

Logits = NDArray[np.float32]
"""Scores before softmax, shape (N, classes)."""

ActivationReader = Callable[
    [Path, Sequence[str], Images], Iterator[Mapping[str, NDArray[np.float32]]]
]
"""`read(model, tensor_names, images)` runs a float ONNX file over the images, batch by batch, and
yields the named tensors of each batch. The host hands one in, so that range estimation knows no
runtime."""

RangeEstimator = Callable[[Path, Sequence[str]], Mapping[str, tuple[float, float]]]
"""`estimate(model, tensor_names)` returns (low, high) of tensors of a float ONNX file. The host
binds reader, images and method: a builder, which alone knows the tensors, asks for their ranges."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a target can be built or run on this machine, and if not, why and the remedy."""

    target: TargetName
    can_build: bool
    can_run: bool
    why: str = ""
    remedy: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Graph:
    """The one ONNX export of a student: uint8 pixels (N, H, W, C) in, float32 logits out.

    `targets/graph.py` writes and re-reads it; every builder starts from it.
    """

    path: Path
    sha256: str
    batch: int | None  # None: dynamic
    height: int
    width: int
    channels: int
    classes: tuple[str, ...]
    opset: int
    ir_version: int
    resize: str  # name of the resize rule, as in images/resize.py
    input_name: str = "image"
    output_name: str = "logits"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How an int8 artifact is quantized, and why (chosen by `calibration/scheme.py`)."""

    name: str  # e.g. "u8s8-per-channel"
    quantizer: Literal["onnxruntime", "nncf", "qdq"]
    activation_type: Literal["uint8", "int8"]
    weight_type: Literal["int8"]
    symmetric_activations: bool
    per_channel: bool
    reduce_range: bool
    range_estimator: str  # "minmax", "percentile", "entropy" or "mse"
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The images that int8 ranges are taken from, chosen from the TransferSet.

    Attributes:
        images: shape (N, H, W, C) uint8, at the graph's input size.
        ids: one source id per image.
        digest: sha256 over the pixels in order.
        scheme: how to quantize.
        estimate: returns the ranges of named tensors over these images; only quantizers that take
            ranges from us (TensorRT's) call it.
    """

    images: Images
    ids: tuple[str, ...]
    digest: str
    scheme: Scheme
    estimate: RangeEstimator | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file (or a file with companions) that one runtime executes on one device profile.

    Attributes:
        files: every file of the artifact, the first being the one a runner opens.
        note: what the reader of a number must know, e.g. that parity was simulated.
    """

    target: TargetName
    device: str
    precision: Precision
    files: tuple[Path, ...]
    scheme: Scheme | None = None
    note: str = ""

    @property
    def file(self) -> Path:
        """The file that a runner opens."""
        return self.files[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(path.stat().st_size for path in self.files)


class Builder(Protocol):
    """The host side of a target."""

    target: TargetName

    def check(self) -> Availability:
        """Say whether this machine can build and run the target."""
        ...

    def build(
        self,
        graph: Graph,
        precision: Precision,
        device: DeviceProfile,
        calibration: Calibration | None,
        out: Path,
    ) -> Artifact:
        """Write the artifact's files into the existing folder `out`.

        Args:
            graph: the exported student.
            precision: what the artifact computes in.
            device: what it is built for.
            calibration: needed for int8, ignored otherwise.
            out: where the files go.

        Raises:
            TargetUnavailableError: the runtime is not installed here.
            InputError: int8 without calibration, or a precision that the device does not allow.
        """
        ...


class Runner(Protocol):
    """The device side of a target: a context manager around one loaded artifact."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(self, images: Images) -> Logits:
        """Return the logits of raw pixels of the model's own size; nothing else happens here."""
        ...
