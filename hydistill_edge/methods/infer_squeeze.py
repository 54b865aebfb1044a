"""Further networks for INFER: architectures of the zoo that learn to answer like the teacher.

The published method has several classifiers trained on the labelled data. Here is one teacher, and
a few real images without labels: other architectures are distilled from it, with the published
schedule (SGD along a cosine, 200 passes in batches of 128, crops and mirrors).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods.distilled import portion
from hydistill_edge.methods.kd import KDSettings
from hydistill_edge.methods.kd import distill as distill_logits
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.synthesis.compensator import check_networks
from hydistill_edge.synthesis.infer_settings import CompensatorSettings
from hydistill_edge.training.loop import Progress

_BATCH = 256


@dataclass(frozen=True)
class Squeezed:
    """A network that learned to answer like the teacher.

    Attributes:
        name: place and architecture, such as "1-resnet20".
        network: in eval mode.
        agreement: with the teacher, on images held out; None where it was not measured.
        steps: of its training; None for a network that was there already.
    """

    name: str
    network: Student
    agreement: float | None = None
    steps: int | None = None


def squeeze(
    teacher: Teacher,
    images: NDArray[np.uint8],
    settings: CompensatorSettings,
    *,
    workdir: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Squeezed]:
    """Train every network of the settings; all are checked before the first one is trained.

    Args:
        teacher: frozen.
        images: real ones, shape (N, H, W, C) uint8; labels are not needed.
        settings: `networks`, `width` and the keys that begin with `squeeze`.
        workdir: where checkpoints lie. Called again after a kill, it goes on.
        seed: of everything that is drawn.
        device: where to train.
        progress: called with (steps done, steps in all, the last metrics).

    Raises:
        MethodError: an architecture has no BatchNorm, or there are too few images.
        UsageError: an unknown architecture.
    """
    size = (images.shape[1], images.shape[2])
    students = [
        Student.create(
            architecture,
            classes=teacher.classes,
            channels=images.shape[3],
            size=size,
            width=settings.width,
            seed=seed + place,
        )
        for place, architecture in enumerate(settings.networks)
    ]
    if not students:
        return []
    check_networks(students)
    transfer = _transfer(teacher, images, workdir)
    plan = squeeze_settings(len(images), size, settings)
    found = []
    for place, student in enumerate(students):
        name = f"{place + 1}-{settings.networks[place].removeprefix('zoo:')}"

        trained = distill_logits(
            teacher,
            student,
            transfer,
            plan,
            workdir=workdir / f"squeeze-{name}",
            seed=seed + place,
            device=device,
            progress=portion(progress, place, len(students)),
        )
        found.append(Squeezed(name, trained.student, trained.holdout_agreement, trained.steps))
    return found


def squeeze_settings(
    count: int, size: tuple[int, int], settings: CompensatorSettings
) -> KDSettings:
    """Return the published schedule for so many images of a size (height, width)."""
    per_pass = -(-count // settings.squeeze_batch)
    return KDSettings(
        steps=settings.squeeze_epochs * per_pass,
        batch=settings.squeeze_batch,
        learning_rate=settings.squeeze_rate,
        schedule="cosine",
        mixup_share=0.0,
        augment=AugmentSettings(crop_pad=min(size) // 8, flip=0.5 * settings.flip),
        ema_share=0.0,
        evaluations=5,
        precision=settings.precision,
        checkpoint_seconds=settings.checkpoint_seconds,
    )


def _transfer(teacher: Teacher, images: NDArray[np.uint8], workdir: Path) -> TransferSet:
    """Return a transfer set of the real images with the teacher's logits, made once."""
    name = content_hashes(images).tobytes()[:8].hex()
    folder = workdir / f"real-{len(images)}-{name}"
    if not folder.exists():
        device = next(teacher.parameters()).device
        with (
            TransferSetWriter(
                folder,
                size=(images.shape[1], images.shape[2]),
                channels=images.shape[3],
                classes=teacher.classes,
                teacher_digest=teacher.digest,
            ) as writer,
            torch.no_grad(),
        ):
            for start in range(0, len(images), _BATCH):
                part = images[start : start + _BATCH]
                pixels = torch.from_numpy(part).permute(0, 3, 1, 2).to(device)
                ids = [str(start + row) for row in range(len(part))]
                writer.add(part, teacher(pixels).float().cpu().numpy(), origin="real", ids=ids)
    return TransferSet.open(folder)
