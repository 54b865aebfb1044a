"""How long do `hydistill --help` and `import hydistill_edge.device` take to start?

Against a bare interpreter and against `import numpy`, every process in turns, medians over the
rounds. At most 0.3 s and 0.1 s more allowed, and neither may load torch, onnx or a runtime. About
half a minute.

    python tools/bench/startup.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydistill_edge.targets.gates import at_most, exactly
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.packages import version

RESULT = Path(__file__).parent / "results" / "startup.json"
HELP_LIMIT_S, DEVICE_LIMIT_S = 0.3, 0.1
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "nncf", "tensorrt")
VERSIONS = ("numpy", "typer", "rich", "pydantic")

COMMANDS = {
    "bare interpreter": [sys.executable, "-c", "pass"],
    "hydistill --help": [str(Path(sys.executable).with_name("hydistill")), "--help"],
    "import numpy": [sys.executable, "-c", "import numpy"],
    "import hydistill_edge.device": [sys.executable, "-c", "import hydistill_edge.device"],
}
"""What is timed, in the order of every round."""

LOADED = "import sys; print(*sorted(set(sys.argv[1].split(',')) & set(sys.modules)))"
HELP = "from hydistill_edge.cli import main; import contextlib, io\n"
HELP += "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"


def time_start(command: list[str], folder: str) -> float:
    """Return the seconds from starting a process to its end."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return time.perf_counter() - start


def heavy_after(code: str, folder: str) -> list[str]:
    """Return the heavy packages that a fresh interpreter has loaded after some code."""
    command = [sys.executable, "-c", f"{code}\n{LOADED}", ",".join(HEAVY)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    return done.stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25, help="at least 15")
    rounds = max(15, parser.parse_args().rounds)
    began = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:  # nothing of the tree is importable by accident
        for round_number in range(rounds + 1):
            for name, command in COMMANDS.items():
                seconds = time_start(command, folder)
                if round_number:  # the first round fills the file cache
                    times[name].append(seconds)
        loaded = {
            "hydistill --help": heavy_after(HELP, folder),
            "import hydistill_edge.device": heavy_after("import hydistill_edge.device", folder),
        }
    help_s = over(times, "hydistill --help", "bare interpreter")
    device_s = over(times, "import hydistill_edge.device", "import numpy")
    gates = [
        at_most("hydistill --help over a bare interpreter", help_s, HELP_LIMIT_S, unit="s"),
        at_most("import hydistill_edge.device over numpy", device_s, DEVICE_LIMIT_S, unit="s"),
        exactly("heavy packages loaded", sum(map(len, loaded.values())), 0, unit="packages"),
    ]
    result = {
        "schema_version": 1,
        "question": (__doc__ or "").splitlines()[0],
        "answer": f"--help {help_s:.3f} s over a bare interpreter, device {device_s:.3f} s "
        "over numpy",
        "passed": all(gate.passed for gate in gates),
        "gates": [gate.to_dict() for gate in gates],
        "results": {
            "rounds": rounds,
            "processes": [row(name, seconds) for name, seconds in times.items()],
            "heavy_packages_loaded": loaded,
        },
        "conditions": read_conditions(versions={name: version(name) for name in VERSIONS}),
        "seeds": [],
        "wall_s": round(time.perf_counter() - began, 1),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(result["answer"])


def over(times: dict[str, list[float]], name: str, peer: str) -> float:
    """Return the median over the rounds of what one process took longer than its peer."""
    return statistics.median(a - b for a, b in zip(times[name], times[peer], strict=True))


def row(name: str, seconds: list[float]) -> dict[str, object]:
    """Return the distribution of one process's times."""
    return {
        "process": name,
        "n": len(seconds),
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
    }


if __name__ == "__main__":
    main()
