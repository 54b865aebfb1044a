"""OpenVINO on the host: the exported graph as IR, in float or quantized by NNCF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hydistill_edge.errors import GraphError, TargetUnavailableError
from hydistill_edge.targets.base import (
    Artifact,
    Availability,
    Calibration,
    Graph,
    Precision,
    TargetName,
)
from hydistill_edge.targets.openvino.libraries import load_openvino
from hydistill_edge.targets.openvino.runner import PRECISION_PATH
from hydistill_edge.targets.packages import availability, check_precision

if TYPE_CHECKING:
    from hydistill_edge.targets.profiles import DeviceProfile

XML, BIN = "model.xml", "model.bin"

NOTES: Mapping[Precision, str] = {
    "fp32": "arithmetic pinned to float32; OpenVINO would take bfloat16 where the CPU has it",
    "fp16": "float16 weights; arithmetic in float16 where the CPU has it, pinned to float32 "
    "elsewhere",
    "bf16": "float32 weights; arithmetic pinned to bfloat16, refused where the CPU lacks it",
    "int8": "what stays in float is pinned to float32",
}


class OpenVinoBuilder:
    """Builds the pair `model.xml` and `model.bin`, with raw pixels as input."""

    target: TargetName = "openvino"

    def check(self) -> Availability:
        """Say whether this machine can build and run the target."""
        return availability("openvino")

    def build(
        self,
        graph: Graph,
        precision: Precision,
        device: DeviceProfile,
        calibration: Calibration | None,
        out: Path,
    ) -> Artifact:
        """Write `model.xml` and `model.bin` into the existing folder `out`.

        The precision stands in the file's runtime information, and the runner pins it. Equal
        inputs give equal bytes with equal versions of OpenVINO and NNCF.

        Args:
            graph: the exported student.
            precision: "fp32", "fp16", "bf16" or "int8".
            device: the profile; says which precisions the device takes.
            calibration: needed for int8, ignored otherwise.
            out: an existing folder.

        Raises:
            TargetUnavailableError: openvino, nncf or onnx is not installed here.
            InputError: int8 without calibration, or a precision that the device does not allow.
            GraphError: OpenVINO cannot read the graph, or it has not the device's batch.
        """
        can = self.check()
        if not can.can_build:
            raise TargetUnavailableError(f"{can.why}; {can.remedy}")
        check_precision(device, "openvino", precision, calibration)
        from hydistill_edge.targets.graph import check_device, load_model
        from hydistill_edge.targets.openvino import quantize

        check_device(graph, device)
        load_model(graph)  # still the file that was checked
        ov = load_openvino()
        try:
            model = ov.convert_model(graph.path)
        except Exception as error:  # OpenVINO's errors share no base class but Exception
            raise GraphError(
                f"OpenVINO {ov.__version__} cannot read {graph.path}: {str(error)[:300]}; use "
                "operations that it knows, or another target"
            ) from error
        scheme = None
        if precision == "int8":
            assert calibration is not None
            scheme = calibration.scheme
            model = quantize.quantize(model, graph, calibration)
        model.set_rt_info(precision, list(PRECISION_PATH))
        quantize.name_alike(model)
        ov.save_model(model, out / XML, compress_to_fp16=precision == "fp16")
        return Artifact(
            target="openvino",
            device=device.name,
            precision=precision,
            files=(out / XML, out / BIN),
            scheme=scheme,
            note=NOTES[precision],
        )
