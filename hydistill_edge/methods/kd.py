"""Logit distillation from a transfer set: the plain, strong baseline.

Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network",
arXiv:1503.02531; Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and
consistent", arXiv:2106.05237.

The student imitates the teacher's softened class probabilities. Beyer et al. found what makes this
work: the teacher answers for the very view of the image that the student sees (consistent),
aggressive MixUp widens the set of inputs on which the two must agree, and the training is long
(patient). No label is used anywhere, neither for training nor for choosing the weights that are
kept.

What it needs: a teacher with logits, and images in its domain, labelled or not. A few real ones go
far; synthetic ones widen the set.
What it gives: a student of any architecture; nothing of the teacher is inside it.

Where this departs from the papers, and why:

- Hinton et al. add a term for true labels; there are none here.
- Beyer et al. train for thousands of epochs of a large set with AdamW; here a one-cycle schedule
  with Nesterov momentum reaches most of that in minutes, and the weights are averaged (EMA).
- MixUp is applied in a share of the batches only: the others keep the student's BatchNorm
  statistics, and its answers, tuned to whole images.
- The weights that are kept are the latest whose agreement on the hold-out is within a standard
  error of the highest: ten held-out images would otherwise choose an early, unfinished student.
- Real and synthetic images are drawn from their own shuffled passes, so that a hundred real images
  are not lost among thousands of synthetic ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.images.augment import Augment, AugmentSettings, mixup
from hydistill_edge.images.transfer_set import Indices, TransferSet
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.logits import agreement, kd_kl, kd_kl_mixed
from hydistill_edge.training.loop import Judgement, Plan, Progress, train
from hydistill_edge.training.optimizers import OptimizerName
from hydistill_edge.training.precision import Precision
from hydistill_edge.training.sampling import Passes

REAL = ("real", "web")
"""Origins that count as real; the others (synthetic, derived) count as synthetic."""

HOLDOUT_LIMIT = 2000
"""Images held out at most: the standard error of an agreement is then 1 point or less."""

RESIDENT_BYTES = 2 * 2**30
"""Larger sets stay on the disk, mapped, and are read batch by batch."""


@dataclass(frozen=True)
class KDSettings:
    """How the student is trained.

    Attributes:
        steps: optimizer steps.
        max_seconds: wall time after which training ends, its schedule compressed; None for none.
        batch: images per step.
        temperature: softening of both sides, T > 0.
        optimizer: `sgd` (Nesterov) or `adamw`.
        learning_rate: peak of the schedule.
        schedule: `one_cycle`, `cosine` or `multi_step`.
        weight_decay: of weights; biases and norms have none.
        real_share: share of real images in each batch, in [0, 1]; None for their share in the set.
        teacher_view: `augmented` asks the teacher about every view that the student sees; `stored`
            takes the logits of the transfer set, which cost nothing and are right for mild
            augmentation only.
        mixup_share: share of the batches in which images are blended in pairs.
        mixup_alpha: of the Beta distribution of the shares of a pair.
        flip: mirror half of the images. Wrong where left and right differ in meaning, as in
            digits and text.
        augment: strengths in full; None for a crop by an eighth of the side, a cutout of a quarter,
            and `flip`.
        ema_share: the averaged student reaches back over this share of all steps.
        holdout: share of the images that choose the weights; never trained on.
        evaluations: how often the hold-out is asked.
        precision: `auto`, `float32` or `bf16`.
        checkpoint_seconds: wall time between checkpoints.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    steps: int = 5000
    max_seconds: float | None = None
    batch: int = 250
    temperature: float = 4.0
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    schedule: str = "one_cycle"
    weight_decay: float = 5e-4
    real_share: float | None = None
    teacher_view: Literal["augmented", "stored"] = "augmented"
    mixup_share: float = 0.5
    mixup_alpha: float = 1.0
    flip: bool = True
    augment: AugmentSettings | None = None
    ema_share: float = 0.02
    holdout: float = 0.1
    evaluations: int = 20
    precision: Precision = "auto"
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        problems = []
        if self.batch < 2:
            problems.append(
                f"batch is {self.batch}; expected at least 2 (BatchNorm needs a spread)"
            )
        if not self.temperature > 0:
            problems.append(f"temperature is {self.temperature}; expected more than 0")
        if self.real_share is not None and not 0 <= self.real_share <= 1:
            problems.append(f"real_share is {self.real_share}; expected a share in [0, 1] or none")
        if self.teacher_view not in ("augmented", "stored"):
            problems.append(f'teacher_view "{self.teacher_view}"; expected "augmented" or "stored"')
        if not 0 <= self.mixup_share <= 1:
            problems.append(f"mixup_share is {self.mixup_share}; expected a share in [0, 1]")
        if not self.mixup_alpha > 0:
            problems.append(f"mixup_alpha is {self.mixup_alpha}; expected more than 0")
        if not 0 < self.holdout < 1:
            problems.append(f"holdout is {self.holdout}; expected a share between 0 and 1")
        try:
            self.plan()
        except UsageError as error:
            problems.append(str(error).removeprefix("training plan: "))
        if problems:
            raise UsageError("kd settings: " + "; ".join(problems))

    def plan(self) -> Plan:
        """Return what the training loop needs of this."""
        return Plan(
            steps=self.steps,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            ema_share=self.ema_share,
            evaluations=self.evaluations,
            max_seconds=self.max_seconds,
            checkpoint_seconds=self.checkpoint_seconds,
            precision=self.precision,
        )

    def augmentation(self, size: tuple[int, int]) -> AugmentSettings:
        """Return the strengths for images of a size (height, width)."""
        if self.augment is not None:
            return self.augment
        side = min(size)
        return AugmentSettings(crop_pad=side // 8, flip=0.5 * self.flip, cutout=side // 4)


@dataclass(frozen=True)
class Distilled:
    """A trained student and how it came about.

    Attributes:
        student: with the best averaged weights, in eval mode.
        history: one entry per evaluation: `step`, `lr`, `loss`, `seconds`, `holdout_agreement`,
            `holdout_kl` (nats), and agreement by origin where both are held out.
        holdout_agreement: share of held-out images on which the student names the teacher's class.
        holdout_rows: their places in the transfer set; never trained on, so that thresholds can be
            fitted on them.
        steps: steps done.
        best_step: step whose weights were kept.
        resumed_at: step at which this call went on; 0 if it began anew.
        seconds: wall time of training.
    """

    student: Student
    history: list[dict[str, float]]
    holdout_agreement: float
    holdout_rows: Indices
    steps: int
    best_step: int
    resumed_at: int
    seconds: float


def distill(
    teacher: Teacher,
    student: Student,
    transfer: TransferSet,
    settings: KDSettings | None = None,
    *,
    workdir: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Distilled:
    """Train the student, in place, to answer like the teacher on the transfer set.

    Args:
        teacher: frozen; asked about every view unless the settings say otherwise.
        student: trained in place.
        transfer: images with the teacher's logits; labels are not looked at.
        settings: how to train.
        workdir: where the checkpoint lies. Called again after a kill, with the same arguments,
            training goes on and ends with the same result.
        seed: of everything that is drawn.
        device: where to train.
        progress: called with (steps done, steps in all, the last metrics).

    Raises:
        MethodError: classes differ, too few images, or the loss is no longer finite.
    """
    settings = settings or KDSettings()
    device = torch.device(device)
    _check_fit(teacher, student, transfer)
    train_on, held_out = _split(transfer, settings.holdout, seed)
    pool = _Pool(transfer, device)
    draws = _Draws(transfer, train_on, settings, seed)
    generator = torch.Generator(device).manual_seed(seed)
    augment = Augment(settings.augmentation(transfer.size))
    teacher.to(device).to(memory_format=torch.channels_last)

    def batch_loss(network: nn.Module, step: int) -> Tensor:
        indices = draws.at(step)
        images = augment(pool.images(indices), generator=generator)
        mixed = None
        if np.random.default_rng([seed, step]).random() < settings.mixup_share:
            mixed = mixup(images, alpha=settings.mixup_alpha, generator=generator)
            images = mixed.images
        images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = network(images)
        if settings.teacher_view == "augmented":
            with torch.no_grad():
                targets = teacher(images)
            return kd_kl(logits, targets, temperature=settings.temperature)
        targets = pool.logits(indices)
        if mixed is None:
            return kd_kl(logits, targets, temperature=settings.temperature)
        return kd_kl_mixed(
            logits,
            targets,
            targets[mixed.permutation],
            share=mixed.lam,
            temperature=settings.temperature,
        )

    trained = train(
        student,
        batch_loss,
        _judge_on(pool, held_out, _is_real(transfer), settings.batch),
        settings.plan(),
        generators={"batch": generator},
        folder=workdir,
        fingerprint=_fingerprint(teacher, student, transfer, settings, seed),
        seed=seed,
        device=device,
        progress=progress,
    )
    return Distilled(
        student=student,
        history=trained.history,
        holdout_agreement=trained.best.metrics["holdout_agreement"],
        holdout_rows=held_out,
        steps=trained.steps,
        best_step=trained.best_step,
        resumed_at=trained.resumed_at,
        seconds=trained.seconds,
    )


class _Pool:
    """Images and logits by place in the transfer set, on the device where they fit."""

    def __init__(self, transfer: TransferSet, device: torch.device) -> None:
        self._transfer = transfer
        self._device = device
        height, width = transfer.size
        places = np.arange(len(transfer))
        self._resident: tuple[Tensor, Tensor] | None = None
        if len(transfer) * height * width * transfer.channels <= RESIDENT_BYTES:
            self._resident = (self._read_images(places), self._read_logits(places))

    def images(self, indices: Indices) -> Tensor:
        """Return pixels, shape (n, C, H, W) uint8."""
        if self._resident is None:
            return self._read_images(indices)
        return self._resident[0][torch.from_numpy(indices).to(self._device)]

    def logits(self, indices: Indices) -> Tensor:
        """Return the teacher's logits, shape (n, classes) float32."""
        if self._resident is None:
            return self._read_logits(indices)
        return self._resident[1][torch.from_numpy(indices).to(self._device)]

    def _read_images(self, indices: Indices) -> Tensor:
        pixels = torch.from_numpy(self._transfer.images(indices)).to(self._device)
        return pixels.permute(0, 3, 1, 2).contiguous()

    def _read_logits(self, indices: Indices) -> Tensor:
        return torch.from_numpy(self._transfer.logits(indices)).to(self._device)


class _Draws:
    """Which images a step sees: a fixed share of real ones, the rest synthetic."""

    def __init__(
        self, transfer: TransferSet, train_on: Indices, settings: KDSettings, seed: int
    ) -> None:
        real = _is_real(transfer)[train_on]
        share = float(real.mean()) if settings.real_share is None else settings.real_share
        if real.all() or not real.any():
            share = float(real.all())
        count = round(settings.batch * share)
        self._parts = [
            (places, Passes(len(places), batch=number, seed=seed + offset))
            for offset, (places, number) in enumerate(
                [(train_on[real], count), (train_on[~real], settings.batch - count)]
            )
            if number
        ]

    def at(self, step: int) -> Indices:
        """Return places in the transfer set, shape (batch,)."""
        return np.concatenate([places[passes.at(step)] for places, passes in self._parts])


def _judge_on(
    pool: _Pool, held_out: Indices, is_real: NDArray[np.bool_], batch: int
) -> Callable[[nn.Module], Judgement]:
    """Return a function that compares a network with the stored logits of held-out images."""
    parts = [held_out[start : start + batch] for start in range(0, len(held_out), batch)]
    real = torch.from_numpy(is_real[held_out])

    @torch.no_grad()
    def judge(network: nn.Module) -> Judgement:
        logits = torch.cat([network(pool.images(part)).float() for part in parts])
        targets = torch.cat([pool.logits(part) for part in parts])
        agree = agreement(logits, targets).item()
        metrics = {
            "holdout_agreement": agree,
            "holdout_kl": kd_kl(logits, targets, temperature=1.0).item(),
        }
        if real.any() and not real.all():
            chosen = real.to(logits.device)
            metrics["holdout_agreement_real"] = agreement(logits[chosen], targets[chosen]).item()
            metrics["holdout_agreement_synthetic"] = agreement(
                logits[~chosen], targets[~chosen]
            ).item()
        return Judgement(agree, metrics, margin=_standard_error(agree, len(held_out)))

    return judge


def _standard_error(share: float, count: int) -> float:
    """Return the standard error of a share of `count` images, above 0 also where all agree."""
    smoothed = (share * count + 1.0) / (count + 2.0)
    return math.sqrt(smoothed * (1.0 - smoothed) / count)


def _is_real(transfer: TransferSet) -> NDArray[np.bool_]:
    return np.isin(transfer.origins, REAL)


def _split(transfer: TransferSet, share: float, seed: int) -> tuple[Indices, Indices]:
    """Return the places to train on and those held out, the same share of both origins."""
    if len(transfer) < 2:
        raise MethodError(
            f"the transfer set holds {len(transfer)} image; distillation needs at least 2, one of "
            "them held out"
        )
    share = min(share, HOLDOUT_LIMIT / len(transfer))
    real = _is_real(transfer)
    rests, parts = [], []
    for chosen in (np.flatnonzero(real), np.flatnonzero(~real)):
        if round(len(chosen) * share) == 0:  # too few of this origin to hold one out
            rests.append(chosen)
            continue
        rest, part = transfer.split(share, seed=seed, indices=chosen)
        rests.append(rest)
        parts.append(part)
    if not parts:
        return transfer.split(1 / len(transfer), seed=seed)
    return np.concatenate(rests), np.concatenate(parts)


def _check_fit(teacher: Teacher, student: Student, transfer: TransferSet) -> None:
    for name, classes in (("student", student.classes), ("transfer set", transfer.classes)):
        if classes != teacher.classes:
            raise MethodError(
                f"the {name} has the classes {', '.join(classes)}, the teacher "
                f"{', '.join(teacher.classes)}; expected the same in the same order"
            )
    made_with = transfer.manifest["teacher"]["digest"]
    if made_with != teacher.digest:
        raise MethodError(
            f"the transfer set was made with another teacher (digest {made_with[:12]}, this one "
            f"has {teacher.digest[:12]}); build the transfer set again"
        )


def _fingerprint(
    teacher: Teacher, student: Student, transfer: TransferSet, settings: KDSettings, seed: int
) -> str:
    """Return a digest of all that the result depends on; the student's as it starts."""
    values = {
        "settings": asdict(settings),
        "seed": seed,
        "teacher": teacher.digest,
        "transfer": transfer.digest,
        "student": student.digest,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
