"""Build the ONNX file that a TensorRT device turns into its own engine.

The host neither has nor needs TensorRT: it writes a strongly typed graph, in which every precision
is explicit, and checks it against the published rules. The engine itself is built on the device
from this (signed) file, because a plan is tied to one GPU and one version of TensorRT.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from hydistill_edge.errors import GraphError, InputError, TargetUnavailableError
from hydistill_edge.targets.base import (
    Artifact,
    Availability,
    Calibration,
    Graph,
    Precision,
    TargetName,
)
from hydistill_edge.targets.packages import check_precision
from hydistill_edge.targets.tensorrt.rules import Violation, check_rules

if TYPE_CHECKING:
    from onnx import ModelProto

    from hydistill_edge.targets.profiles import DeviceProfile

FILE = "model.onnx"
PIXEL_BOUND = 127 / 64  # int8 at scale 1/64 holds every (pixel - 128) / 64 exactly, -2 included
INSTALL = 'pip install "hydistill-edge[build]"'

NOTE = (
    "TensorRT builds its engine from this file on the device. Here ONNX Runtime stood in for it: "
    "parity is simulated, and latency is not measured until the device reports"
)


class TensorRTBuilder:
    """The host side of TensorRT."""

    target: TargetName = "tensorrt"

    def check(self) -> Availability:
        """Say whether this machine can write the graph, and whether it could run an engine."""
        from hydistill_edge.targets.tensorrt.engine import running_here

        can_build = importlib.util.find_spec("onnx") is not None
        running = running_here()
        why = [] if can_build else ["onnx is not installed, which writes the graph"]
        remedy = [] if can_build else [INSTALL]
        if running.why:
            why.append(running.why)
            remedy.append(running.remedy)
        return Availability(
            target=self.target,
            can_build=can_build,
            can_run=not running.why,
            why="; ".join(why),
            remedy="; ".join(remedy),
            versions=running.versions,
        )

    def build(
        self,
        graph: Graph,
        precision: Precision,
        device: DeviceProfile,
        calibration: Calibration | None,
        out: Path,
    ) -> Artifact:
        """Write `model.onnx` for one device into the existing folder `out`.

        Args:
            graph: the exported student.
            precision: "fp32", "fp16" or "int8".
            device: a profile that allows TensorRT.
            calibration: needed for int8, with its `estimate`; ignored otherwise.
            out: an existing folder.

        Raises:
            TargetUnavailableError: onnx is not installed here.
            InputError: int8 without calibration, or a precision that the device does not allow.
            GraphError: the graph uses what TensorRT does not take.
        """
        if importlib.util.find_spec("onnx") is None:
            raise TargetUnavailableError(
                f'target "tensorrt" cannot build here: onnx is not installed; run {INSTALL}'
            )
        check_precision(device, self.target, precision, calibration)
        from hydistill_edge.targets.graph_file import check_device, load_model, save_model
        from hydistill_edge.targets.graph_float16 import to_float16

        check_device(graph, device)
        if precision == "int8":
            model = _int8(graph, calibration)
        elif precision == "fp16":
            model = to_float16(graph)
        else:
            model = load_model(graph)
        path = out / FILE
        save_model(model, path)
        assert device.tensorrt is not None  # the profile's own check: targets and facts go together
        violations = check_rules(path, device.tensorrt.generation)
        _refuse([v for v in violations if v.level == "must"], precision)
        return Artifact(
            target=self.target,
            device=device.name,
            precision=precision,
            files=(path,),
            scheme=calibration.scheme if calibration and precision == "int8" else None,
            note=_note([v for v in violations if v.level == "should"]),
        )


def _int8(graph: Graph, calibration: Calibration | None) -> ModelProto:
    from hydistill_edge.targets.graph_file import load_model, set_precision
    from hydistill_edge.targets.graph_input import NORMALIZED
    from hydistill_edge.targets.tensorrt.graph_view import GraphView
    from hydistill_edge.targets.tensorrt.qdq import Placement, quantize_graph

    if calibration is None or calibration.estimate is None:
        raise InputError(
            "int8 for TensorRT came without range estimation; hand over Calibration(estimate=...), "
            "which returns the ranges of named tensors over the calibration images"
        )
    model = load_model(graph)
    placement = Placement(GraphView(model))
    if not placement.readers:
        raise GraphError(f"{graph.path} has no layer with weights to quantize; build it as fp16")
    pixels = placement.groups.get(NORMALIZED)
    known = {t: (-PIXEL_BOUND, PIXEL_BOUND) for t, g in placement.groups.items() if g == pixels}
    unknown = [tensor for tensor in placement.readers if tensor not in known]
    ranges = {**calibration.estimate(graph.path, unknown), **known}
    missing_ranges = [tensor for tensor in unknown if tensor not in ranges]
    if missing_ranges:
        raise InputError(
            f"the calibration gave no range for {len(missing_ranges)} tensors, "
            f"{missing_ranges[0]} for one; expected all {len(unknown)}"
        )
    quantized = quantize_graph(model, ranges, placement)
    set_precision(quantized, "int8")
    return quantized


def _refuse(violations: list[Violation], precision: Precision) -> None:
    if violations:
        lines = "\n".join(f"  {violation}" for violation in violations)
        raise GraphError(
            f"TensorRT would refuse the {precision} graph ({len(violations)} rules broken); change "
            f"the student's layers, or choose another target:\n{lines}"
        )


def _note(violations: list[Violation]) -> str:
    """Return the standing note, with what may cost speed in this graph."""
    advice = "; ".join(str(violation) for violation in violations)
    return f"{NOTE}. It may run slower than it could: {advice}" if advice else NOTE
