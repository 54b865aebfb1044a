"""How much memory does it take to score a pool of a million images, and how long?

    python tools/bench/pool_scoring.py            a million 32 px RGB images, ten classes
    python tools/bench/pool_scoring.py --images 100000

The pool is noise with a counter in it, so that all images differ; it is written to a temporary
folder (3.2 GB) by a process of its own. Another process opens it, scores all of it with the stored
teacher logits and a student (zoo convnet3, width 0.25), selects, and reports its own peak of
resident memory, mapped pages included. Written to `results/`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydistill_edge.images.selection import score_pool, select
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods.pool import Pool
from hydistill_edge.models.student import Student
from hydistill_edge.targets.gates import at_most
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.packages import version

CLASSES = tuple(f"class {number}" for number in range(10))
SIDE, CHUNK, BATCH = 32, 20_000, 1024
LIMIT_MIB = 4096
"""What the project promises for a million images."""

RESULTS = Path(__file__).parent / "results"
QUESTION = str(__doc__).splitlines()[0]


def write_pool(folder: Path, count: int) -> None:
    """Write the pool."""
    choice = np.random.default_rng(0)
    noise = choice.integers(0, 256, (CHUNK, SIDE, SIDE, 3), np.uint8)
    with TransferSetWriter(
        folder, size=(SIDE, SIDE), channels=3, classes=CLASSES, teacher_digest="0" * 64
    ) as writer:
        for start in range(0, count, CHUNK):
            number = min(CHUNK, count - start)
            images = noise[:number].copy()
            places = np.arange(start, start + number, dtype=np.uint64)
            images.reshape(number, -1)[:, :8] = places.view(np.uint8).reshape(number, 8)
            logits = 2 * choice.standard_normal((number, len(CLASSES)), np.float32)
            ids = [f"web:{place:07d}.png" for place in places]
            writer.add(images, logits, origin="web", ids=ids)


def score(folder: Path) -> dict[str, Any]:
    """Score and select; return what it took."""
    torch.set_num_threads(1)
    before = _peak_mib()
    transfer = TransferSet.open(folder)
    student = Student.create(
        "convnet3", classes=CLASSES, channels=3, size=(SIDE, SIDE), width=0.25
    ).eval()
    started, spent = time.perf_counter(), time.process_time()
    pool = Pool(transfer, torch.device("cpu"))
    scores = score_pool(
        pool.batches(np.arange(len(transfer)), BATCH),
        student=student,
        share=0.9,
        classes=len(CLASSES),
    )
    scored, cpu = time.perf_counter() - started, time.process_time() - spent
    selection = select(scores, class_names=CLASSES)
    return {
        "images": len(transfer),
        "selected": len(selection),
        "student": {"arch": student.architecture, "width": student.width},
        "seconds": round(scored, 1),
        "cpu_seconds": round(cpu, 1),
        "images_per_s": round(len(transfer) / scored),
        "peak_resident_mib": _peak_mib(),
        "resident_before_mib": before,
    }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> int:
    """Write the pool, score it in a process of its own, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "pool_scoring.json")
    given = parser.parse_args()
    if given.write is not None:
        write_pool(given.write, given.images)
        return 0
    if given.score is not None:
        print(json.dumps(score(given.score)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        me = [sys.executable, __file__, "--images", str(given.images)]
        subprocess.run([*me, "--write", str(pool)], check=True)
        answer = subprocess.run(
            [*me, "--score", str(pool)], check=True, capture_output=True, text=True
        )
    told = json.loads(answer.stdout)
    gate = at_most("peak resident memory", told["peak_resident_mib"], LIMIT_MIB, unit="MiB")
    found = {
        "schema_version": 1,
        "question": QUESTION,
        "answer": f"{told['images']:,} images of 32 px in {told['peak_resident_mib']:,} MiB and "
        f"{told['cpu_seconds'] / 60:.0f} minutes of one core",
        "passed": gate.passed,
        "gates": [gate.to_dict()],
        "results": told,
        "conditions": read_conditions(threads=1, versions={"torch": version("torch")}),
    }
    given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    return 0 if gate.passed else 1


if __name__ == "__main__":
    sys.exit(main())
