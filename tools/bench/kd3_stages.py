"""Does each part of KD3 pay on a pool of which half does not fit: selection, weights, mixing?

Fashion-MNIST at 16 px, grey: a ResNet-20 teacher trained on 15,000 labelled images, a ResNet-8
student. The pool holds 2,500 images of the teacher's kind that it never saw, and as many that do
not fit: edge drawings, inverted images, and handwritten digits. Every stage has one budget of
steps. 16 epochs stand for the published 240, on the same curve. About 10 minutes of one core for
each seed.

    python tools/bench/kd3_stages.py SHARED --keep RUNS
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arms import (
    Images,
    Runs,
    Split,
    accuracy,
    arguments,
    compare,
    read_split,
    summarize,
    write_result,
    write_set,
)
from fashion import AUGMENT, SIDE, read_task

from hydistill_edge.images.transfer_format import Origin
from hydistill_edge.methods.kd3 import KD3Settings, distill
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher

QUESTION = str(__doc__).splitlines()[0]

FITTING = 2500
NOISE = ("drawing", "inverted", "unrelated")
POOL_SHARES = {"pool_20": 0.2, "pool_5": 0.05}
FULL = KD3Settings(epochs=16, steps_per_epoch=60, batch=128, augment=AUGMENT, evaluations=8)

STAGES = {
    "all_pool": replace(FULL, selection="all", weights=False, mixing=False),
    "selection": replace(FULL, weights=False, mixing=False),
    "weights": replace(FULL, mixing=False),
    "full": FULL,
    "random_subset": replace(FULL, selection="random"),
    "no_selection": replace(FULL, selection="all"),
}
CLAIMS = (
    ("full", "no_selection"),
    ("no_selection", "random_subset"),
    ("full", "random_subset"),
    ("selection", "all_pool"),
    ("weights", "selection"),
    ("full", "weights"),
)


def drawing(images: Images) -> Images:
    """Return the edges of images (N, H, W, C), dark on white."""
    grey = images.astype(np.float32).mean(axis=3)
    down, right = np.gradient(grey, axis=(1, 2))
    found: Images = np.clip(255 - 4 * np.hypot(down, right), 0, 255).astype(np.uint8)[..., None]
    return found


def restyled(images: Images, *, seed: int) -> Images:
    """Return images (N, H, W, C) with other contrast and brightness, drawn per image."""
    draw = np.random.default_rng(seed)
    shape = (len(images), 1, 1, 1)
    gain, shift = draw.uniform(0.4, 1.4, shape), draw.uniform(-60, 60, shape)
    pixels = images.astype(np.float32)
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    found: Images = np.clip((pixels - mean) * gain + mean + shift, 0, 255).round().astype(np.uint8)
    return found


def make_pool(fitting: Images, foreign: Images, seed: int) -> dict[str, tuple[Origin, Images]]:
    """Return the pool by kind: half of it fits, a third of the rest is of each kind of noise."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(fitting))
    each = FITTING // len(NOISE)
    spoilt = fitting[order[FITTING : FITTING + 2 * each]]
    return {
        "fitting": ("web", fitting[order[:FITTING]]),
        "drawing": ("web", drawing(spoilt[:each])),
        "inverted": ("web", 255 - spoilt[each:]),
        "unrelated": ("web", foreign[draw.permutation(len(foreign))[: FITTING - 2 * each]]),
    }


def run(
    settings: KD3Settings,
    name: str,
    seed: int,
    teacher: Teacher,
    images: tuple[Images, Images],
    tests: dict[str, Split],
    keep: Path,
) -> dict[str, Any]:
    """Train one stage and return its numbers; accuracies and shares in percent."""
    started = time.monotonic()
    share = POOL_SHARES.get(name, 1.0)
    pool = {
        kind: (origin, some[: round(share * len(some))])
        for kind, (origin, some) in make_pool(*images, seed).items()
    }
    transfer = write_set(keep / f"pool-{share:g}-{seed}", teacher, pool)
    student = Student.create(
        "resnet8", classes=teacher.classes, channels=1, size=(SIDE, SIDE), seed=seed
    )
    workdir = keep / f"student-{name}-{seed}"
    workdir.mkdir(exist_ok=True)
    trained = distill(teacher, student, transfer, settings, workdir=workdir, seed=seed)
    epochs = trained.documents["selection.json"]["epochs"]
    return {
        "accuracy": accuracy(trained.student, tests["plain"]),
        "accuracy_restyled": accuracy(trained.student, tests["restyled"]),
        "fitting_share_first": _fitting(epochs[0]),
        "fitting_share_last": _fitting(epochs[-1]),
        "selected": [sum(kind["selected"] for kind in _kinds(epoch).values()) for epoch in epochs],
        "fitting_share": [_fitting(epoch) for epoch in epochs],
        "kinds_last": _kinds(epochs[-1]),
        "seconds": time.monotonic() - started,
    }


def _kinds(epoch: Any) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = epoch["per_source"]
    return found


def _fitting(epoch: Any) -> float:
    kinds = _kinds(epoch)
    return 100 * kinds["fitting"]["selected"] / sum(kind["selected"] for kind in kinds.values())


def main() -> None:
    """Train what is missing and write the result."""
    given = arguments(QUESTION)
    runs = Runs(given.keep, given.seeds)
    task = read_task(given.shared, given.keep)
    digits_file = given.shared / "data" / "mnist_subset" / "train.npz"
    digits = read_split(digits_file, side=SIDE, channels=1)
    teacher, test = task.teacher, task.test
    tests = {"plain": test, "restyled": Split(restyled(test.images, seed=0), test.labels)}
    images = (task.unseen.images, digits.images)
    arms = {**STAGES, **dict.fromkeys(POOL_SHARES, FULL)}
    runs.do_all(
        arms,
        lambda name, seed: run(arms[name], name, seed, teacher, images, tests, given.keep),
    )
    restyled_table = runs.table(list(arms), "accuracy_restyled")
    shares = {
        when: runs.table(["full"], f"fitting_share_{when}")["full"] for when in ("first", "last")
    }
    write_result(
        "kd3_stages",
        question=QUESTION,
        table=runs.table(list(arms)),
        claims=CLAIMS,
        more={
            "teacher_accuracy": {name: accuracy(teacher, split) for name, split in tests.items()},
            "restyled": {
                "arms": summarize(restyled_table),
                "paired": compare(restyled_table, "full", "weights"),
            },
            "fitting_share": {**summarize(shares), "paired": compare(shares, "last", "first")},
            "task": {
                "data": "fashion_mnist, mnist_subset",
                "size": [SIDE, SIDE, 1],
                "pool": 2 * FITTING,
                "pool_shares": POOL_SHARES,
                "noise": list(NOISE),
                "test_images": len(test),
                "student_steps": FULL.epochs * (FULL.steps_per_epoch or 0),
            },
        },
    )


if __name__ == "__main__":
    main()
