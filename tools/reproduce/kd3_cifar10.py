"""KD3 on CIFAR-10: ResNet-34 to ResNet-18 from a pool of web images that nobody labelled.

Published: 95.21 % (Tang et al. 2023, arXiv:2307.11469; read at second hand), with ImageNet brought
to 32 px as the pool, about 1.28 million images. That pool is the user's to bring, as `--pool`: an
npz file with `images`, a folder of images or tar shards. A smaller one runs too, and the result
says how small it was.

    python tools/reproduce/kd3_cifar10.py --data DATA --pool POOL --work RUN --minutes 9
    python tools/reproduce/kd3_cifar10.py --data DATA --pool POOL --work RUN --fast
    python tools/reproduce/kd3_cifar10.py --data DATA --pool POOL --work RUN --probe

Run the same command again until it ends with 0; 10 means that the minutes were up.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifier import ClassifierSettings, probe_classifier, probe_teacher, teacher_of
from common import (
    SPECS,
    Images,
    Phase,
    Split,
    Work,
    accuracy,
    arguments,
    pick_device,
    projection,
    read_pool,
    read_split,
    result_path,
    run_script,
    schedule_of,
    tell,
    time_steps,
    time_training,
    write_result,
    write_transfer,
)

from hydistill_edge.images.selection import PoolBatch, score_pool
from hydistill_edge.methods.kd3 import AUDIT, KD3Settings, distill
from hydistill_edge.methods.pool import Pool
from hydistill_edge.models.projected import project
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.training.loop import Progress
from hydistill_edge.training.precision import autocast

PUBLISHED = 0.9521
PUBLISHED_POOL = 1_281_167
SPEC = SPECS["CIFAR10"]


@dataclass(frozen=True)
class Schedule:
    """All that is set before a run.

    Attributes:
        teacher: how it is trained.
        student: how the student is.
        architecture: of the student, in the zoo.
        width: multiplier of its channels.
        pool_limit: images of the pool at most; None for all.
    """

    teacher: ClassifierSettings
    student: KD3Settings
    architecture: str = "resnet18"
    width: float = 1.0
    pool_limit: int | None = None


SCHEDULES = {
    "published": Schedule(
        ClassifierSettings("resnet34"), KD3Settings(holdout=0.002, checkpoint_seconds=20.0)
    ),
    # Ours: one cycle, averaged weights, 200,000 images of the pool, 4.6 million views of them.
    "fast": Schedule(
        ClassifierSettings(
            "resnet34",
            epochs=45,
            batch=512,
            learning_rate=0.4,
            schedule="one_cycle",
            ema_share=0.02,
            evaluations=5,
        ),
        KD3Settings(
            epochs=30,
            steps_per_epoch=150,
            learning_rate=0.2,
            schedule="one_cycle",
            ema_share=0.02,
            holdout=0.01,
            evaluations=5,
            teacher_contrast=False,  # it does not reach the student
        ),
        pool_limit=200_000,
    ),
    "smoke": Schedule(
        ClassifierSettings("resnet8", width=0.5, steps=4, batch=8, holdout=4, evaluations=1),
        KD3Settings(epochs=2, steps_per_epoch=1, batch=8, embedding=8, evaluations=1),
        "resnet8",
        width=0.25,
    ),
}


def run(given: argparse.Namespace) -> None:
    """Do the whole experiment, or go on with it, or time its phases."""
    device = pick_device(given.device)
    schedule = SCHEDULES[schedule_of(given)]
    train = read_split(given.data, "CIFAR10", train=True)
    pool = read_pool(given.pool, size=SPEC.size, limit=schedule.pool_limit)
    facts = {
        "reproduces": "KD3, CIFAR-10, ResNet-34 to ResNet-18",
        "published": {"accuracy": PUBLISHED, "source": "arXiv:2307.11469, at second hand"},
        "schedule": schedule_of(given),
        "settings": asdict(schedule),
        "seed": given.seed,
        "train_images": len(train),
        "pool": {"name": given.pool.name, "images": len(pool), "note": pool_note(len(pool))},
    }
    out = result_path(given, "kd3_cifar10")
    if given.probe is not None:
        planned = schedule.pool_limit or PUBLISHED_POOL
        if given.probe_batch is not None:
            schedule = replace(schedule, student=smaller(schedule.student, given.probe_batch))
        found = projection(
            probe(train, pool, schedule, given.probe, device, planned=planned), device
        )
        write_result(out, {**facts, "planned_pool": planned, **found}, device=device)
        return
    with Work(given.work, {**facts, "device": device.type}) as work:
        teacher, told = teacher_of(
            work, train, SPEC, schedule.teacher, seed=given.seed, device=device
        )
        test = read_split(given.data, "CIFAR10", train=False)

        def make(folder: Path) -> dict[str, Any]:
            found = distill(
                teacher,
                create_student(teacher, schedule, given.seed),
                write_transfer(folder / "pool", teacher, [(pool, "web")], method="kd3"),
                schedule.student,
                workdir=folder,
                seed=given.seed,
                device=device,
                progress=tell("student"),
            )
            found.student.save(folder / "student")
            return {
                "test_accuracy": accuracy(found.student, test),
                "holdout_agreement": found.holdout_agreement,
                "steps": found.steps,
                "best_step": found.best_step,
                "seconds": found.seconds,
                "deployed": asdict(found.student.count()),
                "selected": [epoch["selected"] for epoch in found.documents[AUDIT]["epochs"]],
            }

        student = work.part("student", make)
        done = {
            "test_images": len(test),
            "teacher": {**told, "test_accuracy": accuracy(teacher, test)},
            "student": student,
            "against_published_points": 100 * (student["test_accuracy"] - PUBLISHED),
            "wall_s": work.wall_s,
            "note": "weights were chosen on a hold-out; the test split was read at the end",
        }
    write_result(out, {**facts, **done}, device=device)


def smaller(settings: KD3Settings, batch: int) -> KD3Settings:
    """Return settings that see as many images in smaller batches."""
    steps = settings.steps_per_epoch
    if steps is not None:
        steps = -(-steps * settings.batch // batch)
    return replace(settings, batch=batch, steps_per_epoch=steps)


def pool_note(count: int) -> str:
    """Return how the pool compares with the published one, in a sentence."""
    if count >= PUBLISHED_POOL // 2:
        return f"{count:,} images; the published pool had about {PUBLISHED_POOL:,}"
    return (
        f"a small pool: {count:,} images, where the published one had about {PUBLISHED_POOL:,}; "
        "the published accuracy is not to be expected of it"
    )


def create_student(teacher: Teacher, schedule: Schedule, seed: int) -> Student:
    """Return an untrained student."""
    return Student.create(
        schedule.architecture,
        classes=teacher.classes,
        channels=3,
        size=SPEC.size,
        width=schedule.width,
        seed=seed,
    )


def probe(
    train: Split,
    pool: Images,
    schedule: Schedule,
    steps: int,
    device: torch.device,
    *,
    planned: int,
) -> list[Phase]:
    """Return what each phase costs, by a few steps of it, with an untrained teacher.

    Args:
        train: the teacher's images.
        pool: some of it is used.
        schedule: of both networks.
        steps: to time.
        device: where.
        planned: images of the pool that the cost is projected for.
    """
    settings = schedule.student
    few = pool[: 2 * settings.batch]
    per_epoch = settings.steps_per_epoch or -(-planned // settings.batch)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        teacher = probe_teacher(train, SPEC, schedule.teacher, workdir=folder, device=device)
        phases = [probe_classifier(train, SPEC, schedule.teacher, steps=steps, device=device)]
        transfer = write_transfer(folder / "pool", teacher, [(few, "web")], method="probe")
        student = project(create_student(teacher, schedule, 0), teacher).to(device).eval()
        rows = np.arange(len(few))[: settings.batch]
        held = Pool(transfer, device)

        def batches() -> Iterator[PoolBatch]:
            yield PoolBatch(rows, held.images(rows), held.logits(rows))

        def select() -> None:
            with autocast(device, settings.precision):
                score_pool(batches(), student=student, share=0.5, classes=len(teacher.classes))

        phases.append(
            time_steps(
                "selection, one batch a step",
                select,
                steps=steps,
                batch=len(rows),
                planned_steps=settings.epochs * -(-planned // settings.batch),
                device=device,
            )
        )

        def start(progress: Progress, total: int) -> None:
            distill(
                teacher,
                create_student(teacher, schedule, 0),
                transfer,
                # One epoch: its selection falls into the warm-up.
                replace(
                    settings,
                    epochs=1,
                    steps_per_epoch=total,
                    evaluations=1,
                    checkpoint_seconds=1e9,
                    selection="all",
                    holdout=0.05,
                ),
                workdir=folder / "student",
                device=device,
                progress=progress,
            )

        phases.append(
            time_training(
                "student, were all of the pool selected",
                start,
                steps=steps,
                batch=settings.batch,
                planned_steps=settings.epochs * per_epoch,
            )
        )
    return phases


def main() -> int:
    """Run as a script."""
    parser = arguments(__doc__ or "", dataset="CIFAR-10")
    parser.add_argument("--pool", type=Path, required=True, help="web images: npz, folder, shards")
    parser.add_argument("--probe-batch", type=int, help="fewer images a step, for a small memory")
    return run_script(run, parser)


if __name__ == "__main__":
    sys.exit(main())
