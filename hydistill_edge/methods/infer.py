"""INFER: a student from a small set of natural images, compensators and soft labels.

Source: Zhang, Du, Liu and Zhou 2025, "Breaking Class Barriers: Efficient Dataset Distillation via
Inter-Class Feature Compensator", arXiv:2408.06927. The set is made by `infer_set.py`: for each slot
of one natural image per class, and for each network, one compensator that belongs to no class.
Added to the natural images it fills in what lies between classes, so that boundaries become thin,
and labels may be blended like pixels. Soft labels are the mean of the networks' logits, stored once
(static) or asked for every view (dynamic).

What it needs: a transfer set with its compact set beside it, or any other transfer set, whose
stored logits are the labels then. For dynamic labels also the networks that the set was made with.
What it gives: a student of any architecture; one set serves several.

Where this departs from the released program, and why:

- There is one teacher, and no labelled data: further networks are distilled from it on the real
  images (`infer_squeeze.py`). With none, compensators come from the teacher alone.
- Images are derived from the stored parts, while they are read; there, every derived image is
  stored as JPEG, which gives the saving away and adds noise.
- The weights that are kept are the latest whose agreement with the teacher, on images held out, is
  within a standard error of the highest; there, the best epoch on the test set is reported. A
  natural image is held out together with all that is derived from it.
- No weight decay on biases and norms; padding is mirrored.
- With SGD the loss is multiplied by the squared temperature, without which gradients at a
  temperature of 30 are too small for it; AdamW does not care.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.images.augment import Augment, AugmentSettings, Mixed, mixup
from hydistill_edge.images.compensated_set import CompensatedSet
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.transfer_set import Indices, TransferSet
from hydistill_edge.methods.distilled import Distilled, check_fit, fingerprint
from hydistill_edge.methods.infer_baseline import ClassSpecific, class_specific
from hydistill_edge.methods.infer_report import DOCUMENT, boundary, class_map, closest_pairs
from hydistill_edge.methods.infer_set import beside, open_ensemble
from hydistill_edge.methods.pool import Draws, Pool, is_real, judge_on, split
from hydistill_edge.methods.settings import TrainingSettings
from hydistill_edge.models.ensemble import Ensemble
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.logits import kd_kl
from hydistill_edge.synthesis.infer_settings import LabelMode
from hydistill_edge.training.loop import Plan, Progress, train
from hydistill_edge.training.optimizers import OptimizerName

EPOCHS = 400
"""Published passes over a set with static labels; with dynamic ones, over its natural part."""


@dataclass(frozen=True)
class InferSettings(TrainingSettings):
    """How the student is trained; the defaults are the published ones for 32 px.

    Attributes:
        labels: `static` takes the stored soft labels; `dynamic` asks the networks, which the set
            was made with, about every blended view.
        epochs: passes over the set; null for 400 with static labels, and with dynamic ones for 400
            over one plus the number of networks.
        steps: optimizer steps; null for `epochs` passes.
        temperature: softening of both sides, T > 0.
        mixup_alpha: of the Beta distribution of the share with which images, and static labels as
            logits, are blended in pairs; one share per batch. 0 for none.
        natural_share: share of natural images in each batch, in [0, 1]; null for their share in the
            set.
        optimizer: `adamw` as published, or `sgd` (Nesterov).
        schedule: `cosine` as published, or another.
        augment: strengths in full; null for a crop by an eighth of the side, and `flip`.
        holdout: share of the natural images that chooses the weights, with all that is derived from
            them; never trained on.
        margin: an image lies on a boundary where its two largest probabilities differ by less.
        mapped: images of each class and kind in the map of seven classes (t-SNE); 0 for no map.
        baseline: slots of the set whose images are made once more for that map alone, with one
            tensor per class where a compensator serves all classes; each takes as long as a slot
            of the set did. 0 for none.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    labels: LabelMode = "static"
    epochs: int | None = None
    steps: int | None = None
    temperature: float = 30.0
    mixup_alpha: float = 0.8
    natural_share: float | None = None
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 0.01
    margin: float = 0.1
    mapped: int = 20
    baseline: int = 2

    def problems(self) -> list[str]:
        """Return what is out of range, one line each."""
        problems = super().problems()
        if self.labels not in get_args(LabelMode):
            problems.append(f'labels "{self.labels}"; expected static or dynamic')
        if self.epochs is not None and self.epochs < 1:
            problems.append(f"epochs is {self.epochs}; expected at least 1, or none")
        if not self.temperature > 0:
            problems.append(f"temperature is {self.temperature}; expected more than 0")
        if not self.mixup_alpha >= 0:
            problems.append(f"mixup_alpha is {self.mixup_alpha}; expected at least 0")
        if self.natural_share is not None and not 0 <= self.natural_share <= 1:
            problems.append(
                f"natural_share is {self.natural_share}; expected a share in [0, 1] or none"
            )
        if not 0 < self.margin < 1:
            problems.append(f"margin is {self.margin}; expected a probability between 0 and 1")
        problems += [
            f"{name} is {getattr(self, name)}; expected at least 0"
            for name in ("mapped", "baseline")
            if getattr(self, name) < 0
        ]
        return problems

    def plan(self, steps: int) -> Plan:
        """Return what the training loop needs of this, for a number of steps."""
        return Plan.of(self, steps=steps)

    def augmentation(self, size: tuple[int, int]) -> AugmentSettings:
        """Return the strengths for images of a size (height, width)."""
        if self.augment is not None:
            return self.augment
        return AugmentSettings(crop_pad=min(size) // 8, flip=0.5 * self.flip)

    def steps_for(self, images: int, *, copies: int) -> int:
        """Return the optimizer steps.

        Args:
            images: that are trained on.
            copies: how many images stand for each natural one in the set, itself included.
        """
        if self.steps is not None:
            return self.steps
        usual = EPOCHS if self.labels == "static" else max(1, EPOCHS // copies)
        return (self.epochs or usual) * -(-images // self.batch)


def distill(
    teacher: Teacher,
    student: Student,
    transfer: TransferSet,
    settings: InferSettings | None = None,
    *,
    workdir: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Distilled:
    """Train the student, in place, on soft labels that are blended like the images.

    Args:
        teacher: frozen.
        student: trained in place.
        transfer: natural and compensated images; labels are not looked at.
        settings: how to train.
        workdir: where the checkpoint lies. Called again after a kill, with the same arguments,
            training goes on and ends with the same result.
        seed: of everything that is drawn.
        device: where to train.
        progress: called with (steps done, steps in all, the last metrics).

    Returns:
        The student, and `infer.json` among the documents.

    Raises:
        MethodError: classes differ, too few images, or the loss is no longer finite.
        TransferSetError: static labels are asked for, and the set was made without.
    """
    settings = settings or InferSettings()
    device = torch.device(device)
    check_fit(teacher, student, transfer)
    teacher.to(device)
    distilled = beside(transfer)
    places = _places(transfer, distilled)
    pool = Pool(transfer, device)
    labels = _stored_labels(transfer, distilled, places).to(device)
    ensemble = None
    if settings.labels == "dynamic":
        ensemble = Ensemble([teacher]) if distilled is None else open_ensemble(distilled, teacher)
        ensemble.to(device).to(memory_format=torch.channels_last)
    elif distilled is not None:
        distilled.logits([])  # refuses a set without labels
    train_on, held_out = _split(transfer, distilled, places, settings.holdout, seed)
    draws = Draws(
        transfer, train_on, batch=settings.batch, real_share=settings.natural_share, seed=seed
    )
    copies = 1 if distilled is None else len(distilled) // distilled.natural
    steps = settings.steps_for(len(train_on), copies=copies)
    generator = torch.Generator(device).manual_seed(seed)
    augment = Augment(settings.augmentation(transfer.size))

    def batch_loss(network: nn.Module, step: int) -> Tensor:
        rows = draws.at(step)
        images = augment(pool.images(rows), generator=generator)
        targets = labels[torch.from_numpy(rows).to(device)].float()
        if settings.mixup_alpha:
            mixed = mixup(images, alpha=settings.mixup_alpha, generator=generator, shared=True)
            images, targets = mixed.images, mixed_logits(targets, mixed)
        images = images.contiguous(memory_format=torch.channels_last)
        if ensemble is not None:
            with torch.no_grad():
                targets = ensemble(images)
        return soft_label_loss(network(images), targets, settings)

    trained = train(
        student,
        batch_loss,
        judge_on(pool, held_out, is_real(transfer), settings.batch),
        settings.plan(steps),
        generators={"batch": generator},
        folder=workdir,
        fingerprint=fingerprint(teacher, student, transfer, settings, seed),
        seed=seed,
        device=device,
        progress=progress,
    )
    shown = {
        "schema_version": 1,
        "labels": settings.labels,
        "images": {
            "natural": int(is_real(transfer).sum()),
            "compensated": int((transfer.origins == "derived").sum()),
            "trained_on": len(train_on),
        },
        "networks": None if distilled is None else len(distilled.manifest["networks"]),
        "bytes": None if distilled is None else distilled.manifest["bytes"],
        "steps": trained.steps,
        "mixup_alpha": settings.mixup_alpha,
        "natural_share": settings.natural_share,
        **_boundaries(teacher, student, pool, held_out, settings),
        "map": None
        if not settings.mapped
        else class_map(
            teacher,
            transfer,
            pool,
            labels=_intended(transfer, distilled, places),
            per_class=settings.mapped,
            margin=settings.margin,
            seed=seed,
            baseline=_baseline(teacher, distilled, settings, seed, device),
        ),
    }
    return Distilled.of(student, trained, held_out, documents={DOCUMENT: shown})


def soft_label_loss(logits: Tensor, targets: Tensor, settings: InferSettings) -> Tensor:
    """Return KL(targets ‖ student) of probabilities softened by T, batch mean, shape ().

    Without the factor T², as published; with SGD, which needs it, with the factor.

    Args:
        logits: the student's, shape (N, C); gradients flow here.
        targets: shape (N, C); detached.
        settings: temperature and optimizer.
    """
    loss = kd_kl(logits, targets, temperature=settings.temperature)
    return loss if settings.optimizer == "sgd" else loss / settings.temperature**2


def mixed_logits(logits: Tensor, mixed: Mixed) -> Tensor:
    """Return logits blended as the images were, shape (N, C).

    Args:
        logits: of the images before, shape (N, C).
        mixed: what `mixup` returned for them.
    """
    return torch.lerp(logits[mixed.permutation], logits, mixed.lam[:, None].to(logits.dtype))


def _intended(
    transfer: TransferSet, distilled: CompensatedSet | None, places: Indices
) -> NDArray[np.int64]:
    """Return the class that each image stands for, (N,): the set's, else what the teacher says."""
    found: NDArray[np.int64] = np.array(transfer.pseudo_labels, np.int64)
    known = np.flatnonzero(places >= 0)
    if distilled is not None and len(known):
        found[known] = distilled.classes[places[known]]
    return found


def _baseline(
    teacher: Teacher,
    distilled: CompensatedSet | None,
    settings: InferSettings,
    seed: int,
    device: torch.device,
) -> ClassSpecific | None:
    """Return the images that the map holds the set's against; None where there is no such set."""
    if distilled is None or not settings.baseline:
        return None
    ensemble = open_ensemble(distilled, teacher)
    return class_specific(distilled, ensemble, slots=settings.baseline, seed=seed, device=device)


def _places(transfer: TransferSet, distilled: CompensatedSet | None) -> Indices:
    """Return the place in the compact set of every image, by content; -1 for others, (N,)."""
    found = np.full(len(transfer), -1, np.int64)
    if distilled is None:
        return found
    known: dict[bytes, int] = {}
    for places, images in distilled.chunks():
        for place, row in zip(places.tolist(), content_hashes(images), strict=True):
            known.setdefault(row.tobytes(), place)
    for row, key in enumerate(transfer.hashes):
        found[row] = known.get(key.tobytes(), -1)
    return found


def _stored_labels(
    transfer: TransferSet, distilled: CompensatedSet | None, places: Indices
) -> Tensor:
    """Return static labels as logits, (N, classes): the compact set's, else the teacher's own."""
    logits = transfer.logits(np.arange(len(transfer)))
    known = np.flatnonzero(places >= 0)
    if distilled is not None and distilled.has_labels and len(known):
        logits[known] = distilled.logits(places[known])
    return torch.from_numpy(logits)


def _split(
    transfer: TransferSet,
    distilled: CompensatedSet | None,
    places: Indices,
    share: float,
    seed: int,
) -> tuple[Indices, Indices]:
    """Return places to train on and held out; what is derived goes where its natural image goes."""
    real = is_real(transfer)
    if distilled is None or real.sum() < 2:
        return split(transfer, share, seed)
    natural = np.flatnonzero(real)
    share = max(share, 1 / len(natural))
    _, part = transfer.split(share, seed=seed, indices=natural)
    bases = np.where(places >= 0, distilled.bases[np.maximum(places, 0)], -1)
    out = np.isin(bases, bases[part][bases[part] >= 0]) & (bases >= 0)
    out[part] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


@torch.no_grad()
def _boundaries(
    teacher: Teacher, student: Student, pool: Pool, held_out: Indices, settings: InferSettings
) -> dict[str, Any]:
    """Return boundary thickness of student and teacher on the hold-out, and the closest classes."""
    parts = [held_out[at : at + settings.batch] for at in range(0, len(held_out), settings.batch)]
    own = torch.cat([student(pool.images(part)).float() for part in parts]).cpu().numpy()
    theirs = torch.cat([pool.logits(part) for part in parts]).cpu().numpy()
    return {
        "boundary": {
            "margin": settings.margin,
            "student": boundary(own, margin=settings.margin),
            "teacher": boundary(theirs, margin=settings.margin),
        },
        "closest_pairs": closest_pairs(own, theirs, teacher.classes),
    }
