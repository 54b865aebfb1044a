"""ONNX Runtime on the host: the exported graph as it is, or int8 made by its own quantizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hydistill_edge.errors import InputError, TargetUnavailableError
from hydistill_edge.targets.base import (
    Artifact,
    Availability,
    Calibration,
    Graph,
    Precision,
    TargetName,
)
from hydistill_edge.targets.packages import availability, check_precision

if TYPE_CHECKING:
    from hydistill_edge.targets.profiles import DeviceProfile

FILE = "model.onnx"

NOTES: Mapping[Precision, str] = {
    "fp32": "",
    "fp16": "float16 weights; ONNX Runtime computes in float32 what its CPU kernels lack in "
    "float16, which on x86-64 is nearly everything",
    "int8": "",
}


class OnnxRuntimeBuilder:
    """Builds `model.onnx` for ONNX Runtime's CPU provider."""

    target: TargetName = "onnxruntime"

    def check(self) -> Availability:
        """Say whether this machine can build and run the target."""
        return availability("onnxruntime")

    def build(
        self,
        graph: Graph,
        precision: Precision,
        device: DeviceProfile,
        calibration: Calibration | None,
        out: Path,
    ) -> Artifact:
        """Write `model.onnx` into the existing folder `out`.

        fp32 is the exported graph, byte for byte: ONNX Runtime optimises while loading, for the
        processor it finds, and a file optimised here would be tied to this one.

        Args:
            graph: the exported student.
            precision: "fp32", "fp16" or "int8".
            device: the profile; says which precisions and which ONNX the device takes.
            calibration: needed for int8, ignored otherwise.
            out: an existing folder.

        Raises:
            TargetUnavailableError: onnx or onnxruntime is not installed here.
            InputError: int8 without calibration, a precision that the device does not allow, or
                one that ONNX Runtime's CPU provider does not have.
            GraphError: the device's runtime cannot read the graph.
        """
        can = self.check()
        if not can.can_build:
            raise TargetUnavailableError(f"{can.why}; {can.remedy}")
        if precision not in NOTES:
            raise InputError(
                f"ONNX Runtime's CPU provider has no {precision}; expected one of "
                f"{', '.join(NOTES)}"
            )
        check_precision(device, "onnxruntime", precision, calibration)
        from hydistill_edge.targets.graph import check_device, save_model, to_float16

        check_device(graph, device)
        file = out / FILE
        if precision == "int8":
            from hydistill_edge.targets.onnxruntime.quantize import quantize

            assert calibration is not None
            save_model(quantize(graph, calibration), file)
        elif precision == "fp16":
            save_model(to_float16(graph), file)
        else:
            shutil.copyfile(graph.path, file)
        scheme = calibration.scheme if calibration and precision == "int8" else None
        return Artifact(
            target="onnxruntime",
            device=device.name,
            precision=precision,
            files=(file,),
            scheme=scheme,
            note=NOTES[precision],
        )
