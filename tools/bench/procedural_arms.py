"""What do images from formulas add to images inverted from the teacher, where none is real?

Fashion-MNIST at 16 px, grey: a ResNet-20 teacher trained on 15,000 labelled images, and a student
that starts as the teacher with at most a quarter of its multiply-accumulates, trained by method kd
on 1,000 images that are no photographs: inverted ones, ones from formulas, or half and half
(`both`). Those from formulas are as many of each class, of such that fit the teacher's memory, sure
ones first, with rare classes crossed (`procedural`); without one of these (`any_fit`, `any_sure`,
`uncrossed`), or the first that come (`unchosen`). `hinted` is `procedural` with a hint of weight 1
on the penultimate vector. About 25 minutes of one core.

    python tools/bench/procedural_arms.py SHARED --keep RUNS
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arms import Images, Runs, accuracy, arguments, write_result, write_set
from fashion import AUGMENT, read_task

from hydistill_edge.images.transfer_format import Origin
from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.methods.kd import KDSettings, distill
from hydistill_edge.models.slimming import slim
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.stages.logits import network_answer
from hydistill_edge.synthesis.inversion import InversionSettings, invert
from hydistill_edge.synthesis.procedural import draw
from hydistill_edge.synthesis.procedural_set import ProceduralSettings, draw_set

QUESTION = str(__doc__).splitlines()[0]

# Frozen before the first run.
SHARE = 0.25
DRAWS = 8
IMAGES = 1000
SETTINGS = KDSettings(steps=800, batch=64, augment=AUGMENT, evaluations=8)
INVERSION = InversionSettings(flip=True)
CHOICE: dict[str, Any] = {"draws": DRAWS, "only_fitting": True, "confidence": 0.5, "crosses": 4}
WITHOUT: dict[str, dict[str, Any]] = {
    "any_fit": {"only_fitting": False},
    "any_sure": {"confidence": 0.0},
    "uncrossed": {"crosses": 0},
}
HINT = replace(SETTINGS, feature_weight=1.0)
ARMS = ("inverted", "procedural", *WITHOUT, "hinted", "unchosen", "both")
CLAIMS = (
    ("both", "inverted"),
    ("procedural", "inverted"),
    ("procedural", "unchosen"),
    *(("procedural", name) for name in WITHOUT),
    ("hinted", "procedural"),
    ("both", "procedural"),
)


def set_of(name: str, teacher: Teacher, seed: int, keep: Path) -> TransferSet:
    """Return the images of one arm and seed."""
    if name == "hinted":
        return set_of("procedural", teacher, seed, keep)
    folder = keep / f"set-{name}-{seed}"
    if folder.exists():
        return TransferSet.open(folder)
    half = IMAGES // 2 if name == "both" else IMAGES
    parts: dict[str, tuple[Origin, Images]] = {}
    if name in ("inverted", "both"):
        made = invert(teacher, count=half, settings=INVERSION, seed=seed)
        parts["inverted"] = ("synthetic", made.images)
    if name != "inverted":
        parts["procedural"] = ("procedural", _drawn(name, teacher, half, seed))
    return write_set(folder, teacher, parts)


def _drawn(name: str, teacher: Teacher, count: int, seed: int) -> Images:
    spec = teacher.spec
    like: dict[str, Any] = {"size": spec.size, "channels": spec.channels, "seed": seed}
    like |= {"mean": spec.mean, "std": spec.std}
    if name == "unchosen":
        return draw(0, count, **like)
    return draw_set(
        lambda images: network_answer(teacher, images),
        ProceduralSettings(count=count, **(CHOICE | WITHOUT.get(name, {}))),
        classes=len(teacher.classes),
        **like,
    ).images


def main() -> None:
    """Run what is missing and write the result."""
    given = arguments(QUESTION)
    task = read_task(given.shared, given.keep)
    runs = Runs(given.keep, given.seeds)
    teacher = task.teacher

    def run(name: str, seed: int) -> dict[str, Any]:
        started = time.monotonic()
        workdir = given.keep / f"student-{name}-{seed}"
        workdir.mkdir(exist_ok=True)
        transfer = set_of(name, teacher, seed, given.keep)
        trained = distill(
            teacher,
            slim(teacher, macs_share=SHARE),
            transfer,
            HINT if name == "hinted" else SETTINGS,
            workdir=workdir,
            seed=seed,
        )
        return {
            "accuracy": accuracy(trained.student, task.test),
            "images": len(transfer),
            "per_class": np.bincount(
                transfer.pseudo_labels, minlength=len(teacher.classes)
            ).tolist(),
            "seconds": time.monotonic() - started,
        }

    runs.do_all(ARMS, run)
    write_result(
        "procedural_arms",
        question=QUESTION,
        table=runs.table(ARMS),
        claims=CLAIMS,
        more={
            "teacher_accuracy": accuracy(teacher, task.test),
            "images": {name: runs.table([name], "images")[name] for name in ARMS},
        },
    )


if __name__ == "__main__":
    main()
