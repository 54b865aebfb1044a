"""Is int8 that takes raw pixels as its quantized input faster than behind a float input?

The student sees (pixel - 128) / 64, so uint8 pixels are a quantized tensor as they are. One thread,
batch 1, the same int8 network with two inputs, processor time, about three minutes:

- ONNX Runtime: Transpose -> DequantizeLinear against Cast, Transpose, Sub, Mul, QuantizeLinear;
- OpenVINO: the input's FakeQuantize set to the 256 pixel values against NNCF's range from data.

    python tools/bench/int8_from_pixels.py
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
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

from hydistill_edge.calibration.scheme import choose_scheme
from hydistill_edge.targets.base import Calibration
from hydistill_edge.targets.gates import at_most
from hydistill_edge.targets.graph import export_student, save_model
from hydistill_edge.targets.graph_file import set_precision
from hydistill_edge.targets.latency import Contender, compare_latency, read_conditions
from hydistill_edge.targets.onnxruntime import quantize as ort_quantize
from hydistill_edge.targets.onnxruntime.runner import OnnxRuntimeRunner
from hydistill_edge.targets.openvino import quantize as openvino_quantize
from hydistill_edge.targets.openvino.libraries import load_openvino
from hydistill_edge.targets.openvino.runner import PRECISION_PATH, OpenVinoRunner
from hydistill_edge.targets.packages import version
from hydistill_edge.targets.profiles import load_profile

RESULT = Path(__file__).parent / "results" / "int8_from_pixels.json"

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18-64px": {"architecture": "resnet18", "size": 64},
    "mobilenet_v2-w0.5-64px": {"architecture": "mobilenet_v2", "size": 64, "width_mult": 0.5},
    "mobilenet_v2-w0.5-96px": {"architecture": "mobilenet_v2", "size": 96, "width_mult": 0.5},
}
FLOAT, SLOW, FAST = "fp32", "int8 behind a float input", "int8 from pixels"
VERSIONS = ("onnxruntime", "openvino", "nncf", "torch", "torchvision", "onnx")


def onnxruntime_files(graph: Any, images: Any, folder: Path) -> dict[str, Path]:
    """Write the three variants for ONNX Runtime."""
    network = ort_quantize.quantize_network(graph, calibration("onnxruntime", images))
    models = {
        SLOW: ort_quantize.attach_float_input(copy.deepcopy(network)),
        FAST: ort_quantize.attach_pixels(network),
    }
    files = {FLOAT: graph.path}
    for name, model in models.items():
        set_precision(model, "int8")
        files[name] = folder / f"{name}.onnx"
        save_model(model, files[name])
    return files


def openvino_files(graph: Any, images: Any, folder: Path) -> dict[str, Path]:
    """Write the three variants for OpenVINO."""
    ov = load_openvino()
    chosen = calibration("openvino", images)
    models = {
        FLOAT: ov.convert_model(graph.path),
        SLOW: openvino_quantize.quantize_by_data(ov.convert_model(graph.path), graph, chosen),
        FAST: openvino_quantize.quantize(ov.convert_model(graph.path), graph, chosen),
    }
    files = {}
    for name, model in models.items():
        model.set_rt_info(name.split()[0], list(PRECISION_PATH))
        files[name] = folder / f"{name}.xml"
        ov.save_model(model, files[name], compress_to_fp16=False)
    return files


def calibration(target: str, images: Any) -> Calibration:
    """Return a calibration by the scheme for this kind of machine."""
    scheme = choose_scheme(target, load_profile("host"))
    ids = tuple(str(index) for index in range(len(images)))
    return Calibration(images=images, ids=ids, digest="0" * 64, scheme=scheme)


RUNTIMES: dict[str, tuple[Callable[..., dict[str, Path]], Callable[..., Any]]] = {
    "onnxruntime": (onnxruntime_files, OnnxRuntimeRunner),
    "openvino": (openvino_files, OpenVinoRunner),
}


def measure(name: str, runtime: str, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Return one row: the three variants of one network in one runtime."""
    write, open_file = RUNTIMES[runtime]
    settings = NETWORKS[name]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        student = torchvision_student(**settings)
        graph = export_student(student, folder / "student.onnx", resize="none")
        images = photographs(64, settings["size"])
        inputs = [image[None].copy() for image in images]
        sides = {
            variant: Contender(variant, stack.enter_context(open_file(file)).run, inputs)
            for variant, file in write(graph, images[:32], folder).items()
        }
        against_slow = compare_latency(
            sides[SLOW], sides[FAST], rounds=rounds, seconds=seconds, clock=cpu_clock
        )
        against_float = compare_latency(
            sides[FLOAT], sides[FAST], rounds=rounds, seconds=seconds, clock=cpu_clock
        )
    low, high = median_bounds(against_slow.ratios)
    return {
        "network": name,
        "runtime": runtime,
        "ratio": against_slow.ratio,
        "ratio_bounds_95": [low, high],
        "pixels_against_float_input": summary(against_slow),
        "pixels_against_fp32": summary(against_float),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--seconds", type=float, default=0.03, help="per variant and round")
    arguments = parser.parse_args()
    start = time.perf_counter()
    rows = []
    for name in NETWORKS:
        for runtime in RUNTIMES:
            row = measure(name, runtime, rounds=arguments.rounds, seconds=arguments.seconds)
            rows.append(row)
            pair, low, high = row["pixels_against_float_input"], *row["ratio_bounds_95"]
            print(
                f"{name} {runtime}: {row['ratio']:.3f} times ({low:.3f} to {high:.3f}); "
                f"{pair['old_p50_ms']:.3f} -> {pair['new_p50_ms']:.3f} ms, fp32 "
                f"{row['pixels_against_fp32']['old_p50_ms']:.3f} ms"
            )
    # Slower would be a ratio whose whole interval lies above 1.
    gates = [
        at_most(
            f"{row['network']} {row['runtime']}: lower bound of the ratio",
            row["ratio_bounds_95"][0],
            1.0,
        )
        for row in rows
    ]
    ratios = {r: [row["ratio"] for row in rows if row["runtime"] == r] for r in RUNTIMES}
    answer = "; ".join(f"{r}: {min(v):.3f} to {max(v):.3f} times" for r, v in ratios.items())
    result = {
        "schema_version": 1,
        "question": __doc__.splitlines()[0],
        "answer": f"latency from pixels over latency behind a float input: {answer}",
        "passed": all(gate.passed for gate in gates),
        "gates": [gate.to_dict() for gate in gates],
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
