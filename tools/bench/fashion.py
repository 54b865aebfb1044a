"""The small task of several arms benches: Fashion-MNIST at 16 px, grey, and a teacher of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arms import Split, class_names, read_split, supervised_teacher

from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.models.teacher import Teacher

SIDE = 16
AUGMENT = AugmentSettings(crop_pad=1, flip=0.5)
"""Of teacher and students alike."""


@dataclass(frozen=True)
class Task:
    """The task.

    Attributes:
        teacher: a ResNet-20, of half the width unless told, trained on 15,000 labelled images.
        unseen: the 5,000 images of the training split that it never saw.
        test: the test split.
    """

    teacher: Teacher
    unseen: Split
    test: Split


def read_task(shared: Path, keep: Path, *, width: float = 0.5) -> Task:
    """Return the task; the teacher is trained where `keep` does not hold it yet.

    Args:
        shared: folder with `data/`.
        keep: folder for the teacher.
        width: multiplier of the teacher's channels.
    """
    folder = shared / "data" / "fashion_mnist"
    whole = read_split(folder / "train.npz", side=SIDE, channels=1)
    is_unseen = np.arange(len(whole)) % 4 == 0
    teacher = supervised_teacher(
        whole[~is_unseen],
        class_names(folder / "train.npz"),
        architecture="resnet20",
        width=width,
        steps=1500,
        augment=AUGMENT,
        folder=keep,
    )
    test = read_split(folder / "test.npz", side=SIDE, channels=1)
    return Task(teacher, whole[is_unseen], test)
