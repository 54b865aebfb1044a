"""Does a student come nearer to its teacher when it starts as the teacher made smaller?

Fashion-MNIST at 16 px, grey: a ResNet-20 teacher trained on 15,000 labelled images, and a student
of at most a quarter of its multiply-accumulates. `slimmed` is the teacher with fewer channels,
`factored` that with its layers as products of thinner ones, `fresh` the slimmed network with fresh
weights, each taught by method kd, as a build does it, on 300 unlabelled images (`real`) or on 300
made from the teacher alone (`made`); fresh weights also get three times the steps (`fresh_longer`).
About 30 minutes of one core.

    python tools/bench/slimming_arms.py SHARED --keep RUNS
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from arms import Images, Runs, accuracy, arguments, fitted, write_result, write_set
from fashion import AUGMENT, read_task
from torch import nn

from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.methods.kd import KDSettings, distill
from hydistill_edge.models.counting import count
from hydistill_edge.models.factoring import factor
from hydistill_edge.models.slimming import slim
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.seeding import seeded
from hydistill_edge.synthesis.inversion import InversionSettings, invert

QUESTION = str(__doc__).splitlines()[0]

# Frozen before the first run.
SHARE = 0.25
IMAGES = 300
SETTINGS = KDSettings(steps=600, batch=64, augment=AUGMENT, evaluations=6)
LONGER = KDSettings(steps=1800, batch=64, augment=AUGMENT, evaluations=6)
INVERSION = InversionSettings(flip=True)
ARMS = {
    f"{start}_{kind}": (start, kind)
    for kind in ("real", "made")
    for start in ("factored", "slimmed", "fresh", "fresh_longer")
}
CLAIMS = tuple(
    (f"{better}_{kind}", f"{start}_{kind}")
    for kind in ("real", "made")
    for better, start in (
        ("slimmed", "fresh"),
        ("slimmed", "fresh_longer"),
        ("factored", "slimmed"),
    )
)


def start_of(name: str, teacher: Teacher, transfer: TransferSet, seed: int) -> Student:
    """Return the student that an arm starts from."""
    if name == "factored":
        return fitted(factor(teacher, macs_share=SHARE), teacher, transfer, seed)
    student = slim(teacher, macs_share=SHARE)
    if name != "slimmed":
        student.options.clear()  # so that method kd takes the rate of fresh weights
        with seeded(seed):
            for module in student.network.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                    module.reset_parameters()
    return student


def set_of(kind: str, teacher: Teacher, unseen: Images, seed: int, keep: Path) -> TransferSet:
    """Return the images of one seed: some of the unlabelled ones, or as many made ones."""
    folder = keep / f"set-{kind}-{seed}"
    if kind == "real":
        rows = np.random.default_rng(seed).permutation(len(unseen))[:IMAGES]
        return write_set(folder, teacher, {"unlabelled": ("real", unseen[rows])})
    if folder.exists():
        return TransferSet.open(folder)
    made = invert(teacher, count=IMAGES, settings=INVERSION, seed=seed)
    return write_set(folder, teacher, {"made": ("synthetic", made.images)})


def main() -> None:
    """Run what is missing and write the result."""
    given = arguments(QUESTION)
    task = read_task(given.shared, given.keep)
    runs = Runs(given.keep, given.seeds)
    teacher = task.teacher
    slimmed = slim(teacher, macs_share=SHARE)
    factored = factor(teacher, macs_share=SHARE)
    untrained = {
        "slimmed": accuracy(slimmed, task.test),
        "factored": accuracy(factored, task.test),
    }

    def run(name: str, seed: int) -> dict[str, Any]:
        started = time.monotonic()
        start, kind = ARMS[name]
        workdir = given.keep / f"student-{name}-{seed}"
        workdir.mkdir(exist_ok=True)
        transfer = set_of(kind, teacher, task.unseen.images, seed, given.keep)
        trained = distill(
            teacher,
            start_of(start, teacher, transfer, seed),
            transfer,
            LONGER if start == "fresh_longer" else SETTINGS,
            workdir=workdir,
            seed=seed,
        )
        seconds = time.monotonic() - started
        return {"accuracy": accuracy(trained.student, task.test), "seconds": seconds}

    runs.do_all(ARMS, run)
    spec = teacher.spec
    whole = count(teacher.network, channels=spec.channels, size=spec.size)
    write_result(
        "slimming_arms",
        question=QUESTION,
        table=runs.table(tuple(ARMS)),
        claims=CLAIMS,
        more={
            "teacher_accuracy": accuracy(teacher, task.test),
            "untrained_accuracy": untrained,
            "macs_ratio": {
                "slimmed": slimmed.count().macs / whole.macs,
                "factored": factored.count().macs / whole.macs,
            },
            "params": {
                "teacher": whole.params,
                "slimmed": slimmed.count().params,
                "factored": factored.count().params,
            },
            "images": IMAGES,
        },
    )


if __name__ == "__main__":
    main()
