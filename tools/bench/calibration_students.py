"""The networks that `calibration_sources.py` quantizes: six trained here, one from outside.

Six small students of different families imitate the CIFAR-10 teacher on 20,000 real images, from
its stored logits; the seventh is the steel RegNetY teacher itself. Trained once, kept in a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outside_teacher import Case, cases

from hydistill_edge.images.sources import SourceSpec, load_source
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods.kd import KDSettings, distill
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.stages.logits import network_logits

TRAINED_ON = "0:20000"  # rows of the training split
CIFAR_POOL = "40000:42000"  # rows that calibrate: no student saw them
STEEL_POOL = "::4"  # the unlabelled images of the teacher's README


@dataclass(frozen=True)
class Kind:
    """A student to train.

    Attributes:
        name: in the result.
        architecture: of the zoo.
        width: multiplier of its channels.
        fits_threshold: whether the quality gate's threshold is fitted on it; else judged on it.
    """

    name: str
    architecture: str
    width: float
    fits_threshold: bool


KINDS = (
    Kind("resnet20 w0.5", "resnet20", 0.5, True),
    Kind("mobilenet_v2 w0.25", "mobilenet_v2", 0.25, False),
    Kind("mobilenet_v3_small w0.5", "mobilenet_v3_small", 0.5, True),
    Kind("efficientnet_b0 w0.25", "efficientnet_b0", 0.25, False),
    Kind("shufflenet_v2 w0.5", "shufflenet_v2", 0.5, True),
    Kind("vgg8 w0.5, no BN", "vgg8", 0.5, False),
)
STEEL = Kind("regnet_y_400mf, steel teacher", "torchvision:regnet_y_400mf", 1.0, False)


@dataclass(frozen=True)
class Subject:
    """A network to quantize, with its images.

    Attributes:
        kind: which one.
        student: in float, in eval mode.
        teacher: from whose memory images may come.
        pool: shape (N, H, W, C) uint8, real images that may calibrate.
        images: shape (M, H, W, C) uint8, the test split.
        labels: shape (M,) int64.
    """

    kind: Kind
    student: Student
    teacher: Teacher
    pool: np.ndarray[Any, np.dtype[np.uint8]]
    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def has_bn(self) -> bool:
        """Whether the network has BatchNorm layers."""
        return any(isinstance(part, torch.nn.BatchNorm2d) for part in self.student.modules())


def read_teacher(case: Case) -> Teacher:
    """Return a teacher from outside."""
    described = case.teacher
    return Teacher.load(
        Path(described["weights"]),
        architecture=described["architecture"],
        classes=described["classes"],
        spec=InputSpec(**described["input"]),
    )


def read_subject(kind: Kind, shared: Path, keep: Path, *, steps: int) -> Subject:
    """Return a network and its images; train it where `keep` does not hold it yet."""
    steel = kind is STEEL
    case = cases(shared)["neu_steel" if steel else "cifar10"]
    teacher = read_teacher(case)
    pool = _real(case, STEEL_POOL if steel else CIFAR_POOL)
    test = load_source(SourceSpec(**case.test), classes=teacher.classes)
    assert test.labels is not None  # the source says use_labels
    if steel:
        student = Student.adopt(
            teacher.network,
            spec=teacher.spec,
            classes=teacher.classes,
            architecture=teacher.architecture,
            channels=case.images["channels"],
        )
    else:
        folder = keep / kind.name.replace(" ", "-").replace(",", "")
        if not folder.exists():
            _train(kind, teacher, case, keep, steps=steps).save(folder)
        student = Student.load(folder)
    return Subject(kind, student.eval(), teacher, pool, test.images, test.labels)


def _real(case: Case, rows: str) -> Any:
    plain = {key: case.pilot[key] for key in ("kind", "path")}
    return load_source(SourceSpec(**plain, rows=rows)).images


def _train(kind: Kind, teacher: Teacher, case: Case, keep: Path, *, steps: int) -> Student:
    transfer = _transfer(teacher, case, keep / "transfer")
    student = Student.create(
        kind.architecture,
        classes=teacher.classes,
        channels=3,
        size=(32, 32),
        width=kind.width,
        seed=0,
    )
    settings = KDSettings(
        steps=steps,
        teacher_view="stored",
        mixup_share=0.0,
        evaluations=5,
        precision="float32",  # bf16 is slower where convolutions are depthwise
    )
    workdir = keep / f"training-{kind.architecture}"
    workdir.mkdir(parents=True, exist_ok=True)
    for file in workdir.iterdir():
        file.unlink()
    return distill(
        teacher, student, transfer, settings, workdir=workdir, seed=0, progress=_tell(kind)
    ).student


def _tell(kind: Kind) -> Any:
    def progress(done: int, total: int, metrics: Any) -> None:
        if done % 100 == 0 or done == total:
            shown = {name: round(value, 4) for name, value in metrics.items()}
            print(f"{kind.name} {done}/{total} {shown}", flush=True)

    return progress


def _transfer(teacher: Teacher, case: Case, folder: Path) -> TransferSet:
    """Return 20,000 real images with the teacher's logits."""
    if not folder.exists():
        images = _real(case, TRAINED_ON)
        with TransferSetWriter(
            folder,
            size=(32, 32),
            channels=3,
            classes=teacher.classes,
            teacher_digest=teacher.digest,
            method="real",
        ) as writer:
            ids: Sequence[str] = [f"train-{row:05d}" for row in range(len(images))]
            writer.add(images, network_logits(teacher, images), origin="real", ids=ids)
    return TransferSet.open(folder)
