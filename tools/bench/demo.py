"""Does the demo keep its promises, on every seed?

Runs `hydistill demo` as a user would, in a folder of its own, and holds time, memory, accuracies,
sizes and gates against the limits below. About two minutes a seed on two cores; run it on a quiet
machine.

    python tools/bench/demo.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hydistill_edge.build import environment
from hydistill_edge.targets.gates import Gate, at_least, at_most, exactly
from hydistill_edge.targets.latency import read_conditions

RESULT = Path(__file__).parent / "results" / "demo.json"
SEEDS = (0, 1, 2)
PROVEN_HERE = ("onnxruntime", "openvino")  # TensorRT is simulated here: it cannot pass

WALL_LIMIT_S, MEMORY_LIMIT_MIB, REAL_IMAGES_LIMIT = 120.0, 2048.0, 100.0
TEACHER_LIMIT, STUDENT_DROP_LIMIT_POINTS, SIZE_LIMIT = 0.97, 2.0, 0.25
INT8_DROP_LIMIT_POINTS, INT8_AGREEMENT_LIMIT = 0.5, 0.99

COMMAND = [sys.executable, "-c", "from hydistill_edge.cli import entry; entry()", "demo"]


def run_demo(seed: int) -> dict[str, Any]:
    """Run the demo once; return what it took, and what its summary says."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*COMMAND, "--seed", str(seed), "--out", "demo-run", "--json"],
            cwd=folder,
            stdout=subprocess.DEVNULL,  # the same stands in summary.json
        )
        # wait4 tells the memory of this very child; getrusage has the largest of all so far.
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        summary = Path(folder) / "demo-run" / "summary.json"
        if not summary.exists():
            raise SystemExit(f"seed {seed}: the demo ended with {process.returncode}, see above")
        found = json.loads(summary.read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": round(usage.ru_maxrss / 1024, 1),  # Linux counts in KiB
        "exit_code": process.returncode,
        **facts(found),
    }


def facts(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what the limits are about."""
    teacher, student = summary["teacher"], summary["student"]
    return {
        "passed": summary["passed"],
        "real_images": summary["transfer"]["real"],
        "teacher_accuracy": teacher["accuracy"],
        "student_accuracy": student["accuracy"],
        "student_drop_points": points(teacher["accuracy"], student["accuracy"]),
        "macs_ratio": student["macs"] / teacher["macs"],
        "params_ratio": student["params"] / teacher["params"],
        "artifacts": [
            {
                "target": row["target"],
                "device": row["device"],
                "precision": row["precision"],
                "bytes": row["bytes"],
                "accuracy": row["accuracy"],
                "drop_points": points(student["accuracy"], row["accuracy"]),
                "student_agreement": row["student_agreement"],
                "parity": row["parity"]["passed"],
                "simulated_by": row["parity"]["simulated_by"],
                "passed": row["passed"],
                "gates": row["gates"],
            }
            for row in summary["artifacts"]
        ],
        "stages_wall_s": summary["wall_s"],
    }


def points(above: float, below: float) -> float:
    """Return the difference of two fractions in percent points; rounding hides float noise."""
    return round(100 * (above - below), 6)


def judge(runs: list[dict[str, Any]]) -> list[Gate]:
    """Hold the worst seed against every limit."""
    artifacts = [row for run in runs for row in run["artifacts"]]
    unproven = [
        f"seed {run['seed']} {row['target']}"
        for run in runs
        for row in run["artifacts"]
        if row["target"] in PROVEN_HERE and row["passed"] is not True
    ]

    def largest(key: str) -> float:
        return float(max(run[key] for run in runs))

    return [
        at_most("wall time", largest("wall_s"), WALL_LIMIT_S, unit="s"),
        at_most("peak memory", largest("peak_memory_mib"), MEMORY_LIMIT_MIB, unit="MiB"),
        exactly("exit code", largest("exit_code"), 0),
        at_most("real images", largest("real_images"), REAL_IMAGES_LIMIT, unit="images"),
        at_least("teacher accuracy", min(run["teacher_accuracy"] for run in runs), TEACHER_LIMIT),
        at_most(
            "student below the teacher",
            largest("student_drop_points"),
            STUDENT_DROP_LIMIT_POINTS,
            unit="percent points",
        ),
        at_most("student's MACs", largest("macs_ratio"), SIZE_LIMIT, unit="of the teacher's"),
        at_most(
            "student's parameters", largest("params_ratio"), SIZE_LIMIT, unit="of the teacher's"
        ),
        at_most(
            "int8 below the float student",
            max(row["drop_points"] for row in artifacts),
            INT8_DROP_LIMIT_POINTS,
            unit="percent points",
        ),
        at_least(
            "int8 agreement with the float student",
            min(row["student_agreement"] for row in artifacts),
            INT8_AGREEMENT_LIMIT,
        ),
        exactly(
            f"artifacts of {' and '.join(PROVEN_HERE)} that do not pass all gates",
            len(unproven),
            0,
            unit="artifacts",
            why=", ".join(unproven),
        ),
    ]


def spread(runs: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Return mean and standard deviation of one number over the seeds."""
    values = [run[key] for run in runs]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    seeds = parser.parse_args().seeds
    began = time.perf_counter()
    runs = []
    for seed in seeds:
        runs.append(run_demo(seed))
        print({key: runs[-1][key] for key in ("seed", "wall_s", "peak_memory_mib", "exit_code")})
    gates = judge(runs)
    failed = [gate.name for gate in gates if gate.passed is not True]
    numbers = ("wall_s", "teacher_accuracy", "student_accuracy", "student_drop_points")
    means = {key: spread(runs, key) for key in numbers}
    result = {
        "schema_version": 1,
        "question": (__doc__ or "").splitlines()[0],
        "answer": f"no: {', '.join(failed)}"
        if failed
        else f"yes, on all {len(runs)} seeds: "
        f"{max(run['wall_s'] for run in runs):.0f} s at most, teacher "
        f"{means['teacher_accuracy']['mean']:.2%}, student {means['student_accuracy']['mean']:.2%}",
        "passed": not failed,
        "gates": [gate.to_dict() for gate in gates],
        "results": {"over_seeds": means, "runs": runs},
        "conditions": read_conditions(
            versions={k: v for k, v in environment()["packages"].items() if v}
        ),
        "seeds": seeds,
        "wall_s": round(time.perf_counter() - began, 1),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(result["answer"])


if __name__ == "__main__":
    main()
