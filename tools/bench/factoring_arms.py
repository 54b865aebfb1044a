"""Does a wide teacher teach more when its layers are factored than when it loses channels?

The CIFAR-10 ResNet-9 that was trained elsewhere (32 to 256 channels) and a student of at most a
quarter of its multiply-accumulates: `factored`, its layers as products of thinner ones, or
`slimmed`, with fewer channels. Each learns by method kd, as a build does it, on 1,000 unlabelled
images (`real`) or on 4,000 from formulas (`made`). What is told is the agreement with the teacher,
in percent, on 3,000 other images of the training split; labels are not looked at, nor is the test
split.

A factored student's layers are fitted to the teacher's by least squares, then imitate them beside
the logits, with the teacher's own batch norm statistics. One part is left out in `truncated` (the
fit), `logits` (the hint) and `own_statistics`; all three are in `plain`, with the rate that suits
it. The narrow case is in `slimming_arms.py`. About 45 minutes of one core.

    python tools/bench/factoring_arms.py SHARED --keep RUNS
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arms import Runs, arguments, fitted, write_result, write_set
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
SETTINGS = KDSettings(steps=150, batch=64, cutmix_share=0.5, evaluations=3)
LEARNS: Mapping[str, KDSettings] = {
    "factored": SETTINGS,
    "truncated": SETTINGS,
    "logits": replace(SETTINGS, layer_weight=0.0),
    "own_statistics": replace(SETTINGS, held_statistics=False),
    "plain": replace(
        SETTINGS, learning_rate=0.01, layer_weight=0.0, held_statistics=False, gradient_clip=1e9
    ),
    "slimmed": SETTINGS,
}
FITTED = ("factored", "logits", "own_statistics")
ARMS = {
    **{f"{start}_made": (start, "made") for start in LEARNS},
    **{f"{start}_real": (start, "real") for start in ("factored", "plain", "slimmed")},
}
CLAIMS = tuple(
    (f"factored_{kind}", arm) for arm, (start, kind) in ARMS.items() if start != "factored"
)


def read_teacher(shared: Path) -> Teacher:
    """Return the teacher."""
    section = dict(cases(shared)["cifar10"].teacher)
    return Teacher.load(
        Path(section["weights"]),
        architecture=section["architecture"],
        classes=section["classes"],
        spec=InputSpec(**section["input"]),
    )


def start_of(name: str, teacher: Teacher, transfer: TransferSet, seed: int) -> Student:
    """Return the student that an arm starts from."""
    if name == "slimmed":
        return slim(teacher, macs_share=SHARE)
    student = factor(teacher, macs_share=SHARE)
    return fitted(student, teacher, transfer, seed) if name in FITTED else student


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
        transfer = set_of(kind, teacher, unlabelled, seed, given.keep)
        student = start_of(start, teacher, transfer, seed)
        untrained = agreement(student.eval())
        trained = distill(teacher, student, transfer, LEARNS[start], workdir=workdir, seed=seed)
        seconds = time.monotonic() - started
        return {
            "agreement": agreement(trained.student),
            "untrained": untrained,
            "seconds": seconds,
        }

    runs = Runs(given.keep, given.seeds)
    runs.do_all(ARMS, run)
    whole = count(teacher.network, channels=teacher.spec.channels, size=teacher.spec.size)
    sizes = {
        "factored": factor(teacher, macs_share=SHARE).count(),
        "slimmed": slim(teacher, macs_share=SHARE).count(),
    }
    untrained = runs.table(tuple(ARMS), "untrained")
    write_result(
        "factoring_arms",
        question=QUESTION,
        table=runs.table(tuple(ARMS), "agreement"),
        claims=CLAIMS,
        more={
            "untrained_agreement": {arm: list(found.values()) for arm, found in untrained.items()},
            "macs_ratio": {name: size.macs / whole.macs for name, size in sizes.items()},
            "params": {name: size.params for name, size in sizes.items()},
            "steps": SETTINGS.steps,
            "images": {"real": REAL, "made": PROCEDURAL.count},
        },
    )


if __name__ == "__main__":
    main()
