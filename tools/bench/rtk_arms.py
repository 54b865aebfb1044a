"""Does imitating the teacher's layers pay, and does choosing the representative ones pay more?

Fashion-MNIST at 16 px, grey: a ResNet-20 teacher trained on 15,000 labelled images, a ResNet-8
student and 1,000 other images without labels. Arms are method kd, the parent AFD, RTK, RTK with all
keys, and with as many random ones. In the second part three of the teacher's layers are replaced by
noise, as taps that carry nothing; RTK should leave them out. About 25 minutes of one core.

    python tools/bench/rtk_arms.py SHARED --keep RUNS
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arms import (
    Images,
    Runs,
    Split,
    accuracy,
    arguments,
    summarize,
    write_result,
    write_set,
)
from fashion import AUGMENT, SIDE, read_task
from torch import Tensor

from hydistill_edge.methods import kd, rtk
from hydistill_edge.methods.kd import KDSettings
from hydistill_edge.methods.rtk import RTKSettings
from hydistill_edge.models.student import Student
from hydistill_edge.models.tap_choice import default_taps
from hydistill_edge.models.teacher import Features, Teacher

QUESTION = str(__doc__).splitlines()[0]

IMAGES = 1000
CORRUPTED = 3
RTK = RTKSettings(steps=1000, augment=AUGMENT, evaluations=8)
PLAIN = {
    "batch": RTK.batch,
    "learning_rate": RTK.rates["fresh"],
    "schedule": RTK.schedule,
    "mixup_share": RTK.mixup_share,
}
ARMS: dict[str, KDSettings] = {
    "kd": KDSettings(steps=RTK.steps, augment=AUGMENT, evaluations=8, **PLAIN),  # type: ignore[arg-type]
    "afd": replace(RTK, variant="afd"),
    "rtk": RTK,
    "all_keys": replace(RTK, variant="all_keys"),
    "random_keys": replace(RTK, variant="random_keys"),
}
CORRUPTED_ARMS = {
    "corrupted_rtk": RTK,
    "corrupted_all_keys": ARMS["all_keys"],
}
CLAIMS = (
    ("rtk", "afd"),
    ("afd", "kd"),
    ("rtk", "kd"),
    ("rtk", "all_keys"),
    ("all_keys", "random_keys"),
    ("corrupted_rtk", "corrupted_all_keys"),
)


class CorruptedTeacher(Teacher):
    """A teacher some of whose layers are read as noise of the same mean and deviation.

    Its answers are those of the teacher that it is made of.

    Args:
        teacher: to corrupt.
        taps: the layers that carry nothing.
        seed: of the noise.
    """

    def __init__(self, teacher: Teacher, taps: Sequence[str], *, seed: int) -> None:
        super().__init__(
            teacher.network,
            classes=teacher.classes,
            spec=teacher.spec,
            architecture=teacher.architecture,
        )
        self.corrupted = tuple(taps)
        self._noise = torch.Generator().manual_seed(seed)

    def features(self, pixels: Tensor, taps: Sequence[str] = ()) -> Features:
        """Return the features with noise in place of the corrupted taps."""
        found = super().features(pixels, taps)
        noisy = {name: self._replaced(found.taps[name]) for name in self.corrupted if name in taps}
        return replace(found, taps={**found.taps, **noisy})

    def _replaced(self, features: Tensor) -> Tensor:
        noise = torch.randn(features.shape, generator=self._noise)
        return features.mean() + features.std() * noise


def run(
    settings: KDSettings,
    name: str,
    seed: int,
    teacher: Teacher,
    images: Images,
    test: Split,
    keep: Path,
) -> dict[str, Any]:
    """Train one arm and return its numbers; accuracies in percent."""
    started = time.monotonic()
    transfer = write_set(keep / "set", teacher, {"unlabelled": ("real", images)})
    student = Student.create(
        "resnet8", classes=teacher.classes, channels=1, size=(SIDE, SIDE), seed=seed
    )
    workdir = keep / f"student-{name}-{seed}"
    workdir.mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    if isinstance(settings, RTKSettings):
        if name in CORRUPTED_ARMS:
            taps = default_taps(teacher.network, teacher.tap_shapes())
            # Every third layer from the second on, so that each part of the network has one.
            teacher = CorruptedTeacher(teacher, taps[1::3][:CORRUPTED], seed=seed)
        trained = rtk.distill(teacher, student, transfer, settings, workdir=workdir, seed=seed)
        found["keys"] = trained.documents["keys.json"]
    else:
        trained = kd.distill(teacher, student, transfer, settings, workdir=workdir, seed=seed)
    if isinstance(teacher, CorruptedTeacher):
        found["corrupted"] = list(teacher.corrupted)
    return {
        "accuracy": accuracy(trained.student, test),
        "seconds": time.monotonic() - started,
        **found,
    }


def main() -> None:
    """Train what is missing and write the result."""
    given = arguments(QUESTION)
    runs = Runs(given.keep, given.seeds)
    task = read_task(given.shared, given.keep)
    teacher, test = task.teacher, task.test
    images = task.unseen.images[:IMAGES]
    arms = {**ARMS, **CORRUPTED_ARMS}
    runs.do_all(
        arms, lambda name, seed: run(arms[name], name, seed, teacher, images, test, given.keep)
    )
    write_result(
        "rtk_arms",
        question=QUESTION,
        table=runs.table(list(arms)),
        claims=CLAIMS,
        more={
            "teacher_accuracy": accuracy(teacher, test),
            "keys": {name: kept_keys(runs, name) for name in ("rtk", "corrupted_rtk")},
            "seconds": summarize(runs.table(list(arms), "seconds")),
            "task": {
                "data": "fashion_mnist",
                "size": [SIDE, SIDE, 1],
                "unlabelled": IMAGES,
                "test_images": len(test),
                "student_steps": RTK.steps,
            },
        },
    )


def kept_keys(runs: Runs, name: str) -> list[dict[str, Any]]:
    """Return per seed the influence of every key over the mean one, and which were kept."""
    found = []
    for seed in runs.seeds:
        done = runs.do(name, seed, dict)
        keys = done["keys"]["layers"]
        mean = sum(key["influence"] for key in keys) / len(keys)
        found.append(
            {
                "seed": seed,
                "corrupted": done.get("corrupted", []),
                "kept": [key["layer"] for key in keys if key["chosen"]],
                "influence": {key["layer"]: key["influence"] / mean for key in keys},
            }
        )
    return found


if __name__ == "__main__":
    main()
