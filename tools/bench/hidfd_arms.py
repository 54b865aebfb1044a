"""Do a few collected images and those of a GAN together teach more than either alone?

Fashion-MNIST at 16 px, grey: a ResNet-20 teacher trained on 15,000 labelled images, 500 images
without labels collected from others, a ResNet-8 student. All arms have one budget of student steps.
Schedules are the published ones, scaled: 1,200 GAN iterations in place of 20,000 at a quarter of
the scaled width, 1,000 student steps. About 60 minutes of one core; `--seeds` shares it out.

    python tools/bench/hidfd_arms.py SHARED --keep RUNS
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arms import (
    Images,
    Runs,
    Split,
    accuracy,
    arguments,
    compare,
    summarize,
    write_result,
    write_set,
)
from fashion import AUGMENT, SIDE, read_task

from hydistill_edge.images.leak import check_leak
from hydistill_edge.images.pilot import choose_pilot
from hydistill_edge.images.transfer_format import Origin
from hydistill_edge.methods.hidfd import HiDFDSettings, distill, real_share
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.synthesis.gan import sample_gan, train_gan
from hydistill_edge.synthesis.gan_report import class_entropy
from hydistill_edge.synthesis.gan_settings import GanSettings

QUESTION = str(__doc__).splitlines()[0]

COLLECTED = 500
SYNTHETIC = 5000
GAN = GanSettings(iterations=1200, width=8, batch=100)
# At N = 10 half of the list are collected images, as published (5,000 times 10 against 50,000).
STUDENT = HiDFDSettings(steps=1000, inflation=10, augment=AUGMENT, evaluations=10)


@dataclass(frozen=True)
class Arm:
    """How one arm differs from the full method.

    Attributes:
        gan: which of `GANS`.
        student: settings that differ.
    """

    gan: str = "full"
    student: dict[str, Any] = field(default_factory=dict)


GANS = {
    "full": GAN,
    "wo_blend": replace(GAN, blend=0.0),
    "wo_transfer": replace(GAN, transfer=0.0),
    "wo_smoothing": replace(GAN, frequency=0.0),
}
ARMS = {
    "hybrid": Arm(),
    "collected": Arm(student={"arm": "collected"}),
    "synthetic": Arm(student={"arm": "synthetic"}),
    "wo_blend": Arm(gan="wo_blend"),
    "wo_transfer": Arm(gan="wo_transfer"),
    "wo_smoothing": Arm(gan="wo_smoothing"),
    "n_1": Arm(student={"inflation": 1}),
}
CLAIMS = (
    ("hybrid", "collected"),
    ("hybrid", "synthetic"),
    ("hybrid", "wo_blend"),
    ("hybrid", "wo_transfer"),
    ("hybrid", "wo_smoothing"),
    ("hybrid", "n_1"),
)


def collect(teacher: Teacher, candidates: Split, seed: int) -> Images:
    """Return the pilot images: those the teacher is sure of, balanced over its classes."""
    logits = network_logits(teacher, candidates.images)
    pilot = choose_pilot("confident", candidates.images, logits, count=COLLECTED, seed=seed)
    return candidates.images[pilot.rows]


def run(name: str, seed: int, teacher: Teacher, candidates: Split, test: Split, keep: Path) -> Any:
    """Train one arm and return its numbers; accuracy and entropy in percent."""
    started = time.monotonic()
    arm = ARMS[name]
    settings = replace(STUDENT, **arm.student)
    collected = collect(teacher, candidates, seed)
    gan = train_gan(
        teacher,
        collected,
        settings=GANS[arm.gan],
        workdir=keep / f"gan-{arm.gan}-{seed}",
        seed=seed,
    )
    made = sample_gan(gan, teacher, count=SYNTHETIC, seed=seed)
    parts: dict[str, tuple[Origin, Images]] = {
        "collected": ("real", collected),
        "gan": ("synthetic", made.images),
    }
    transfer = write_set(keep / f"set-{arm.gan}-{seed}", teacher, parts)
    student = Student.create(
        "resnet8", classes=teacher.classes, channels=1, size=(SIDE, SIDE), seed=seed
    )
    workdir = keep / f"student-{name}-{seed}"
    workdir.mkdir(exist_ok=True)
    trained = distill(teacher, student, transfer, settings, workdir=workdir, seed=seed)
    return {
        "accuracy": accuracy(trained.student, test),
        "class_entropy": 100 * class_entropy(made.class_counts),
        "recognized": 100 * made.hit,
        "near_copies": float(len(check_leak(made.images, collected).near_copies)),
        "real_share": real_share(COLLECTED, len(made.images), inflation=settings.inflation),
        "gan_seconds": gan.seconds,
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    """Train what is missing and write the result."""
    given = arguments(QUESTION)
    runs = Runs(given.keep, given.seeds)
    task = read_task(given.shared, given.keep)
    runs.do_all(
        ARMS,
        lambda name, seed: run(name, seed, task.teacher, task.unseen, task.test, given.keep),
    )
    entropy = runs.table(["hybrid", "wo_smoothing"], "class_entropy")
    write_result(
        "hidfd_arms",
        question=QUESTION,
        table=runs.table(list(ARMS)),
        claims=CLAIMS,
        more={
            "teacher_accuracy": accuracy(task.teacher, task.test),
            "class_entropy": {
                **summarize(entropy),
                "paired": compare(entropy, "hybrid", "wo_smoothing"),
            },
            "recognized": summarize(runs.table(["hybrid"], "recognized")),
            "task": {
                "data": "fashion_mnist",
                "size": [SIDE, SIDE, 1],
                "collected": COLLECTED,
                "synthetic": SYNTHETIC,
                "test_images": len(task.test),
                "gan_iterations": GAN.iterations,
                "student_steps": STUDENT.steps,
            },
        },
    )


if __name__ == "__main__":
    main()
