"""TensorRT on the device: one engine on the first GPU, raw pixels in, logits out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from hydistill_edge.errors import GraphError, HydistillError, UsageError
from hydistill_edge.targets.base import Images, Logits, Precision
from hydistill_edge.targets.batching import DYNAMIC_BATCH, run_in_batches
from hydistill_edge.targets.pixel_check import check_pixels
from hydistill_edge.targets.tensorrt.cuda import Gpu
from hydistill_edge.targets.tensorrt.engine import (
    WORKSPACE_MIB,
    Plan,
    import_tensorrt,
    load_engine,
    prepare_plan,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class TensorRTRunner:
    """One engine, loaded on the machine's first GPU.

    Opening builds the engine if no plan of this machine fits, which takes minutes on a small
    device. Copies to and from the GPU are part of `run`.

    Attributes:
        batch: images per inference; None where any number goes.
        input_shape: (height, width, channels) of an image.
        build_s: seconds that building the engine took; None if its plan was kept from before.
        note: what the reader of a number must know, e.g. that the plan cannot be kept.
    """

    def __init__(
        self,
        file: Path,
        *,
        threads: int = 1,
        precision: Precision | None = None,
        workspace_mib: int = WORKSPACE_MIB,
        key_file: Path | None = None,
    ) -> None:
        """Load the file.

        Args:
            file: an artifact of `TensorRTBuilder`.
            threads: at least 1; a GPU does not use it, but all runners are opened alike.
            precision: what the caller expects; the types in the file decide what is computed.
            workspace_mib: scratch memory for building the engine.
            key_file: the key that seals kept plans; None takes the user's state folder.

        Raises:
            TargetUnavailableError: TensorRT or a GPU is missing here.
            MissingFileError: there is no such file.
            GraphError: TensorRT refuses the file, or it is not a model of ours.
        """
        if threads < 1:
            raise UsageError(f"threads is {threads}; expected at least 1")
        self.precision = precision
        self._trt: Any = import_tensorrt()
        self._open = False
        with ExitStack() as stack:
            self._gpu = stack.enter_context(Gpu())
            self._plan: Plan = prepare_plan(
                file, self._gpu, workspace_mib=workspace_mib, key_file=key_file
            )
            self.build_s, self.note = self._plan.build_s, self._plan.note
            stack.callback(self._forget)  # TensorRT frees an object that nobody refers to
            self._runtime, self._engine = load_engine(self._plan)
            self._context: Any = self._engine.create_execution_context()
            if self._context is None:
                raise HydistillError("TensorRT has no memory for an execution context on this GPU")
            self._bind(file)
            self._stack = stack.pop_all()
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        self._stack.close()

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
        if len(images) == self.batch or (self.batch is None and len(images) <= DYNAMIC_BATCH):
            return self._infer(images)
        return run_in_batches(self._infer, images, self.batch)

    def conditions(self) -> Mapping[str, Any]:
        """Return what a number measured here depends on, as plain values."""
        return {
            "runtime": "tensorrt",
            "version": str(self._trt.__version__),
            "gpu": self._gpu.name,
            "compute_capability": self._gpu.compute_capability,
            "driver": self._gpu.driver,
            "precision": self.precision,
            "batch": self.batch,
            "tf32": False,
            "copies": "in run",
        }

    def _infer(self, images: Images) -> Logits:
        if not self._open:
            raise UsageError("the runner is closed; open a new one")
        self._gpu.use()
        if self.batch is None:
            self._context.set_input_shape(self._input, tuple(images.shape))
        pixels, logits = self._pixels[: len(images)], self._logits[: len(images)]
        np.copyto(pixels, images)
        self._gpu.upload(pixels, self._pixels_at, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise HydistillError("TensorRT could not run the engine; see the system's log")
        self._gpu.download(self._logits_at, logits, self._stream)
        self._gpu.wait(self._stream)
        result: Logits = logits.copy()  # the next run overwrites the page-locked memory
        return result

    def _bind(self, file: Path) -> None:
        """Give input and output their memory, once."""
        kinds = (self._trt.TensorIOMode.INPUT, self._trt.TensorIOMode.OUTPUT)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs, outputs = (
            [name for name in names if self._engine.get_tensor_mode(name) == kind] for kind in kinds
        )
        types = [self._engine.get_tensor_dtype(name) for name in (*inputs, *outputs)]
        shapes = [tuple(self._engine.get_tensor_shape(name)) for name in (*inputs, *outputs)]
        wanted = [self._trt.DataType.UINT8, self._trt.DataType.FLOAT]
        if types != wanted or [len(shape) for shape in shapes] != [4, 2]:
            raise GraphError(
                f"{file} maps {inputs} to {outputs} with shapes {shapes}; expected uint8 "
                "(N, H, W, C) to float32 (N, classes): is it an artifact of hydistill-edge?"
            )
        (self._input, output), (batch, *image), classes = (*inputs, *outputs), shapes[0], shapes[1]
        self.batch: int | None = batch if batch > 0 else None
        self.input_shape: tuple[int, int, int] = (image[0], image[1], image[2])
        most = self.batch or DYNAMIC_BATCH
        self._pixels = self._gpu.host_array((most, *image), np.uint8)
        self._logits = self._gpu.host_array((most, classes[1]), np.float32)
        self._pixels_at = self._gpu.allocate(self._pixels.nbytes)
        self._logits_at = self._gpu.allocate(self._logits.nbytes)
        for name, address in ((self._input, self._pixels_at), (output, self._logits_at)):
            self._context.set_tensor_address(name, address)
        self._stream = self._gpu.stream()

    def _forget(self) -> None:
        self._context = self._engine = self._runtime = None
