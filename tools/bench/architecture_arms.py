"""Does a large student on 100 real images come up to a small network, and by which parts?

CIFAR-10 at 32 px, 10 labelled images of each class, others for each seed; a ResNet-18 of width 0.25
beside a three-layer ConvNet of half the width, which is trained on the same images. Arms and their
proportions are the published ones at 600 steps in place of 4,000 (150 in place of 1,000 without
DropPath), with the rates as much higher. 100 further images choose the weights, 4,000 of the test
split judge them, once. About 23 minutes of one core; `--seeds` shares it out.

    python tools/bench/architecture_arms.py SHARED --keep RUNS
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import (
    SEEDS,
    Runs,
    Split,
    accuracy,
    class_names,
    input_spec,
    read_split,
    write_result,
)
from torch import Tensor, nn

from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods.arch_overfitting import (
    ArchOverfittingSettings,
    arms,
    distill,
)
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.targets.gates import at_least

QUESTION = str(__doc__).splitlines()[0]

SIDE = 32
PER_CLASS = 10  # to train on, and as many again to choose the weights
TEST_ROWS = "0:4000"
STUDENT, WIDTH = "resnet18", 0.25

# Frozen before the first run. A step in a training of 600 counts as much as 6.7 in one of 4,000, so
# the rates are higher by that; everything else is published.
SHORTER = 4000 / 600
FULL = ArchOverfittingSettings(
    steps=600,
    learning_rate=5e-5 * SHORTER,
    small="convnet3",
    small_width=0.5,
    small_steps=150,
    small_learning_rate=5e-4 * SHORTER,
    labels="true",
    holdout=0.5,
    evaluations=10,
    precision="float32",
)
SMALL = "small_network"
CLAIMS = (
    ("full", "wo_dp_kd"),
    ("wo_dp_kd", "baseline"),
    ("full", "baseline"),
    ("full", "wo_dp"),
    ("full", "wo_kd"),
    ("full", SMALL),
)
LEAST_CLOSED = 0.5


class Labels(nn.Module):
    """Stands where a teacher would: on labelled images there is none, and nobody asks it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


def few_images(train: Split, classes: int, seed: int) -> Split:
    """Return 2 x PER_CLASS images of each class, others for each seed."""
    choice = np.random.default_rng([seed, classes])
    rows = [
        choice.permutation(np.flatnonzero(train.labels == label))[: 2 * PER_CLASS]
        for label in range(classes)
    ]
    return train[np.concatenate(rows)]


def labelled_set(folder: Path, teacher: Teacher, images: Split) -> TransferSet:
    """Return a transfer set whose logits are the true labels, so that the hold-out goes by them."""
    if not folder.exists():
        logits = 10 * np.eye(len(teacher.classes), dtype=np.float32)[images.labels]
        with TransferSetWriter(
            folder,
            size=(SIDE, SIDE),
            channels=3,
            classes=teacher.classes,
            teacher_digest=teacher.digest,
            method="real",
        ) as writer:
            ids = [f"train-{row:05d}" for row in range(len(images))]
            writer.add(images.images, logits, origin="real", ids=ids, labels=images.labels)
    return TransferSet.open(folder)


def run(name: str, seed: int, full: ArchOverfittingSettings, data: Data, keep: Path) -> Any:
    """Train one arm and return its numbers; accuracies in percent."""
    started = time.monotonic()
    transfer = data.transfer(keep, seed)
    settings = arms(full)["baseline" if name == SMALL else name]  # type: ignore[index]
    architecture, width = STUDENT, WIDTH
    if name == SMALL:
        architecture, width = str(full.small), full.small_width
        settings = replace(settings, steps=full.small_steps, small=None)
    student = Student.create(
        architecture,
        classes=data.teacher.classes,
        channels=3,
        size=(SIDE, SIDE),
        width=width,
        seed=seed,
    )
    workdir = keep / f"training-{name}-{seed}"
    workdir.mkdir(parents=True, exist_ok=True)
    trained = distill(
        data.teacher,
        student,
        transfer,
        settings,
        workdir=workdir,
        seed=seed,
        small_workdir=keep / f"small-{seed}",
    )
    size = trained.student.count()
    return {
        "accuracy": accuracy(trained.student, data.test),
        "holdout_accuracy": 100 * trained.holdout_agreement,
        "best_step": trained.best_step,
        "params": size.params,
        "macs": size.macs,
        "seconds": time.monotonic() - started,
    }


class Data:
    """CIFAR-10 as this bench needs it.

    Args:
        shared: folder with `data/`.
        test_rows: of the test split.
    """

    def __init__(self, shared: Path, test_rows: str = TEST_ROWS) -> None:
        folder = shared / "data" / "cifar10"
        self.train = read_split(folder / "train.npz", side=SIDE, channels=3)
        self.test = read_split(folder / "test.npz", side=SIDE, channels=3, rows=test_rows)
        classes = class_names(folder / "train.npz")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Labels(len(classes))
        self.teacher = Teacher.wrap(
            network, classes=classes, spec=input_spec(self.train.images[:1000]), name="labels"
        )

    def transfer(self, keep: Path, seed: int) -> TransferSet:
        """Return the few images of a seed."""
        images = few_images(self.train, len(self.teacher.classes), seed)
        return labelled_set(keep / f"set-{seed}", self.teacher, images)


def closed_share(table: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Return how much of the baseline's gap to the small network the whole method closes.

    The ratio is that of the means; its standard error is by the delta method from paired seeds.
    """
    seeds = sorted(set.intersection(*(set(table[arm]) for arm in (SMALL, "baseline", "full"))))
    gap = np.array([table[SMALL][seed] - table["baseline"][seed] for seed in seeds])
    closed = np.array([table["full"][seed] - table["baseline"][seed] for seed in seeds])
    if not seeds or gap.mean() <= 0:
        return {"share": None, "why": "the baseline is not below the small network: no gap"}
    share = float(closed.mean() / gap.mean())
    error = None
    if len(seeds) > 1:
        rest = closed - share * gap
        error = float(np.std(rest, ddof=1) / math.sqrt(len(seeds)) / gap.mean())
    return {
        "share": share,
        "standard_error": error,
        "gap_points": float(gap.mean()),
        "why": "",
    }


def parse() -> argparse.Namespace:
    """Return the command line: SHARED, --keep, --seeds, --tiny."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("shared", type=Path, help="folder with `data/`")
    parser.add_argument("--keep", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument(
        "--tiny", action="store_true", help="eight steps and 100 test images; writes no result"
    )
    return parser.parse_args()


def main(names: Sequence[str] = (SMALL, *arms(FULL))) -> None:
    """Train what is missing and write the result."""
    given = parse()
    torch.set_num_threads(1)
    full = replace(FULL, steps=8, small_steps=2, evaluations=1) if given.tiny else FULL
    data = Data(given.shared, "0:100" if given.tiny else TEST_ROWS)
    runs = Runs(given.keep, given.seeds)
    runs.do_all(names, lambda name, seed: run(name, seed, full, data, given.keep))
    table = runs.table(list(names))
    closed = closed_share(table)
    gate = at_least("share of the gap closed", closed["share"], LEAST_CLOSED, unit="fraction")
    if given.tiny:
        print(table, closed)
        return
    write_result(
        "architecture_arms",
        question=QUESTION,
        table=table,
        claims=CLAIMS,
        more={
            "passed": gate.passed,
            "gates": [gate.to_dict()],
            "gap_closed": closed,
            "seeds": sorted(table["full"]),
            "task": {
                "data": "cifar10",
                "size": [SIDE, SIDE, 3],
                "images_per_class": PER_CLASS,
                "holdout_per_class": PER_CLASS,
                "test_images": len(data.test),
                "student": {"architecture": STUDENT, "width": WIDTH},
                "settings": {name: asdict(arm) for name, arm in arms(FULL).items()},
            },
        },
    )


if __name__ == "__main__":
    main()
