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
- A hint on the penultimate vector (`feature_weight`, FitNets) can stand beside the logits.
- A student that is the teacher factored imitates each of its layers too (`layer_weight`), and keeps
  the statistics of its batch norms (`held_statistics`): they are of the teacher's own images, and
  better than those of made ones.
- Real and synthetic images are drawn from their own shuffled passes, so that a hundred real images
  are not lost among thousands of synthetic ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hydistill_edge.images.augment import Augment, AugmentSettings, Mixed, cutmix, mixup
from hydistill_edge.images.transfer_set import Indices, TransferSet
from hydistill_edge.methods.distilled import Distilled, check_fit, fingerprint
from hydistill_edge.methods.pool import Draws, Pool, is_real, judge_on, split
from hydistill_edge.methods.settings import TrainingSettings
from hydistill_edge.models.feature_hint import FeatureHint, HintedStudent
from hydistill_edge.models.layer_hint import LayerHint
from hydistill_edge.models.student import Start, Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.logits import kd_kl, kd_kl_mixed
from hydistill_edge.training.loop import Judgement, Plan, Progress, train

Settings = TypeVar("Settings", bound="KDSettings")

RATES: Mapping[Start, float] = {"fresh": 0.1, "slimmed": 0.03, "factored": 0.003}
"""Peaks of the schedule, by what the student starts from: the nearer to the teacher, the lower."""

LAYER_WEIGHT = 10.0
"""Of a factored student's layers. 3 and 30 taught a CIFAR-10 student about as well."""

HINT_IMAGES = 1024
"""Images that mean and scale of what the teacher's layers give are taken from."""

GRADIENT_CLIP = 5.0
"""Of a factored student: with its statistics held nothing else bounds a step, and one of three
factors a kernel diverged within 120. Norms begin near 5."""


@dataclass(frozen=True)
class KDSettings(TrainingSettings):
    """How the student is trained.

    Attributes:
        steps: optimizer steps.
        temperature: softening of both sides, T > 0.
        learning_rate: peak of the schedule; None for 0.1, and for 0.03 or 0.003 where the student
            is the teacher slimmed or factored, which a larger one makes forget.
        real_share: share of real images in each batch, in [0, 1]; None for their share in the set.
        procedural_share: of the other images of each batch, share of those from formulas, in
            [0, 1]; None to draw from all alike.
        teacher_view: `augmented` asks the teacher about every view that the student sees; `stored`
            takes the logits of the transfer set, which cost nothing and are right for mild
            augmentation only.
        mixup_share: share of the batches in which images are blended in pairs.
        cutmix_share: share of the batches in which each image gets a box of another one.
        mixup_alpha: of the Beta distribution of the shares of a pair, and of the boxes' areas.
        feature_weight: of the hint, the squared distance to the teacher's penultimate vector in
            units of its scale, after a linear map that only training has; 0 for none.
        layer_weight: of the squared distance to what the teacher gives at every layer that was
            factored, in units of each channel's variance; None for 10 where the student is the
            teacher factored, else 0.
        held_statistics: keep the means and variances of batch norms as the teacher learned them;
            None for yes where the student is the teacher factored.
        gradient_clip: norm of all gradients together that a step goes by at most; None for 5 where
            the student is the teacher factored, else for any.
        augment: strengths in full; None for a crop by an eighth of the side, a cutout of a quarter,
            and `flip`.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    rates: ClassVar[Mapping[Start, float]] = RATES

    steps: int = 5000
    batch: int = 250
    temperature: float = 4.0
    learning_rate: float | None = None
    schedule: str = "one_cycle"
    real_share: float | None = None
    procedural_share: float | None = None
    teacher_view: Literal["augmented", "stored"] = "augmented"
    mixup_share: float = 0.5
    cutmix_share: float = 0.0
    mixup_alpha: float = 1.0
    feature_weight: float = 0.0
    layer_weight: float | None = None
    held_statistics: bool | None = None
    gradient_clip: float | None = None
    ema_share: float = 0.02

    def problems(self) -> list[str]:
        """Return what is out of range, one line each."""
        problems = super().problems()
        if not self.temperature > 0:
            problems.append(f"temperature is {self.temperature}; expected more than 0")
        for name in ("real_share", "procedural_share"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                problems.append(f"{name} is {share}; expected a share in [0, 1] or none")
        if self.teacher_view not in ("augmented", "stored"):
            problems.append(f'teacher_view "{self.teacher_view}"; expected "augmented" or "stored"')
        if not 0 <= self.mixup_share <= 1:
            problems.append(f"mixup_share is {self.mixup_share}; expected a share in [0, 1]")
        if not 0 <= self.cutmix_share <= 1 - self.mixup_share:
            problems.append(
                f"cutmix_share is {self.cutmix_share}; expected a share in [0, 1], together with "
                "mixup_share at most 1"
            )
        if not self.mixup_alpha > 0:
            problems.append(f"mixup_alpha is {self.mixup_alpha}; expected more than 0")
        for name in ("feature_weight", "layer_weight"):
            weight = getattr(self, name) or 0.0
            if not 0 <= weight < math.inf:
                problems.append(f"{name} is {weight}; expected at least 0")
            elif weight and self.teacher_view == "stored":
                problems.append(
                    f"{name} is {weight}, and stored views have no features; use teacher_view "
                    "augmented"
                )
        return problems

    def resolved(self: Settings, start: Start) -> Settings:
        """Return these settings with what they leave to the student's start decided."""
        imitates = start == "factored" and self.teacher_view == "augmented"
        layer_weight = LAYER_WEIGHT if imitates else 0.0
        clip = GRADIENT_CLIP if start == "factored" else None
        return replace(
            self,
            gradient_clip=clip if self.gradient_clip is None else self.gradient_clip,
            learning_rate=self.rates[start] if self.learning_rate is None else self.learning_rate,
            layer_weight=layer_weight if self.layer_weight is None else self.layer_weight,
        )

    def batch_norms(self, student: Student) -> AbstractContextManager[None]:
        """Return the block that a student trains in: its statistics are held, or not."""
        held = self.held_statistics
        held = student.start == "factored" if held is None else held
        return student.held_statistics() if held else nullcontext()

    def plan(self) -> Plan:
        """Return what the training loop needs of this; of settings that are resolved."""
        return Plan.of(self)

    def draws(self, transfer: TransferSet, train_on: Indices, seed: int) -> Draws:
        """Return which images a step sees, out of those places that may be trained on."""
        return Draws(
            transfer,
            train_on,
            batch=self.batch,
            real_share=self.real_share,
            procedural_share=self.procedural_share,
            seed=seed,
        )

    def blend(self, images: Tensor, draw: float, generator: torch.Generator) -> Mixed | None:
        """Return the batch with its images blended in pairs, or None where it stays as it is.

        Args:
            images: shape (N, C, H, W) float in [0, 1].
            draw: uniform in [0, 1), which decides for the whole batch.
            generator: of pairs and shares.
        """
        if draw < self.mixup_share:
            return mixup(images, alpha=self.mixup_alpha, generator=generator)
        if draw < self.mixup_share + self.cutmix_share:
            return cutmix(images, alpha=self.mixup_alpha, generator=generator)
        return None

    def augmentation(self, size: tuple[int, int]) -> AugmentSettings:
        """Return the strengths for images of a size (height, width)."""
        if self.augment is not None:
            return self.augment
        side = min(size)
        return AugmentSettings(crop_pad=side // 8, flip=0.5 * self.flip, cutout=side // 4)


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
    settings = (settings or KDSettings()).resolved(student.start)
    device = torch.device(device)
    check_fit(teacher, student, transfer)
    train_on, held_out = split(transfer, settings.holdout, seed)
    pool = Pool(transfer, device)
    draws = settings.draws(transfer, train_on, seed)
    generator = torch.Generator(device).manual_seed(seed)
    augment = Augment(settings.augmentation(transfer.size))
    teacher.to(device).to(memory_format=torch.channels_last)
    plan = settings.plan()
    trained_module: nn.Module = student
    hint, layers = None, None
    if settings.feature_weight or settings.layer_weight:
        some = pool.images(train_on[:: -(-len(train_on) // HINT_IMAGES)])
        student.to(device)
        if settings.feature_weight:
            hint = FeatureHint(student, teacher, some, seed=seed)
            trained_module = HintedStudent(student, hint)
        if settings.layer_weight:
            layers = LayerHint(student, teacher, some)
        # Features are read by hooks on the student's own modules, which a compiled copy passes by.
        plan = replace(plan, compile=False)

    def hinted_loss(images: Tensor) -> Tensor:
        with torch.no_grad():
            seen = teacher.features(images, layers.teacher_layers if layers else ())
        own = student.features(images, layers.student_layers if layers else ())
        loss = kd_kl(own.logits, seen.logits, temperature=settings.temperature)
        if hint is not None:
            loss = loss + settings.feature_weight * hint.loss(own.penultimate, seen.penultimate)
        if layers is not None:
            assert settings.layer_weight is not None
            loss = loss + settings.layer_weight * layers.loss(own.taps, seen.taps)
        return loss

    def batch_loss(network: nn.Module, step: int) -> Tensor:
        indices = draws.at(step)
        images = augment(pool.images(indices), generator=generator)
        mixed = settings.blend(images, np.random.default_rng([seed, step]).random(), generator)
        if mixed is not None:
            images = mixed.images
        images = images.contiguous(memory_format=torch.channels_last)
        if hint is not None or layers is not None:
            return hinted_loss(images)
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

    judge = judge_on(pool, held_out, is_real(transfer), settings.batch)

    def judge_student(network: nn.Module) -> Judgement:
        return judge(network if hint is None else network.get_submodule("student"))

    with settings.batch_norms(student):
        trained = train(
            trained_module,
            batch_loss,
            judge_student,
            plan,
            generators={"batch": generator},
            folder=workdir,
            fingerprint=fingerprint(teacher, student, transfer, settings, seed),
            seed=seed,
            device=device,
            progress=progress,
        )
    return Distilled.of(student, trained, held_out)
