"""Does a wide teacher teach more when its layers are factored than when it loses channels?

The CIFAR-10 ResNet-9 that was trained elsewhere (32 to 256 channels) and a student of at most a
quarter of its multiply-accumulates: `factored`, its layers as products of thinner ones, or
`slimmed`, with fewer channels. Each learns by method kd, from logits alone, on 1,000 unlabelled
images (`real`) or on 4,000 from formulas (`made`). What is told is the agreement with the teacher,
in percent, on 3,000 other images of the training split; labels are not looked at, nor is the test
split. The narrow case, where it is the other way round, is in `slimming_arms.py`; what more a
factored student can learn from is in `factored_parts.py`. About 15 minutes of one core.

    python tools/bench/factoring_arms.py SHARED --keep RUNS
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arms import LOGITS_ALONE, Runs, arguments, write_result, write_set
from outside_teacher import cases

from hydistill_edge.images.sources import SourceSpec, load_source
from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.methods.kd import KDSettings, distill
from hydistill_edge.models.counting import count
from hydistill_edge.models.factoring import factor
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.slimming import slim
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.stages.logits import network_answer, network_logits
from hydistill_edge.synthesis.procedural_set import ProceduralSettings, draw_set
from hydistill_edge.targets.base import Images

QUESTION = str(__doc__).splitlines()[0]

# Frozen before the first run.
SHARE = 0.25
REAL, JUDGED = 1000, 3000
PROCEDURAL = ProceduralSettings(count=4000)
SETTINGS = KDSettings(steps=600, batch=64, cutmix_share=0.5, evaluations=3)
FACTORED = replace(SETTINGS, **LOGITS_ALONE)
STARTS = {"factored": factor, "slimmed": slim}
ARMS = {f"{start}_{kind}": (start, kind) for kind in ("real", "made") for start in STARTS}
CLAIMS = tuple((f"factored_{kind}", f"slimmed_{kind}") for kind in ("real", "made"))


def read_teacher(shared: Path) -> Teacher:
    """Return the teacher."""
    section = dict(cases(shared)["cifar10"].teacher)
    return Teacher.load(
        Path(section["weights"]),
        architecture=section["architecture"],
        classes=section["classes"],
        spec=InputSpec(**section["input"]),
    )


def set_of(kind: str, teacher: Teacher, unlabelled: Images, seed: int, keep: Path) -> TransferSet:
    """Return the images of one seed."""
    folder = keep / f"set-{kind}-{seed}"
    if folder.exists():
        return TransferSet.open(folder)
    if kind == "real":
        rows = np.random.default_rng(seed).permutation(len(unlabelled))[:REAL]
        return write_set(folder, teacher, {"unlabelled": ("real", unlabelled[rows])})
    made = draw_set(
        lambda images: network_answer(teacher, images),
        PROCEDURAL,
        classes=len(teacher.classes),
        size=teacher.spec.size,
        channels=teacher.spec.channels,
        mean=teacher.spec.mean,
        std=teacher.spec.std,
        seed=seed,
    )
    return write_set(folder, teacher, {"formulas": ("procedural", made.images)})


def unlabelled_images(shared: Path, teacher: Teacher) -> tuple[Images, Images]:
    """Return images to learn from, and those that agreement is judged on."""
    file = shared / "data" / "cifar10" / "train.npz"
    images = load_source(
        SourceSpec(kind="npz", path=str(file), rows="::5"),
        size=teacher.spec.size,
        channels=teacher.spec.channels,
    ).images
    return images[:-JUDGED], images[-JUDGED:]


def main() -> None:
    """Run what is missing and write the result."""
    given = arguments(QUESTION)
    teacher = read_teacher(given.shared)
    unlabelled, judged = unlabelled_images(given.shared, teacher)
    decided = network_logits(teacher, judged).argmax(axis=1)

    def agreement(student: Student) -> float:
        return float(100 * (network_logits(student, judged).argmax(axis=1) == decided).mean())

    def run(name: str, seed: int) -> dict[str, Any]:
        started = time.monotonic()
        start, kind = ARMS[name]
        workdir = given.keep / f"student-{name}-{seed}"
        workdir.mkdir(exist_ok=True)
        trained = distill(
            teacher,
            STARTS[start](teacher, macs_share=SHARE),
            set_of(kind, teacher, unlabelled, seed, given.keep),
            FACTORED if start == "factored" else SETTINGS,
            workdir=workdir,
            seed=seed,
        )
        seconds = time.monotonic() - started
        return {"agreement": agreement(trained.student), "seconds": seconds}

    runs = Runs(given.keep, given.seeds)
    runs.do_all(ARMS, run)
    whole = count(teacher.network, channels=teacher.spec.channels, size=teacher.spec.size)
    students = {name: start(teacher, macs_share=SHARE) for name, start in STARTS.items()}
    write_result(
        "factoring_arms",
        question=QUESTION,
        table=runs.table(tuple(ARMS), "agreement"),
        claims=CLAIMS,
        more={
            "untrained_agreement": {name: agreement(found) for name, found in students.items()},
            "macs_ratio": {n: found.count().macs / whole.macs for n, found in students.items()},
            "params": {n: found.count().params for n, found in students.items()},
            "images": {"real": REAL, "made": PROCEDURAL.count},
        },
    )


if __name__ == "__main__":
    main()
