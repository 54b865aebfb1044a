"""How many images per second does inversion make at 32, 64 and 224 px, and in how much memory?

A ResNet-18 of the zoo (its strides grow with the input) with random weights whose BatchNorm
statistics are those of noise: speed does not depend on what a network has learned, and these images
are good for nothing else. Each size runs in a process of its own, whose peak memory is the system's
count, for ten iterations in the proportions of the default hundred; speeds are of all hundred.
The peer, in the same process and in turns, does all iterations at full size. About ten minutes on
two cores.

    python tools/bench/inversion_throughput.py
    python tools/bench/inversion_throughput.py --width 0.25
    python tools/bench/inversion_throughput.py --sides 32 --width 0.125 --batch 4 --out /tmp/x.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hydistill_edge.models.student import Student
from hydistill_edge.synthesis.canvas import canvas_of, coarse_sizes
from hydistill_edge.synthesis.inversion import InversionSettings, Inverted, invert
from hydistill_edge.synthesis.witness import witnesses
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.packages import version

RESULT = Path(__file__).parent / "results" / "inversion_throughput.json"
SIDES = (32, 64, 224)
THREADS = 2
CLASSES = 10
TIMED = 10  # iterations per run; the default hundred has the same proportions
SEED = 0


def network(side: int, width: float) -> Student:
    """Return a network that remembers the statistics of noise."""
    student = Student.create(
        "resnet18",
        classes=[f"class {number}" for number in range(CLASSES)],
        channels=3,
        size=(side, side),
        width=width,
        seed=SEED,
    ).train()
    norms = [part for part in student.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _ in range(4):
            student(torch.rand((8, 3, side, side), generator=generator))
    return student.eval()


def time_side(side: int, *, width: float, batch: int | None, rounds: int) -> dict[str, Any]:
    """Return one row: speed and memory at one size, in this process."""
    torch.set_num_threads(THREADS)
    student = network(side, width)
    settings = InversionSettings(iterations=TIMED, batch=batch)
    count = max(CLASSES, chosen_batch(student, settings))
    settings = replace(settings, batch=count)
    peers = {"default": settings, "full size only": replace(settings, coarse=0.0)}
    if not coarse_sizes(student.size, settings.coarse):
        del peers["full size only"]  # the same thing
    speeds: dict[str, list[float]] = {name: [] for name in peers}
    invert(student, count=CLASSES, settings=replace(settings, iterations=2), seed=SEED)  # warm-up
    for _ in range(rounds):
        for name, run in peers.items():
            speeds[name].append(speed(invert(student, count=count, settings=run, seed=SEED)))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    default, full = medians["default"], medians.get("full size only")
    return {
        "side_px": side,
        "network": "resnet18",
        "width": width,
        "batch": count,
        "images_per_second": round(default, 4),
        "seconds_for_1000_images": round(1000 / default, 1),
        "images_per_second_at_full_size_only": None if full is None else round(full, 4),
        "speedup_of_coarse_start": None if full is None else round(default / full, 3),
        "rounds": {name: [round(value, 4) for value in values] for name, values in speeds.items()},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def chosen_batch(student: Student, settings: InversionSettings) -> int:
    """Return the batch that the settings choose for this network."""
    cpu = torch.device("cpu")
    with witnesses([student], real=None, layer_weights={}, output=None, device=cpu) as (witness,):
        image_bytes = witness.image_bytes(canvas_of(student, None, cpu))
    return settings.batch_for(student.size, image_bytes)


def speed(made: Inverted) -> float:
    """Return images per second of a run with all default iterations."""
    return made.images_per_second * TIMED / InversionSettings().iterations


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--width", type=float, default=1.0, help="of the network's channels")
    parser.add_argument("--batch", type=int, help="images optimized together; default as chosen")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--here", type=int, help="time one size in this process, print its row")
    given = parser.parse_args()
    if given.here:
        row = time_side(given.here, width=given.width, batch=given.batch, rounds=given.rounds)
        print(json.dumps(row))
        return
    began = time.perf_counter()
    options = ["--width", str(given.width), "--rounds", str(given.rounds)]
    options += [] if given.batch is None else ["--batch", str(given.batch)]
    rows = []
    for side in given.sides:
        command = [sys.executable, __file__, "--here", str(side), *options]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    answer = f"ResNet-18, width {given.width:g}: " + "; ".join(
        f"{row['images_per_second']:.3g} images/s at {row['side_px']} px in "
        f"{row['peak_memory_mib']} MiB"
        for row in rows
    )
    result = {
        "schema_version": 1,
        "question": (__doc__ or "").splitlines()[0],
        "answer": answer,
        "passed": None,
        "gates": [],
        "results": {
            "iterations": InversionSettings().iterations,
            "iterations_timed": TIMED,
            "weights": "random, BatchNorm statistics of noise",
            "rows": rows,
        },
        "conditions": read_conditions(threads=THREADS, versions={"torch": version("torch")}),
        "seeds": [SEED],
        "wall_s": round(time.perf_counter() - began, 1),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(answer)


if __name__ == "__main__":
    main()
