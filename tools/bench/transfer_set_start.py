"""How soon does a transfer set of 100,000 images give its first batch, and what does it keep?

Every image is one of CIFAR-10, as it is or mirrored. One process writes the set; another opens it,
takes the first batch at random and then goes through the whole set in batches, and tells its own
memory after each: pages of its own, and pages of the mapped files, which the system can take back.
About a minute.

    python tools/bench/transfer_set_start.py SHARED
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hydistill_edge.images.sources import SourceSpec, load_source
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.run_directory import write_json
from hydistill_edge.targets.gates import at_most
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.packages import version

RESULTS = Path(__file__).parent / "results"
QUESTION = str(__doc__).splitlines()[0]

BATCH = 256
FIRST_BATCH_S = 1.0
RESIDENT_MIB = 200.0
MIB = 2**20


def write(folder: Path, shared: Path) -> None:
    """Write the set."""
    source = SourceSpec(kind="npz", path=str(shared / "data" / "cifar10" / "train.npz"))
    images = load_source(source).images
    draw = np.random.default_rng(0)
    names = tuple(f"class {number}" for number in range(10))
    with TransferSetWriter(
        folder, size=(32, 32), channels=3, classes=names, teacher_digest="0" * 64
    ) as writer:
        for name, some in (("plain", images), ("mirrored", images[:, :, ::-1])):
            logits = draw.standard_normal((len(some), 10), np.float32)
            ids = [f"{name}:{row:05d}" for row in range(len(some))]
            writer.add(np.ascontiguousarray(some), logits, origin="real", ids=ids)


def read(folder: Path) -> dict[str, Any]:
    """Open the set and go through it; return times and memory."""
    before = resident()
    started = time.perf_counter()
    transfer = TransferSet.open(folder)
    order = np.random.default_rng(0).permutation(len(transfer))
    batch = (transfer.images(order[:BATCH]), transfer.logits(order[:BATCH]))
    first_s = time.perf_counter() - started
    held = sum(part.nbytes for part in batch)
    after_first = resident()
    started = time.perf_counter()
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = (transfer.images(rows), transfer.logits(rows))
    return {
        "images": len(transfer),
        "set_mib": transfer.manifest["bytes"]["total"] / MIB,
        "batch": BATCH,
        "batch_mib": held / MIB,
        "first_batch_s": first_s,
        "pass_s": time.perf_counter() - started,
        "resident_mib": {"before": before, "first_batch": after_first, "pass": resident()},
    }


def resident() -> dict[str, float]:
    """Return this process's resident memory in MiB: its own pages, and those of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {"own": int(found["RssAnon"]) / 1024, "mapped": int(found["RssFile"]) / 1024}


def main() -> None:
    """Write the set, read it in a process of its own, keep the result."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("shared", type=Path, nargs="?", help="folder with `data/`")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read is not None:
        print(json.dumps(read(given.read)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary) / "set", given.shared)
        answer = subprocess.run(
            [sys.executable, __file__, "--read", str(Path(temporary) / "set")],
            check=True,
            capture_output=True,
            text=True,
        )
    found = json.loads(answer.stdout)
    memory = found["resident_mib"]
    grown = {
        when: sum(memory[when].values()) - sum(memory["before"].values()) - found["batch_mib"]
        for when in ("first_batch", "pass")
    }
    own = memory["pass"]["own"] - memory["before"]["own"] - found["batch_mib"]
    gates = [
        at_most("first batch", found["first_batch_s"], FIRST_BATCH_S, unit="s"),
        at_most(
            "memory beyond the batch, first batch", grown["first_batch"], RESIDENT_MIB, unit="MiB"
        ),
        at_most("own memory beyond the batch, whole pass", own, RESIDENT_MIB, unit="MiB"),
    ]
    text = (
        f"first batch after {1000 * found['first_batch_s']:.0f} ms with "
        f"{grown['first_batch']:.0f} MiB beyond it; after a whole pass {own:.0f} MiB of its own "
        f"and {memory['pass']['mapped'] - memory['before']['mapped']:.0f} MiB of mapped pages"
    )
    write_json(
        RESULTS / "transfer_set_start.json",
        {
            "schema_version": 1,
            "question": QUESTION,
            "answer": text,
            "passed": all(gate.passed for gate in gates),
            "gates": [gate.to_dict() for gate in gates],
            "results": found,
            "conditions": read_conditions(threads=1, versions={"numpy": version("numpy")}),
        },
    )
    print(text)


if __name__ == "__main__":
    main()
