"""The cure for architecture overfitting on CIFAR-10: large networks on ten images per class.

Published (Zhong and Liu 2025, arXiv:2309.04195, in part at second hand, from reviews), on MTT's set
of 10 images per class: baseline and whole method 48.9 and 67.4 % for ResNet-18, 28.1 and 63.8 for
ResNet-50, 52.6 and 67.1 for VGG-11, 56.9 and 68.3 for AlexNet, against 63.6 of the three-layer
network; on FRePo's, 66.6 for ResNet-18, 64.0 without DropPath, 63.9 without the small network. On
100 real images the whole method is above the three-layer network, and the baseline is not.

    python tools/reproduce/arch_overfitting_cifar10.py --data DATA --work RUN --minutes 9
    python tools/reproduce/arch_overfitting_cifar10.py --data DATA --work RUN --set infer
    python tools/reproduce/arch_overfitting_cifar10.py --data DATA --work RUN --set mtt.npz --zca
    python tools/reproduce/arch_overfitting_cifar10.py --data DATA --work RUN --probe

A distilled set is your own npz file: `images` (N, 3, 32, 32) or (N, 32, 32, 3), as the networks see
them, and `labels`, classes (N,) or scores (N, 10), which `--label-temperature` softens. `--zca`
whitens the real images as the set's authors did. For FRePo's: `--small convnet3_bn
--label-temperature 0.3 --zca`. The weights are chosen on 1,000 other training images, where the
best epoch on the test set was published. VGG-11 is the zoo's, whose last map keeps 4 px a side.

Run the same command again until it ends with 0; 10 means that the minutes were up.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import infer_cifar100
import numpy as np
import torch
from classifier import ClassifierSettings, teacher_of
from common import (
    SPECS,
    Images,
    Phase,
    Split,
    Work,
    accuracy,
    arguments,
    hold_out,
    pick_device,
    projection,
    read_split,
    result_path,
    run_script,
    schedule_of,
    tell,
    time_training,
    write_result,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.errors import UsageError
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods.arch_overfitting import (
    DOCUMENT,
    ArchOverfittingSettings,
    arms,
    distill,
)
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.training.loop import Progress

SPEC = SPECS["CIFAR10"]
SIDE = SPEC.height
PER_CLASS, HELD_OUT = 10, 1000
ZCA_EPS = 0.1
KEPT_RANGE = 0.999
"""Share of a distilled set's values that its range covers; beyond it they are clipped."""

SMALL = "small_network"
ARMS = tuple(arms())
ARCHITECTURES = ("resnet18", "resnet50", "vgg11_bn", "alexnet")

PUBLISHED = {
    "mtt": {
        "small_network": 0.636,
        "resnet18": {"baseline": 0.489, "full": 0.674},
        "resnet50": {"baseline": 0.281, "full": 0.638},
        "vgg11_bn": {"baseline": 0.526, "full": 0.671},
        "alexnet": {"baseline": 0.569, "full": 0.683},
    },
    "frepo": {"resnet18": {"full": 0.666, "wo_dp": 0.640, "wo_kd": 0.639}},
}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Schedule:
    """All that is set before a run.

    Attributes:
        full: settings of the whole method; the arms follow from it.
        infer: how an INFER set is made.
        width: multiplier of the students' channels.
        held_out: real images that choose the weights.
    """

    full: ArchOverfittingSettings
    infer: infer_cifar100.Schedule
    width: float = 1.0
    held_out: int = HELD_OUT


FULL = ArchOverfittingSettings(checkpoint_seconds=20.0)


def _infer(name: str) -> infer_cifar100.Schedule:
    schedule = infer_cifar100.SCHEDULES[name]
    return replace(schedule, compensators=replace(schedule.compensators, ipc=PER_CLASS))


SCHEDULES = {
    "published": Schedule(FULL, _infer("published")),
    # Ours: a quarter of the steps at four times the rates.
    "fast": Schedule(
        replace(
            FULL,
            steps=1000,
            learning_rate=2e-4,
            small_steps=250,
            small_learning_rate=2e-3,
            evaluations=10,
        ),
        _infer("fast"),
    ),
    "smoke": Schedule(
        replace(FULL, steps=8, small_steps=2, small_width=0.1, evaluations=1),
        replace(
            infer_cifar100.SCHEDULES["smoke"],
            networks=tuple(
                ClassifierSettings(name, width=0.25, steps=2, batch=8, holdout=4, evaluations=1)
                for name in ("resnet8", "vgg8_bn")
            ),
        ),
        width=0.125,
        held_out=8,
    ),
}


@dataclass(frozen=True)
class FewImages:
    """A small set to train on, and real images beside it.

    Attributes:
        images: (N, 32, 32, 3) uint8.
        scores: (N, 10); their softmax at the label temperature are the labels.
        labels: `hard` where the scores stand for classes, else `soft`.
        held_out: real images that choose the weights, in the same pixels.
        test: the test split, in the same pixels.
        facts: what is to be said of the set.
    """

    images: Images
    scores: Floats
    labels: str
    held_out: Split
    test: Split
    facts: dict[str, Any]


class Labels(nn.Module):
    """Stands where a teacher would: the set's labels are all that is known."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


def one_hot(labels: NDArray[np.int64], classes: int) -> Floats:
    """Return scores whose first class is the label."""
    return 10 * np.eye(classes, dtype=np.float32)[labels]


def real_images(train: Split, test: Split, schedule: Schedule, seed: int) -> FewImages:
    """Return ten real images of each class."""
    rest, held = hold_out(train.labels, schedule.held_out, seed=seed)
    choice = np.random.default_rng(seed)
    rows = np.concatenate(
        [
            choice.permutation(rest[train.labels[rest] == label])[:PER_CLASS]
            for label in range(len(train.class_names))
        ]
    )
    few = train.take(rows)
    scores = one_hot(few.labels, len(train.class_names))
    facts = {"set": "real", "images": len(few)}
    return FewImages(few.images, scores, "hard", train.take(held), test, facts)


def infer_images(
    train: Split,
    test: Split,
    schedule: Schedule,
    seed: int,
    *,
    work: Work,
    device: torch.device,
) -> FewImages:
    """Return an INFER set of ten images of each class, with its static labels."""
    networks = [
        teacher_of(work, train, SPEC, settings, seed=seed, device=device, name=f"network-{place}")[
            0
        ]
        for place, settings in enumerate(schedule.infer.networks)
    ]
    told = work.part(
        "set",
        lambda folder: infer_cifar100.make(
            networks[0], networks[1:], train, schedule.infer, folder, seed, device
        ),
    )
    made = TransferSet.open(work.folder / "set" / "transfer")
    rows = np.arange(len(made))
    _rest, held = hold_out(train.labels, schedule.held_out, seed=seed)
    facts = {"set": "infer", "images": len(made), **told}
    return FewImages(made.images(rows), made.logits(rows), "soft", train.take(held), test, facts)


def distilled_images(
    path: Path, train: Split, test: Split, schedule: Schedule, seed: int, *, zca: bool
) -> FewImages:
    """Return a user's distilled set, and real images as its networks see them.

    Both are brought to bytes by one range around zero, so that mid-grey is what zero was.

    Raises:
        UsageError: the file lacks images or labels, or they do not fit each other.
    """
    with np.load(path) as file:
        missing = [name for name in ("images", "labels") if name not in file]
        if missing:
            raise UsageError(f"{path}: no {' and no '.join(missing)} in it; {_FORM}")
        images, labels = file["images"].astype(np.float32), file["labels"]
    if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    classes = len(train.class_names)
    hard = labels.ndim == 1
    if (
        images.shape[1:] != (SIDE, SIDE, 3)
        or len(labels) != len(images)
        or (not hard and labels.shape[1] != classes)
    ):
        raise UsageError(f"{path}: images {images.shape} with labels {labels.shape}; {_FORM}")
    _rest, held = hold_out(train.labels, schedule.held_out, seed=seed)
    seen = as_networks_see(train, zca=zca)
    limit = float(np.quantile(np.abs(images), KEPT_RANGE))

    def in_bytes(values: Floats) -> Images:
        return np.clip(np.rint(values / limit * 127.5 + 127.5), 0, 255).astype(np.uint8)

    chosen, whole = train.take(held), seen(test.images)
    return FewImages(
        in_bytes(images),
        one_hot(labels.astype(np.int64), classes) if hard else labels.astype(np.float32),
        "hard" if hard else "soft",
        replace(chosen, images=in_bytes(seen(chosen.images))),
        replace(test, images=in_bytes(whole)),
        {
            "set": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "images": len(images),
            "zca": zca,
            "range": limit,
            "clipped_test_values": float((np.abs(whole) > limit).mean()),
        },
    )


_FORM = (
    f"expected images (N, 3, {SIDE}, {SIDE}) or (N, {SIDE}, {SIDE}, 3) as the networks see them, "
    "and labels (N,) or (N, 10)"
)


def as_networks_see(train: Split, *, zca: bool) -> Callable[[Images], Floats]:
    """Return what brings real images to zero mean and unit variance, or whitens them.

    Whitening: with the mean m and the covariance U diag(s) U^T of all training images, each of
    which is first centred and scaled by its own values, (x - m) U diag(1 / sqrt(s + eps)) U^T.
    """
    mean, std = np.float32(SPEC.mean), np.float32(SPEC.std)
    if not zca:
        return lambda images: (images.astype(np.float32) / 255 - mean) / std

    def rows_of(images: Images) -> Floats:
        rows = (images.astype(np.float32) / 255).reshape(len(images), -1)
        rows = rows - rows.mean(axis=1, keepdims=True)
        scaled: Floats = rows / np.sqrt(rows.var(axis=1, ddof=1, keepdims=True) + 10 / 255**2)
        return scaled

    rows = torch.from_numpy(rows_of(train.images)).double()
    centre = rows.mean(dim=0)
    covariance = (rows - centre).T @ (rows - centre) / len(rows)
    values, vectors = torch.linalg.eigh(covariance)
    whiten = vectors @ torch.diag((values.clamp_min(0) + ZCA_EPS).rsqrt()) @ vectors.T

    def whitened(images: Images) -> Floats:
        found = (torch.from_numpy(rows_of(images)).double() - centre) @ whiten
        return found.float().numpy().reshape(images.shape)

    return whitened


def labels_of(train: Split) -> Teacher:
    """Return what stands where a teacher would."""
    network = Labels(len(train.class_names))
    return Teacher.wrap(network, classes=train.class_names, spec=SPEC, name="labels")


def write_set(folder: Path, few: FewImages, teacher: Teacher) -> TransferSet:
    """Return the set as a transfer set: what trains first, then what chooses the weights."""
    if not folder.exists():
        with TransferSetWriter(
            folder,
            size=(SIDE, SIDE),
            channels=3,
            classes=teacher.classes,
            teacher_digest=teacher.digest,
            method="labels",
        ) as writer:
            chosen = one_hot(few.held_out.labels, len(teacher.classes))
            for name, images, scores in (
                ("few", few.images, few.scores),
                ("held-out", few.held_out.images, chosen),
            ):
                ids = [f"{name}-{row:05d}" for row in range(len(images))]
                writer.add(images, scores, origin="real", ids=ids)
    return TransferSet.open(folder)


@dataclass(frozen=True)
class Row:
    """One network of one arm.

    Attributes:
        architecture: of the network, in the zoo.
        width: multiplier of its channels.
        arm: one of `ARMS`, or `SMALL`.
        settings: how it is trained.
    """

    architecture: str
    width: float
    arm: str
    settings: ArchOverfittingSettings


def rows_of(schedule: Schedule, architectures: list[str], wanted: list[str]) -> list[Row]:
    """Return the small network, then every network in the arms wanted, in the published order."""
    full = schedule.full
    by_arm = arms(full)
    alone = replace(by_arm["baseline"], steps=full.small_steps, small=None)
    rows = [Row(str(full.small), full.small_width, SMALL, alone)]
    rows += [
        Row(architecture, schedule.width, arm, settings)
        for architecture in architectures
        for arm, settings in by_arm.items()
        if arm in wanted
    ]
    return rows


def student_of(architecture: str, teacher: Teacher, width: float, seed: int) -> Student:
    """Return an untrained student."""
    return Student.create(
        architecture, classes=teacher.classes, channels=3, size=SPEC.size, width=width, seed=seed
    )


def run(given: argparse.Namespace) -> None:
    """Do the whole experiment, or go on with it, or time its phases."""
    device = pick_device(given.device)
    schedule = SCHEDULES[schedule_of(given)]
    full = replace(schedule.full, small=given.small, label_temperature=given.label_temperature)
    schedule = replace(schedule, full=full)
    train = read_split(given.data, "CIFAR10", train=True)
    facts = {
        "reproduces": f"architecture overfitting, CIFAR-10, 10 images per class, {given.set}",
        "published": {**PUBLISHED, "source": "arXiv:2309.04195, in part at second hand"},
        "schedule": schedule_of(given),
        "settings": {name: asdict(arm) for name, arm in arms(schedule.full).items()},
        "architectures": given.architectures,
        "train_images": len(train),
    }
    out = result_path(given, "arch_overfitting_cifar10")
    if given.probe is not None:
        phases = probe(train, schedule, given.architectures, given.probe, device)
        write_result(out, {**facts, **projection(phases, device)}, device=device)
        return
    test = read_split(given.data, "CIFAR10", train=False)
    asked = {**facts, "zca": given.zca, "seeds": given.seeds, "device": device.type}
    with Work(given.work, asked) as work:
        teacher = labels_of(train)
        sets: list[dict[str, Any]] = []
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for seed in given.seeds:
            few = few_images(given, train, test, schedule, seed, work=work, device=device)
            sets.append(few.facts)
            transfer = write_set(work.folder / f"transfer-{seed}", few, teacher)
            labelled = replace(schedule, full=replace(schedule.full, labels=few.labels))
            for row in rows_of(labelled, given.architectures, given.arms):
                entry = one(row, few, teacher, transfer, seed, work, device)
                found.setdefault(row.architecture, {}).setdefault(row.arm, []).append(entry)
        done = {
            "test_images": len(test),
            "sets": sets,
            "results": found,
            "wall_s": work.wall_s,
            "note": "weights were chosen on a hold-out; the test split was read at the end",
        }
    write_result(out, {**facts, "seeds": given.seeds, **done}, device=device)


def few_images(
    given: argparse.Namespace,
    train: Split,
    test: Split,
    schedule: Schedule,
    seed: int,
    *,
    work: Work,
    device: torch.device,
) -> FewImages:
    """Return the set that was asked for."""
    if given.set == "real":
        return real_images(train, test, schedule, seed)
    if given.set == "infer":
        first = given.seeds[0]  # one set for all seeds
        return infer_images(train, test, schedule, first, work=work, device=device)
    return distilled_images(Path(given.set), train, test, schedule, seed, zca=given.zca)


def one(
    row: Row,
    few: FewImages,
    teacher: Teacher,
    transfer: TransferSet,
    seed: int,
    work: Work,
    device: torch.device,
) -> dict[str, Any]:
    """Return how one network of one arm turned out."""
    name = f"{row.architecture}-{row.arm}-{seed}"

    def make(folder: Path) -> dict[str, Any]:
        trained = distill(
            teacher,
            student_of(row.architecture, teacher, row.width, seed),
            transfer,
            row.settings,
            workdir=folder,
            seed=seed,
            device=device,
            progress=tell(name),
            small_workdir=work.folder / f"small-{seed}",
            held_out=np.arange(len(few.images), len(transfer)),
        )
        trained.student.save(folder / "student")
        return {
            "seed": seed,
            "test_accuracy": accuracy(trained.student, few.test),
            "holdout_accuracy": trained.holdout_agreement,
            "gap_points_on_holdout": trained.documents[DOCUMENT]["gap_points"],
            "steps": trained.steps,
            "best_step": trained.best_step,
            "seconds": trained.seconds,
        }

    return work.part(name, make)


def probe(
    train: Split,
    schedule: Schedule,
    architectures: list[str],
    steps: int,
    device: torch.device,
) -> list[Phase]:
    """Return what the small network, and the baseline and the whole of each network, cost."""
    phases = []
    schedule = replace(schedule, full=replace(schedule.full, labels="hard"))
    with tempfile.TemporaryDirectory() as place:
        teacher = labels_of(train)
        few = real_images(train, train.take(np.arange(1)), schedule, 0)
        transfer = write_set(Path(place) / "few", few, teacher)
        for number, row in enumerate(rows_of(schedule, architectures, ["baseline", "full"])):

            def start(progress: Progress, total: int, number: int = number, row: Row = row) -> None:
                quick = replace(row.settings, steps=total, evaluations=1, checkpoint_seconds=1e9)
                taught = quick.kd_weight > 0
                quick = replace(quick, small_steps=1, small=quick.small if taught else None)
                distill(
                    teacher,
                    student_of(row.architecture, teacher, row.width, 0),
                    transfer,
                    quick,
                    workdir=Path(place) / str(number),
                    device=device,
                    progress=_of_student(progress, total, has_small=taught),
                    held_out=np.arange(len(few.images), len(transfer)),
                )

            phases.append(
                time_training(
                    f"{row.architecture}, {row.arm}",
                    start,
                    steps=steps,
                    batch=row.settings.batch,
                    planned_steps=row.settings.plan().steps,
                )
            )
    return phases


def _of_student(progress: Progress, steps: int, *, has_small: bool) -> Progress:
    """Return a progress that passes the student's reports on, in its own steps."""
    if not has_small:
        return progress

    def told(done: int, total: int, metrics: Any) -> None:
        # The method reports both trainings as halves of one.
        if 2 * done > total:
            progress(round((2 * done / total - 1) * steps), steps, metrics)

    return told


def main() -> int:
    """Run as a script."""
    parser = arguments(__doc__ or "", dataset="CIFAR-10")
    parser.add_argument("--set", default="real", help="real, infer, or an npz file of your own")
    parser.add_argument("--zca", action="store_true", help="whiten real images for that file")
    parser.add_argument("--small", default="convnet3", choices=("convnet3", "convnet3_bn"))
    parser.add_argument("--label-temperature", type=float, default=1.0, help="FRePo: 0.3")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=["resnet18"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of sets and networks")
    return run_script(run, parser)


if __name__ == "__main__":
    sys.exit(main())
