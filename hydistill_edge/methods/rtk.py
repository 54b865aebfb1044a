"""Representative teacher keys: learn from the teacher's layers, and only from those that matter.

Source: Yang, Kao and Huang 2022, "Representative Teacher Keys for Knowledge Distillation Model
Compression Based on Attention Mechanism for Image Classification", arXiv:2206.12788; its parent is
AFD: Ji, Heo and Park 2021, "Show, Attend and Distill", arXiv:2102.02973.

Beside the logits, the student imitates where the teacher's layers are active. Attention between
layers decides which student layer learns from which teacher layer. In AFD every teacher layer asks
and all of them are imitated. In RTK the roles are exchanged: the student's layers ask, so a column
of the attention tells how much they turn to one teacher layer, its influence. Layers whose
influence reaches a threshold are the representative keys; the others are not imitated.

What it needs: a teacher with feature maps (not logits alone), and images in its domain, labelled or
not, real or synthetic.
What it gives: a student of any architecture, unchanged at inference, since the attention serves
training only; and `keys.json`, which teacher layers were chosen and why (see `key_report`).

Where this departs from the papers, and why:

- We could read RTK's abstract, not its equations, k, threshold or weights: the exchange of roles,
  the top-k mean of a column, the threshold relative to the mean influence, the warm-up and the
  freezing are our reading. AFD's equations are certain.
- The attention of each student layer is renormalized over the kept keys. Otherwise it could lower
  the loss by turning to keys that are not in it.
- The weight T / |R|, for |R| kept of T keys, holds the total weight level, and is applied where it
  does: to attention as it is. Renormalized attention (the default) sums to 1 over the kept keys
  already; a second time, the weight would double `beta` for a choice of half of the keys, and a
  gain over `all_keys` might be that of the larger `beta`.
- There are no true labels: the cross entropy of both papers is left out, or taken against the
  teacher's own first class (`label_weight`).
- An epoch is a 240th of the training (`epochs`), whatever the size of the set: with few images a
  pass over them takes moments, with many a training has few passes.
- Weights are averaged and chosen on a hold-out as in `kd`, for a fair comparison with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.errors import MethodError
from hydistill_edge.images.augment import Augment, AugmentSettings
from hydistill_edge.images.transfer_set import Indices, TransferSet
from hydistill_edge.methods.distilled import Distilled, check_fit, fingerprint
from hydistill_edge.methods.kd import RATES, KDSettings
from hydistill_edge.methods.key_choice import KeyChoice
from hydistill_edge.methods.key_report import KEYS_FILE, MAP_SIDE, Layer, Measured, key_report
from hydistill_edge.methods.pool import Pool, is_real, judge_on, split
from hydistill_edge.models.attention import AfdAttention, RtkAttention
from hydistill_edge.models.projector import pool_to
from hydistill_edge.models.student import Start, Student
from hydistill_edge.models.tap_choice import default_taps
from hydistill_edge.models.taps import check_taps
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.keys import afd_loss, influences, mean_square, rtk_loss
from hydistill_edge.objectives.logits import kd_kl
from hydistill_edge.training.loop import Judgement, Progress, train

Variant = Literal["rtk", "afd", "all_keys", "random_keys"]
VARIANTS: tuple[Variant, ...] = ("rtk", "afd", "all_keys", "random_keys")


@dataclass(frozen=True)
class RTKSettings(KDSettings):
    """How the student is trained and how teacher keys are chosen; the other keys are those of kd.

    Attributes:
        variant: `rtk`; `afd` (the parent: teacher layers ask, all are imitated); `all_keys` (rtk
            without a choice); `random_keys` (as many keys as rtk would keep, drawn at random).
        steps: optimizer steps. Published: 240 passes over the images in batches of 64.
        batch: images per step.
        learning_rate: peak of the schedule; None for 0.05, and for that of kd where the student is
            the teacher slimmed or factored.
        schedule: `three_step` (a tenth of the rate from 62.5, 75 and 87.5 % of the steps on),
            `one_cycle`, `cosine` or `multi_step`.
        mixup_share: share of the batches in which images are blended in pairs.
        teacher_view: `augmented` only: the teacher's layers are needed for the very view.
        layer_weight: 0 only: the loss between layers has its own weight, `beta`.
        kd_weight: of the softened logits' loss.
        label_weight: of the cross entropy against the teacher's first class, temperature 1.
        beta: of the layers' loss. Published for AFD: 200 at 32 px, 50 on ImageNet.
        attention_width: length of queries and keys.
        teacher_taps: names of the teacher's layers; null for every residual block.
        student_taps: names of the student's layers; null for every residual block.
        top_k: how many of a column's largest weights make the influence; null for half of the
            student's layers, rounded up.
        threshold: keys are kept whose influence reaches this multiple of the mean; 0 keeps all.
        channel_share: of each kept key's channels, those with the largest mean square; 1 for all.
        epochs: parts of equal length that the training is cut into; keys are chosen at their ends.
        warmup_epochs: epochs at the start in which all keys are kept.
        freeze_share: share of the training after which the choice stays.
        influence_momentum: of the running means of influences and channels, per step, in [0, 1).
        renormalize: let the weights over the kept keys sum to 1.
        keys: names of teacher layers to keep from the start, as another run or site chose them;
            empty to choose here.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    rates: ClassVar[Mapping[Start, float]] = {**RATES, "fresh": 0.05}

    batch: int = 64
    schedule: str = "three_step"
    mixup_share: float = 0.0
    layer_weight: float | None = 0.0
    variant: Variant = "rtk"
    kd_weight: float = 0.9
    label_weight: float = 0.0
    beta: float = 200.0
    attention_width: int = 128
    teacher_taps: tuple[str, ...] | None = None
    student_taps: tuple[str, ...] | None = None
    top_k: int | None = None
    threshold: float = 1.0
    channel_share: float = 1.0
    epochs: int = 240
    warmup_epochs: int = 10
    freeze_share: float = 0.6
    influence_momentum: float = 0.9
    renormalize: bool = True
    keys: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return what is out of range, one line each."""
        problems = super().problems()
        if self.variant not in VARIANTS:
            problems.append(f'variant "{self.variant}"; expected one of {", ".join(VARIANTS)}')
        if self.teacher_view != "augmented":
            problems.append('teacher_view "stored"; expected "augmented" (stored has no layers)')
        for name in ("feature_weight", "layer_weight"):
            if getattr(self, name) != 0:
                problems.append(
                    f"{name} is {getattr(self, name)}; rtk learns from layers, use beta"
                )
        for name in ("kd_weight", "label_weight", "beta", "threshold"):
            if not getattr(self, name) >= 0:
                problems.append(f"{name} is {getattr(self, name)}; expected at least 0")
        for name in ("attention_width", "epochs"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k is {self.top_k}; expected at least 1, or none")
        if not 0 < self.channel_share <= 1:
            problems.append(f"channel_share is {self.channel_share}; expected a share in (0, 1]")
        if self.warmup_epochs < 0:
            problems.append(f"warmup_epochs is {self.warmup_epochs}; expected at least 0")
        if not 0 <= self.freeze_share <= 1:
            problems.append(f"freeze_share is {self.freeze_share}; expected a share in [0, 1]")
        if not 0 <= self.influence_momentum < 1:
            problems.append(
                f"influence_momentum is {self.influence_momentum}; expected a share in [0, 1)"
            )
        if (
            self.variant in ("rtk", "random_keys")
            and not self.keys
            and self.warmup_epochs >= self.freeze_share * self.epochs
        ):
            problems.append(
                f"the first {self.warmup_epochs} of {self.epochs} epochs keep all keys, and the "
                f"choice is frozen after {self.freeze_share:g} of them, so no key would ever be "
                "chosen; shorten the warm-up, or use variant all_keys"
            )
        if self.keys and self.variant in ("afd", "all_keys", "random_keys"):
            problems.append(f"keys are given, and variant {self.variant} keeps its own; use rtk")
        return problems

    def augmentation(self, size: tuple[int, int]) -> AugmentSettings:
        """Return the strengths for images of a size (height, width): no cutout, as published."""
        settings = super().augmentation(size)
        return settings if self.augment is not None else replace(settings, cutout=0)


class LayerObjective(nn.Module):
    """The loss between layers, with its attention and its choice of keys.

    It adds up with any other objective: `loss` takes what `features` of student and teacher give.

    Args:
        student: whose layers learn.
        teacher: whose layers are learned from.
        settings: how; see `RTKSettings`.
        seed: of the attention's weights and of random keys.

    Attributes:
        student_layers: what is read of the student, in order.
        teacher_layers: what is read of the teacher, in order.
        attention: trained together with the student.
        choice: which keys are kept; it is also the memory that a checkpoint must hold.

    Raises:
        MethodError: a tap is no feature map, or a network has none.
        UsageError: a tap or key of another name, or `top_k` above the number of student layers.
    """

    def __init__(
        self, student: Student, teacher: Teacher, settings: RTKSettings, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings = settings
        self.student_layers = _layers(student, settings.student_taps, "student")
        self.teacher_layers = _layers(teacher, settings.teacher_taps, "teacher")
        kind = AfdAttention if settings.variant == "afd" else RtkAttention
        self.attention: AfdAttention | RtkAttention = kind(
            [layer.shape[0] for layer in self.student_layers],
            [layer.shape[0] for layer in self.teacher_layers],
            width=settings.attention_width,
            seed=seed,
        )
        self.choice = KeyChoice(
            [layer.name for layer in self.teacher_layers],
            factor=0.0 if settings.variant in ("afd", "all_keys") else settings.threshold,
            channel_share=settings.channel_share if settings.variant != "afd" else 1.0,
            momentum=settings.influence_momentum,
            fixed=settings.keys,
            shuffled_by=seed if settings.variant == "random_keys" else None,
            first_step=-(-settings.warmup_epochs * settings.steps // settings.epochs),
            frozen_step=round(settings.freeze_share * settings.steps),
            steps=settings.steps,
            epochs=settings.epochs,
        )
        if settings.variant != "afd":
            influences(torch.zeros(1, len(self.student_layers), 1), top_k=settings.top_k)

    @property
    def student_taps(self) -> list[str]:
        """Names of the student's layers, for `Student.features`."""
        return [layer.name for layer in self.student_layers]

    @property
    def teacher_taps(self) -> list[str]:
        """Names of the teacher's layers, for `Teacher.features`."""
        return [layer.name for layer in self.teacher_layers]

    def weights(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the attention: (N, S, T), or (N, T, S) for variant `afd`.

        Args:
            student: S feature maps (N, C_s, H_s, W_s).
            teacher: T feature maps (N, C_t, H_t, W_t); detached.
        """
        found: Tensor = self.attention(
            [features.mean(dim=(2, 3)) for features in student],
            [features.detach().mean(dim=(2, 3)) for features in teacher],
        )
        return found

    def loss(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], step: int
    ) -> Tensor:
        """Return the weighted loss on the kept keys, shape (); notes influences.

        Args:
            student: feature maps by tap; gradients flow here.
            teacher: feature maps by tap; detached.
            step: of the training, from 0; called once for each.
        """
        own = [student[name] for name in self.student_taps]
        seen = [teacher[name] for name in self.teacher_taps]
        self.choice.turn(step)
        attention = self.weights(own, seen)
        if self.settings.variant == "afd":
            self.choice.note(None, attention, ())
            return self.settings.beta * afd_loss(own, seen, attention)
        scores = influences(attention, top_k=self.settings.top_k).mean(dim=0)
        self.choice.note(scores, attention, seen)
        kept = self.choice.kept
        found = rtk_loss(
            own,
            seen,
            attention,
            kept=kept,
            channels=self.choice.channels,
            renormalize=self.settings.renormalize,
        )
        level = 1.0 if self.settings.renormalize else len(seen) / len(kept)
        return self.settings.beta * level * found


class _Pair(nn.Module):
    """Student and attention as one module, so that one loop trains, averages and saves both."""

    def __init__(self, student: Student, layers: LayerObjective) -> None:
        super().__init__()
        self.student = student
        self.attention = layers.attention


def distill(
    teacher: Teacher,
    student: Student,
    transfer: TransferSet,
    settings: RTKSettings | None = None,
    *,
    workdir: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Distilled:
    """Train the student, in place, on the teacher's logits and its representative keys.

    Args:
        teacher: frozen; its logits and layers are asked for every view.
        student: trained in place.
        transfer: images with the teacher's logits; labels are not looked at.
        settings: how to train.
        workdir: where the checkpoint lies. Called again after a kill, with the same arguments,
            training goes on and ends with the same result.
        seed: of everything that is drawn.
        device: where to train.
        progress: called with (steps done, steps in all, the last metrics).

    Returns:
        The student, and `keys.json` among the documents.

    Raises:
        MethodError: classes differ, too few images, no feature maps, or the loss is not finite.
        UsageError: an unknown tap or key.
    """
    settings = (settings or RTKSettings()).resolved(student.start)
    device = torch.device(device)
    check_fit(teacher, student, transfer)
    digest = fingerprint(teacher, student, transfer, settings, seed)
    train_on, held_out = split(transfer, settings.holdout, seed)
    pool = Pool(transfer, device)
    draws = settings.draws(transfer, train_on, seed)
    generator = torch.Generator(device).manual_seed(seed)
    augment = Augment(settings.augmentation(transfer.size))
    teacher.to(device).to(memory_format=torch.channels_last)
    layers = LayerObjective(student, teacher, settings, seed=seed).to(device)
    pair = _Pair(student, layers)

    def batch_loss(_network: nn.Module, step: int) -> Tensor:
        images = augment(pool.images(draws.at(step)), generator=generator)
        mixed = settings.blend(images, np.random.default_rng([seed, step]).random(), generator)
        if mixed is not None:
            images = mixed.images
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            seen = teacher.features(images, layers.teacher_taps)
        own = student.features(images, layers.student_taps)
        loss = layers.loss(own.taps, seen.taps, step)
        loss = loss + settings.kd_weight * kd_kl(
            own.logits, seen.logits, temperature=settings.temperature
        )
        if settings.label_weight:
            hard = F.cross_entropy(own.logits.float(), seen.logits.argmax(dim=1))
            loss = loss + settings.label_weight * hard
        return loss

    judge = judge_on(pool, held_out, is_real(transfer), settings.batch)

    def judge_student(network: nn.Module) -> Judgement:
        return judge(network.get_submodule("student"))

    with settings.batch_norms(student):
        trained = train(
            pair,
            batch_loss,
            judge_student,
            # Taps are read by hooks on the student's own modules, which a compiled copy passes by.
            replace(settings.plan(), compile=False),
            generators={"batch": generator},
            folder=workdir,
            fingerprint=digest,
            seed=seed,
            device=device,
            progress=progress,
            memory=layers.choice,
        )
    measured = None
    if settings.variant != "afd":
        measured = _measure(teacher, student, layers, pool, held_out, is_real(transfer))
    report = key_report(
        teacher,
        student,
        variant=settings.variant,
        student_layers=layers.student_layers,
        teacher_layers=layers.teacher_layers,
        choice=layers.choice,
        top_k=settings.top_k or -(-len(layers.student_layers) // 2),
        images=len(train_on),
        measured=measured,
    )
    return Distilled.of(student, trained, held_out, documents={KEYS_FILE: report})


@torch.no_grad()
def _measure(
    teacher: Teacher,
    student: Student,
    layers: LayerObjective,
    pool: Pool,
    held_out: Indices,
    real: np.ndarray[Any, np.dtype[np.bool_]],
) -> Measured:
    """Return the influences on held-out images, which may differ from those in training."""
    layers.eval()
    scores, named = [], []
    kept = [layers.teacher_taps[place] for place in layers.choice.kept]
    active: dict[str, list[Tensor]] = {name: [] for name in kept}
    batch = layers.settings.batch
    for start in range(0, len(held_out), batch):
        images = pool.images(held_out[start : start + batch])
        seen = teacher.features(images, layers.teacher_taps)
        own = student.features(images, layers.student_taps)
        attention = layers.weights(list(own.taps.values()), list(seen.taps.values()))
        scores.append(influences(attention, top_k=layers.settings.top_k).cpu())
        named.append(seen.logits.argmax(dim=1).cpu())
        for name in kept:
            activity = mean_square(seen.taps[name])[:, None]
            active[name].append(pool_to(activity, (MAP_SIDE, MAP_SIDE))[:, 0].cpu())
    classes = torch.cat(named)
    of_class = F.one_hot(classes, len(teacher.classes)).double()
    of_class = of_class / of_class.sum(dim=0).clamp_min(1.0)
    maps = [
        torch.einsum("nc,nhw->chw", of_class, torch.cat(active[name]).double()).numpy()
        for name in kept
    ]
    return Measured(torch.cat(scores).numpy(), classes.numpy(), real[held_out], maps)


def _layers(
    network: Student | Teacher, asked: tuple[str, ...] | None, side: str
) -> tuple[Layer, ...]:
    """Return the layers to read, refusing what has no place in it."""
    shapes = network.tap_shapes()
    names = asked if asked is not None else default_taps(network.network, shapes)
    known = [name for name, shape in shapes.items() if len(shape) == 3]
    flat = [name for name in names if name in shapes and name not in known]
    if flat or not names:
        raise MethodError(
            f"{side} taps {', '.join(flat) or '(none)'}: expected at least one layer, each with a "
            f"feature map (C, H, W); known: {', '.join(known)}"
        )
    check_taps(names, known)
    return tuple(Layer(name, shapes[name]) for name in names)
