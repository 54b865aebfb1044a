"""What does it cost in score to end inversion at a score, and how much time does that save?

Calibration images from the students of `calibration_sources.py` (trained once with its `--keep`):
all hundred iterations beside `stop_quality` of three heights, in turns. The score is that of the
finished uint8 images, by the student's batch norms; time is the processor's, on one thread. About
ten minutes.

    OMP_NUM_THREADS=1 python tools/bench/inversion_stop.py RUNS/resnet20-w0.5 ...
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hydistill_edge.models.student import Student
from hydistill_edge.stages.calibration import read_moments
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.stages.moments import moment_score, score_of
from hydistill_edge.synthesis.inversion import InversionSettings, invert
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.packages import version

RESULT = Path(__file__).parent / "results" / "inversion_stop.json"
HEIGHTS = (0.0, 0.8, 0.9, 0.95)
SEEDS = (0, 1)


def make(student: Student, height: float, *, count: int, seed: int) -> dict[str, Any]:
    """Return how one run went."""
    settings = InversionSettings(batch=count, stop_quality=height)
    began = time.process_time()
    made = invert(student, count=count, settings=settings, score=moment_score, seed=seed)
    seconds = time.process_time() - began
    named = network_logits(student, made.images).argmax(axis=1)
    return {
        "images_per_second": count / seconds,
        "iterations": made.iterations[0],
        "score": score_of(*read_moments(student, made.images)),
        "bn_distance": made.bn_distance,
        "hit": float((named == made.targets).mean()),
    }


def mean(runs: Sequence[dict[str, Any]], name: str) -> float:
    """Return the mean of a value over the seeds."""
    return round(statistics.fmean(run[name] for run in runs), 4)


def rows(folder: Path, *, count: int) -> list[dict[str, Any]]:
    """Return one row per height for a stored student."""
    student = Student.load(folder).eval()
    runs: dict[float, list[dict[str, Any]]] = {height: [] for height in HEIGHTS}
    for seed in SEEDS:
        for height, found in runs.items():
            found.append(make(student, height, count=count, seed=seed))
    whole = runs[0.0]
    return [
        {
            "student": folder.name,
            "stop_quality": height,
            **{name: mean(found, name) for name in found[0]},
            "speedup": round(
                mean(found, "images_per_second") / mean(whole, "images_per_second"), 3
            ),
            "score_lost": round(mean(whole, "score") - mean(found, "score"), 4),
        }
        for height, found in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("students", type=Path, nargs="+", help="folders of stored students")
    parser.add_argument("--count", type=int, default=128, help="images of a run, in one batch")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = [row for folder in given.students for row in rows(folder, count=given.count)]
    told = []
    for height in HEIGHTS[1:]:
        at = [row for row in found if row["stop_quality"] == height]
        told.append(
            f"at {height:g} {mean(at, 'speedup'):.2f} times as fast for "
            f"{mean(at, 'score_lost'):.3f} less score (most {max(r['score_lost'] for r in at):.3f})"
        )
    result = {
        "schema_version": 1,
        "question": (__doc__ or "").splitlines()[0],
        "answer": "; ".join(told),
        "passed": None,
        "gates": [],
        "results": {"images": given.count, "rows": found},
        "conditions": read_conditions(threads=1, versions={"torch": version("torch")}),
        "seeds": list(SEEDS),
        "wall_s": round(time.perf_counter() - began, 1),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(result["answer"])


if __name__ == "__main__":
    main()
