"""Is our runner slower than the runtime's own call, on a model of about 1 ms?

Bare calls: `session.run` of ONNX Runtime, and `infer` of an OpenVINO request whose input is in
place. One thread, batch 1, processor time, at most 3 % at the median allowed, half a minute.

    python tools/bench/runner_overhead.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision_students import (
    CLOCK_NAME,
    cpu_clock,
    median_bounds,
    photographs,
    summary,
    torchvision_student,
)

from hydistill_edge.targets.gates import at_most
from hydistill_edge.targets.graph import export_student
from hydistill_edge.targets.latency import Contender, compare_latency, read_conditions
from hydistill_edge.targets.onnxruntime.runner import OnnxRuntimeRunner
from hydistill_edge.targets.openvino.libraries import load_openvino
from hydistill_edge.targets.openvino.runner import OpenVinoRunner
from hydistill_edge.targets.packages import version

RESULT = Path(__file__).parent / "results" / "runner_overhead.json"
LIMIT = 0.03
NETWORK: dict[str, Any] = {"architecture": "resnet18", "size": 32}
VERSIONS = ("onnxruntime", "openvino", "torch", "torchvision", "onnx")

Call = Callable[[Any], object]


def onnxruntime_calls(file: Path, first: Any) -> tuple[Call, Call]:
    """Return the bare call and the runner's, with the same threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    return lambda image: session.run(["logits"], {"image": image}), OnnxRuntimeRunner(file).run


def openvino_calls(file: Path, first: Any) -> tuple[Call, Call]:
    """Return the bare call and the runner's, with the same settings.

    The bare one has its input in place: it copies no pixel.
    """
    ov = load_openvino()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
    }
    request = ov.Core().compile_model(file, "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(first.copy()))
    return lambda image: request.infer(), OpenVinoRunner(file).run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--seconds", type=float, default=0.03, help="per side and round")
    arguments = parser.parse_args()
    start = time.perf_counter()
    rows, gates = [], []
    with tempfile.TemporaryDirectory() as temporary:
        student = torchvision_student(**NETWORK)
        graph = export_student(student, Path(temporary) / "student.onnx", resize="none")
        inputs = [image[None].copy() for image in photographs(64, NETWORK["size"])]
        for runtime, calls in (("onnxruntime", onnxruntime_calls), ("openvino", openvino_calls)):
            bare, ours = calls(graph.path, inputs[0])
            ratio = compare_latency(
                Contender("bare call", bare, inputs),
                Contender("runner", ours, inputs),
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                clock=cpu_clock,
            )
            low, high = median_bounds(ratio.ratios)
            gates.append(
                at_most(f"{runtime}: overhead at p50", ratio.ratio - 1, LIMIT, unit="fraction")
            )
            rows.append({"runtime": runtime, "ratio_bounds_95": [low, high], **summary(ratio)})
            print(f"{runtime}: {ratio.ratio:.4f} times the bare call ({low:.4f} to {high:.4f})")
    answer = ", ".join(f"{row['runtime']} {row['ratio']:.4f}" for row in rows)
    result = {
        "schema_version": 1,
        "question": __doc__.splitlines()[0],
        "answer": f"times the bare call: {answer}",
        "passed": all(gate.passed for gate in gates),
        "gates": [gate.to_dict() for gate in gates],
        "network": "resnet18-32px fp32",
        "results": rows,
        "conditions": read_conditions(
            threads=1,
            versions={package: version(package) for package in VERSIONS},
            extra={"clock": CLOCK_NAME},
        ),
        "seeds": [0],
        "wall_s": round(time.perf_counter() - start, 1),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(result["answer"])


if __name__ == "__main__":
    main()
