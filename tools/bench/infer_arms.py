"""Does a set of compensators teach more than natural images of the same bytes?

CIFAR-100's 20 superclasses at 16 px: a ResNet-20 teacher trained on 5,000 labelled images, a VGG
squeezed from it, and a set of 10 images per class: 9 natural ones each, and 18 compensators. The
other side has natural images of as many bytes, soft labels included, labelled by the same networks
and trained on for as many steps. Published settings where the time allows; scaled are the steps of
a compensator (200 in place of 1,000), the passes of the squeezed network (30 in place of 200) and
the student's steps. About 20 minutes of one core; `--seeds` shares it out.

    python tools/bench/infer_arms.py SHARED --keep RUNS
    python tools/bench/infer_arms.py SHARED --keep RUNS --smoke
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from arms import (
    Runs,
    Split,
    accuracy,
    arguments,
    read_split,
    summarize,
    supervised_teacher,
    write_result,
)

from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.images.compensated_set import CompensatedSet
from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.methods.infer import InferSettings, distill
from hydistill_edge.methods.infer_set import ask, make_set, open_ensemble, write_transfer
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.synthesis.infer_budget import LABEL_BYTES
from hydistill_edge.synthesis.infer_settings import CompensatorSettings

QUESTION = str(__doc__).splitlines()[0]

SIDE = 16
TEACHER_STEPS = 1400
SET = CompensatorSettings(
    ipc=10, networks=("vgg8_bn",), width=0.25, squeeze_epochs=30, iterations=200
)
STUDENT = InferSettings(steps=1200, evaluations=5, mapped=0)
TEACHER = {"architecture": "resnet20", "width": 1.0}


@dataclass(frozen=True)
class Kind:
    """A student architecture."""

    architecture: str
    width: float
    precision: Any = "auto"


KINDS = {
    "resnet8": Kind("resnet8", 1.0),
    "resnet20": Kind("resnet20", 0.5),
    # The network of data-set distillation: no BatchNorm, and no kin of those that made the set.
    "convnet3": Kind("convnet3", 0.25, "float32"),
}


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        images: which set (`SETS`).
        kind: which student.
        labels: `static` or `dynamic`.
    """

    images: str
    kind: str = "resnet8"
    labels: Any = "static"


ARMS = {
    "infer": Arm("infer"),
    "natural": Arm("natural"),
    "shuffled": Arm("shuffled"),
    "infer_dynamic": Arm("infer", labels="dynamic"),
    "natural_dynamic": Arm("natural", labels="dynamic"),
    "infer_resnet20": Arm("infer", "resnet20"),
    "natural_resnet20": Arm("natural", "resnet20"),
    "infer_convnet3": Arm("infer", "convnet3"),
    "natural_convnet3": Arm("natural", "convnet3"),
}
STRESS = {
    "infer_long_tail": Arm("long_tail"),
    "infer_label_noise": Arm("label_noise"),
}
CLAIMS = (
    ("infer", "natural"),
    ("infer", "shuffled"),
    ("infer_dynamic", "infer"),
    ("infer_dynamic", "natural_dynamic"),
    ("infer_resnet20", "natural_resnet20"),
    ("infer_convnet3", "natural_convnet3"),
)
STRESS_CLAIMS = (("infer", "infer_long_tail"), ("infer", "infer_label_noise"))


class Sets:
    """The sets of one seed, each made when it is first asked for, and kept.

    Args:
        teacher: of all of them.
        train: labelled images; labels serve the choice of natural images, as published.
        folder: where they lie.
        seed: of everything that is drawn.
        settings: of the set with compensators.
    """

    def __init__(
        self,
        teacher: Teacher,
        train: Split,
        folder: Path,
        seed: int,
        settings: CompensatorSettings,
    ) -> None:
        self.teacher, self.train, self.seed, self.settings = teacher, train, seed, settings
        self.folder = folder / f"sets-{seed}"

    def transfer(self, name: str) -> TransferSet:
        """Return a set as a transfer set."""
        folder = self.folder / f"{name}-transfer"
        if not folder.exists():
            write_transfer(folder, self.compact(name), self.teacher)
        return TransferSet.open(folder)

    def compact(self, name: str) -> CompensatedSet:
        """Return a set in parts."""
        folder = self.folder / name
        if folder.exists():
            return CompensatedSet.open(folder)
        makers: dict[str, Callable[[Path], CompensatedSet]] = {
            "infer": partial(self._made, self.settings),
            "natural": self._natural,
            "shuffled": self._shuffled,
            "long_tail": partial(self._made, replace(self.settings, long_tail=10.0)),
            "label_noise": partial(self._made, replace(self.settings, label_noise=0.2)),
        }
        return makers[name](folder)

    def _made(self, settings: CompensatorSettings, folder: Path) -> CompensatedSet:
        return make_set(
            self.teacher,
            self.train.images,
            self.train.labels,
            settings=settings,
            folder=folder,
            workdir=self.folder / "work",
            seed=self.seed,
        ).distilled

    def _natural(self, folder: Path) -> CompensatedSet:
        """Draw as many natural images as take the bytes of the other set, labels included."""
        other = self.compact("infer")
        each = self.train.images[0].size + len(self.teacher.classes) * LABEL_BYTES
        parts = other.bytes()
        count = (parts["natural"] + parts["compensators"] + parts["labels"]) // each
        order = np.random.default_rng([self.seed, 1]).permutation(len(self.train))
        rank = np.empty(len(order), np.int64)
        for place in range(len(self.teacher.classes)):
            rows = order[self.train.labels[order] == place]
            rank[rows] = np.arange(len(rows))
        rows = order[np.argsort(rank[order], kind="stable")][:count]  # balanced over the classes
        return self._labelled(
            CompensatedSet.of(
                self.train.images[rows],
                np.zeros((0, *self.train.images.shape[1:]), np.float32),
                base_classes=self.train.labels[rows],
                base_slots=rank[rows],
                compensator_slots=[],
                compensator_networks=[],
                class_names=self.teacher.classes,
            ),
            folder,
        )

    def _shuffled(self, folder: Path) -> CompensatedSet:
        """Add each compensator to the natural images of the next slot."""
        other = self.compact("infer")
        slots = int(other.base_slots.max()) + 1
        return self._labelled(
            CompensatedSet.of(
                other.images(np.arange(other.natural)),
                other.differences(np.arange(len(other.compensator_slots))),
                base_classes=other.classes[: other.natural],
                base_slots=other.base_slots,
                compensator_slots=(other.compensator_slots + 1) % slots,
                compensator_networks=other.compensator_networks,
                class_names=self.teacher.classes,
            ),
            folder,
        )

    def _labelled(self, plain: CompensatedSet, folder: Path) -> CompensatedSet:
        """Save a set with labels of the same networks as the other one's."""
        told = self.compact("infer").manifest
        ensemble = open_ensemble(self.compact("infer"), self.teacher)
        students = [one for one in ensemble.networks if isinstance(one, Student)]
        names = [one["name"] for one in told["networks"] if one["name"] != "teacher"]
        return plain.labelled(partial(ask, ensemble)).save(
            folder,
            details={key: told[key] for key in ("teacher", "settings", "networks")},
            networks=dict(zip(names, (one.save for one in students), strict=True)),
        )


def run(arm: Arm, sets: Sets, test: Split, settings: InferSettings) -> dict[str, Any]:
    """Train one arm and return its numbers; accuracy in percent."""
    started = time.monotonic()
    transfer = sets.transfer(arm.images)
    kind = KINDS[arm.kind]
    student = Student.create(
        kind.architecture,
        classes=sets.teacher.classes,
        channels=3,
        size=(SIDE, SIDE),
        width=kind.width,
        seed=sets.seed,
    )
    workdir = sets.folder / f"student-{arm.images}-{arm.kind}-{arm.labels}"
    workdir.mkdir(parents=True, exist_ok=True)
    trained = distill(
        sets.teacher,
        student,
        transfer,
        replace(settings, labels=arm.labels, precision=kind.precision),
        workdir=workdir,
        seed=sets.seed,
    )
    told = trained.documents["infer.json"]
    return {
        "accuracy": accuracy(trained.student, test),
        "boundary": 100 * told["boundary"]["student"]["share"],
        "images": told["images"],
        "bytes": told["bytes"],
        "seconds": time.monotonic() - started,
    }


def superclasses(folder: Path, name: str) -> tuple[Split, tuple[str, ...]]:
    """Return a split of CIFAR-100 with its 20 superclasses as labels, and their names."""
    whole = read_split(folder / f"{name}.npz", side=SIDE, channels=3)
    with np.load(folder / f"{name}.npz") as found:
        names = tuple(str(word) for word in found["coarse_class_names"])
        return Split(whole.images, found["coarse_labels"].astype(np.int64)), names


def describe(sets: Sets, test: Split) -> dict[str, Any]:
    """Return what one seed's set is made of, and how good its networks are."""
    told = sets.compact("infer").manifest
    networks = open_ensemble(sets.compact("infer"), sets.teacher).networks
    names = ("budget", "bytes", "realism", "coverage", "nearest_real", "logit_std", "logit_note")
    return {
        **{name: told[name] for name in names},
        "networks": [
            {"name": one["name"], "agreement": one["agreement"], "accuracy": accuracy(net, test)}
            for one, net in zip(told["networks"], networks, strict=True)
        ],
        "natural_arm_images": len(sets.compact("natural")),
    }


def main() -> None:
    """Train what is missing and write the result."""
    smoke, stress = "--smoke" in sys.argv, "--stress" in sys.argv
    sys.argv = [word for word in sys.argv if word not in ("--smoke", "--stress")]
    given = arguments(QUESTION)
    of_set, of_student, steps = SET, STUDENT, TEACHER_STEPS
    if smoke:
        of_set = replace(SET, ipc=2, squeeze_epochs=1, iterations=2)
        of_student, steps = replace(STUDENT, steps=3), 3
    runs = Runs(given.keep, given.seeds)
    folder = given.shared / "data" / "cifar100_subset"
    (train, classes), (test, _) = superclasses(folder, "train"), superclasses(folder, "test")
    teacher = supervised_teacher(
        train,
        classes,
        **TEACHER,
        steps=steps,
        augment=AugmentSettings(crop_pad=2, flip=0.5),
        folder=given.keep,
    )
    arms = {**ARMS, **(STRESS if stress else {})}
    for seed in runs.seeds:
        sets = Sets(teacher, train, given.keep, seed, of_set)
        for name, arm in arms.items():
            runs.do(name, seed, partial(run, arm, sets, test, of_student))
    described = {
        str(seed): describe(Sets(teacher, train, given.keep, seed, of_set), test)
        for seed in runs.table(["natural_convnet3"])["natural_convnet3"]
    }
    table = runs.table([*ARMS, *STRESS])
    if smoke:
        print(summarize({arm: values for arm, values in table.items() if values}))
        return
    write_result(
        "infer_arms",
        question=QUESTION,
        table=table,
        claims=(*CLAIMS, *STRESS_CLAIMS),
        more={
            "teacher_accuracy": accuracy(teacher, test),
            "boundary_percent": summarize(runs.table(list(ARMS), "boundary")),
            "sets": described,
            "task": {
                "data": "cifar100_subset, 20 superclasses",
                "size": [SIDE, SIDE, 3],
                "train_images": len(train),
                "test_images": len(test),
                "teacher": {**TEACHER, "steps": TEACHER_STEPS},
                "set": asdict(SET),
                "student": asdict(STUDENT),
                "students": {name: asdict(kind) for name, kind in KINDS.items()},
            },
        },
    )


if __name__ == "__main__":
    main()
