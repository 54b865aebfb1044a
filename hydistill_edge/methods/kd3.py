"""KD³: distillation from a pool of web images; teacher and student choose those that fit.

Source: Tang, Chen, Niu, Sugiyama and Gong 2023, "Distribution Shift Matters for Knowledge
Distillation with Webly Collected Images", arXiv:2307.11469.

Web images differ from the teacher's own in two ways: what they show is often none of its classes,
and they look different (drawings, sketches, product shots). Three parts answer that:

- selection: before every epoch teacher and student together score the pool, and only images above
  the bar of their class are trained on; the student's say grows (`images/selection.py`);
- weighted alignment: the student's projected feature map becomes the teacher's, images on which
  both disagree count up to twice as much, and the teacher's classifier is used as it is;
- mixing: the same image in another one's colors must have the same embedding.

What it needs: a teacher whose logits are a linear layer of its last map's mean, and a pool.
What it gives: a student of backbone, projector and the teacher's classifier as one network, and a
record of which images were used, when and why.

Where this departs from the released code, and why:

- The pool is scored in one deterministic view with the teacher's stored logits, without gradients.
- Images are mixed as pixels in [0, 1], unclamped: the same up to the networks' normalisations,
  each of which knows its own statistics.
- A selection that is too small is replaced by the most confident hundredth of the pool, and said.
- Nesterov momentum, no weight decay on biases and norms, and the latest weights whose agreement on
  a hold-out is within a standard error of the highest: the released code took the best test epoch.
- A last batch of a single image joins the one before it: batch norm needs a spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError
from hydistill_edge.images.augment import Augment, AugmentSettings
from hydistill_edge.images.decisions import Decisions, read_decisions
from hydistill_edge.images.selection import (
    FALLBACK_SHARE,
    Combine,
    Rows,
    teacher_share,
)
from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.methods import comparison
from hydistill_edge.methods.deployment import Head, Lesson, deploy, head_problems
from hydistill_edge.methods.distilled import Distilled, check_fit, fingerprint, portion
from hydistill_edge.methods.epochs import Epochs
from hydistill_edge.methods.pool import Pool, is_real, judge_on, split
from hydistill_edge.methods.quick_teacher import quick_answers
from hydistill_edge.methods.settings import TrainingSettings
from hydistill_edge.models.heads import EMBEDDING, EmbeddingHead
from hydistill_edge.models.projected import StudentParts, project
from hydistill_edge.models.projector import Parts, ProjectorForm, match_maps
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import eval_mode
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.alignment import (
    disagreement_weights,
    feature_alignment,
    weighted_alignment,
)
from hydistill_edge.objectives.style import draw_partners, mix_distribution, nt_xent
from hydistill_edge.training.loop import Judgement, Plan, Progress, train
from hydistill_edge.training.sampling import Passes

RECORD = "selection"
"""Folder in the work directory with the selections of a training that is under way."""

AUDIT = "selection.json"
"""The audit record among the documents."""

PUBLISHED_EPOCHS = 240
"""The epochs on whose scale the teacher's share is published; other lengths are stretched to it."""

STAGES: Mapping[str, Mapping[str, Any]] = {
    "all of the pool": {"selection": "all", "weights": False, "mixing": False},
    "+ selection": {"weights": False, "mixing": False},
    "+ weights": {"mixing": False},
}
"""The stages before the whole method, by what the settings lack."""

SelectionKind = Literal["dynamic", "all", "random"]


@dataclass(frozen=True)
class KD3Settings(TrainingSettings):
    """How the student is trained; the defaults are the published ones.

    The three stages are switched by `selection`, `weights` and `mixing`.

    Attributes:
        epochs: passes over what is selected.
        steps_per_epoch: optimizer steps in each; null for one pass over what is selected.
        selection: `dynamic` as published; `all` takes the whole pool; `random` takes as many images
            as `dynamic` would, at random.
        threshold: bar of the most frequent class; the others' are lower.
        takeover: epoch of 240 from which the student selects alone.
        curve: how sharply the teacher's share falls before.
        curve_epochs: length of that curve in epochs of 240.
        combine: `logits` as published, or `probabilities` where the two networks' logits differ in
            scale.
        fallback_share: share of the pool that is taken where fewer than two batches pass; 0 for
            never.
        decisions: file with decisions of people on single images (`hydistill review`).
        weights: weigh images by the disagreement of student and teacher.
        mixing: contrast every image with itself in another one's colors.
        contrast_weight: of the contrastive terms.
        contrast_temperature: above 0.
        teacher_contrast: train an embedding of the teacher too. It does not reach the student.
        beta: of the Beta distribution of the shares of style.
        embedding: length of an embedding.
        projector: from the student's map to the teacher's; null for the published one.
        head: what makes the logits of the deployed student: `projector`, with the teacher's
            classifier behind it, as published; or `folded`, the student's own head, which learns
            from those two at the end, on what was selected last.
        fold_steps: optimizer steps of the fold; 0 fits the head alone.
        compare: train the three earlier stages too (all of the pool, with the selection, with the
            weights), for as many epochs, and hold them against this one (`comparison.json`).
        schedule: `three_step` (a tenth from 62.5, 75 and 87.5 % on) as published, or another.
        augment: strengths in full; null for crops of 8 to 100 % of the area, and `flip`.
        holdout: share of the pool that chooses the weights; never trained on.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    epochs: int = PUBLISHED_EPOCHS
    steps_per_epoch: int | None = None
    batch: int = 1024
    selection: SelectionKind = "dynamic"
    threshold: float = 0.95
    takeover: float = 120.0
    curve: float = 5.0
    curve_epochs: float = 160.0
    combine: Combine = "logits"
    fallback_share: float = FALLBACK_SHARE
    decisions: str | None = None
    weights: bool = True
    mixing: bool = True
    contrast_weight: float = 0.001
    contrast_temperature: float = 0.3
    teacher_contrast: bool = True
    beta: float = 0.1
    embedding: int = EMBEDDING
    projector: ProjectorForm | None = None
    head: Head = "projector"
    fold_steps: int = 1000
    compare: bool = False
    learning_rate: float = 0.05
    schedule: str = "three_step"

    def problems(self) -> list[str]:
        """Return what is out of range, one line each."""
        problems = super().problems()
        problems += [
            f"{name} is {value}; expected {wanted}"
            for name, value, holds, wanted in (
                ("epochs", self.epochs, self.epochs >= 1, "at least 1"),
                (
                    "steps_per_epoch",
                    self.steps_per_epoch,
                    self.steps_per_epoch is None or self.steps_per_epoch >= 1,
                    "at least 1 or none",
                ),
                (
                    "selection",
                    self.selection,
                    self.selection in get_args(SelectionKind),
                    ", ".join(get_args(SelectionKind)),
                ),
                (
                    "combine",
                    self.combine,
                    self.combine in get_args(Combine),
                    ", ".join(get_args(Combine)),
                ),
                ("threshold", self.threshold, 0 <= self.threshold < 1, "a number in [0, 1)"),
                ("curve_epochs", self.curve_epochs, self.curve_epochs > 0, "more than 0"),
                (
                    "fallback_share",
                    self.fallback_share,
                    0 <= self.fallback_share <= 1,
                    "a share in [0, 1]",
                ),
                ("contrast_weight", self.contrast_weight, self.contrast_weight >= 0, "at least 0"),
                (
                    "contrast_temperature",
                    self.contrast_temperature,
                    self.contrast_temperature > 0,
                    "more than 0",
                ),
                ("beta", self.beta, self.beta > 0, "more than 0"),
                ("embedding", self.embedding, self.embedding >= 1, "at least 1"),
            )
            if not holds
        ]
        whole = self.selection == "dynamic" and self.weights and self.mixing
        if self.compare and not whole:
            problems.append("compare trains the stages itself; leave selection, weights and mixing")
        problems += head_problems(self)
        return problems

    def plan(self, steps_per_epoch: int) -> Plan:
        """Return what the training loop needs of this."""
        return Plan.of(self, steps=self.epochs * steps_per_epoch)

    def augmentation(self) -> AugmentSettings:
        """Return the strengths of the augmentation."""
        if self.augment is not None:
            return self.augment
        return AugmentSettings(resized_crop=0.92, flip=0.5 * self.flip)

    def teacher_share(self, epoch: int) -> float:
        """Return the teacher's say in an epoch, counted from 1."""
        published = 1.0 + (epoch - 1) * PUBLISHED_EPOCHS / self.epochs
        return teacher_share(
            published, takeover=self.takeover, curve=self.curve, curve_epochs=self.curve_epochs
        )


def distill(
    teacher: Teacher,
    student: Student,
    transfer: TransferSet,
    settings: KD3Settings | None = None,
    *,
    workdir: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Distilled:
    """Train a copy of the student's backbone, with a projector, on what is selected of the pool.

    Args:
        teacher: frozen; its classifier becomes the student's.
        student: gives the backbone; it is not changed. The trained student is another one, with
            projector and classifier unless its head is folded.
        transfer: the pool with the teacher's logits; labels are not looked at.
        settings: how to train.
        workdir: where the checkpoint lies. Called again after a kill, with the same arguments,
            training goes on and ends with the same result.
        seed: of everything that is drawn.
        device: where to train.
        progress: called with (steps done, steps in all, the last metrics).

    Returns:
        The student, and among the documents the audit record (`selection.json`) and what of the
        student is deployed (`deployment.json`); with `compare` also the stages
        (`comparison.json`).

    Raises:
        MethodError: classes differ, the teacher's classifier cannot be shared, too few images, no
            image passes and there is no fallback, or the loss is no longer finite.
    """
    settings = settings or KD3Settings()
    device = torch.device(device)
    check_fit(teacher, student, transfer)
    teacher.to(device).to(memory_format=torch.channels_last)
    trained_network = _Trained(student, teacher, settings, seed).to(device)
    decisions = read_decisions(Path(settings.decisions)) if settings.decisions else Decisions()
    train_on, held_out = split(transfer, settings.holdout, seed)
    pool = Pool(transfer, device)
    epochs = Epochs(
        transfer,
        pool,
        _allowed(transfer, train_on, decisions),
        trained_network,
        trained_network.student,
        settings,
        seed,
        folder=workdir / RECORD,
        accepted=_named(transfer, train_on, decisions.ids("accept")),
    )
    generators = {
        # One each, so that views are the same with and without mixing.
        "views": torch.Generator(device).manual_seed(seed),
        "styles": torch.Generator(device).manual_seed(seed + 1),
    }
    augment = Augment(settings.augmentation())
    ask = quick_answers(teacher, device)

    def batch_loss(network: nn.Module, step: int) -> Tensor:
        images = augment(pool.images(epochs.rows_at(step)), generator=generators["views"])
        images = images.contiguous(memory_format=torch.channels_last)
        seen: _Seen = network(images)
        target = ask(images)
        student_map, teacher_map = match_maps(seen.parts.projected, target.final_map)
        if settings.weights:
            weights = disagreement_weights(seen.parts.logits, target.logits)
            loss = weighted_alignment(student_map, teacher_map, weights=weights)
        else:
            loss = feature_alignment(student_map, teacher_map)
        if not settings.mixing:
            return loss
        partners, shares = draw_partners(
            len(images), beta=settings.beta, generator=generators["styles"]
        )
        mixed = mix_distribution(images, partners=partners, shares=shares)
        contrast = nt_xent(
            seen.embedding, network(mixed).embedding, temperature=settings.contrast_temperature
        )
        if settings.teacher_contrast:
            other = ask(mixed).penultimate
            head = trained_network.teacher_head
            contrast = contrast + nt_xent(
                head(target.penultimate), head(other), temperature=settings.contrast_temperature
            )
        return loss + settings.contrast_weight * contrast

    judge = judge_on(pool, held_out, is_real(transfer), settings.batch)

    def judge_student(network: nn.Module) -> Judgement:
        assert isinstance(network, _Trained)
        return judge(network.student)

    plan = settings.plan(epochs.nominal)
    others = STAGES if settings.compare else {}
    parts = 1 + len(others) + (settings.head == "folded")
    outcome = train(
        trained_network,
        batch_loss,
        judge_student,
        plan,
        generators=generators,
        folder=workdir,
        fingerprint=_fingerprint(teacher, student, transfer, settings, seed, decisions),
        seed=seed,
        device=device,
        progress=portion(progress, 0, parts),
        memory=epochs,
        position=epochs.position,
    )
    documents = {AUDIT: epochs.audit()}
    if others:
        rows = []
        for place, (name, changes) in enumerate(others.items()):
            other = distill(
                teacher,
                student,
                transfer,
                replace(settings, compare=False, head="projector", **changes),
                workdir=workdir / f"stage-{place}",
                seed=seed,
                device=device,
                progress=portion(progress, 1 + place, parts),
            )
            rows.append(comparison.Row(name, _told(other), other.student, other.steps))
        own = Distilled.of(trained_network.student, outcome, held_out, documents=documents)
        rows.append(comparison.Row("+ mixing", _told(own), own.student, own.steps))
        told = comparison.compare(rows, teacher, pool, held_out, batch=settings.batch)
        documents[comparison.DOCUMENT] = {"of": "stages", **told, "gate": None}
    selected = epochs.last_rows()
    last = Passes(len(selected), batch=settings.batch, seed=seed)
    return deploy(
        Distilled.of(trained_network.student, outcome, held_out, documents=documents),
        student,
        Lesson(pool, selected, lambda step: selected[last.at(step)], judge, len(held_out)),
        settings,
        plan=plan,
        workdir=workdir,
        seed=seed,
        device=device,
        progress=portion(progress, parts - 1, parts),
    )


class _Seen(NamedTuple):
    """What one pass of the student gives: its parts, and an embedding (N, D) of length 1."""

    parts: Parts
    embedding: Tensor


class _Trained(nn.Module):
    """All that is trained: the student with its projector, and the heads that only training needs.

    Args:
        student: gives the backbone, which is copied.
        teacher: gives the classifier, which is copied and stays frozen.
        settings: of projector and heads.
        seed: of the new weights.
    """

    def __init__(
        self, student: Student, teacher: Teacher, settings: KD3Settings, seed: int
    ) -> None:
        super().__init__()
        self.student_parts = StudentParts(
            project(student, teacher, form=settings.projector, seed=seed)
        )
        with torch.no_grad(), eval_mode(self):
            pixels = torch.full((1, student.channels, *student.size), 0.5)
            parameter = next(self.parameters())
            vector = self.student_parts(pixels.to(parameter.device)).vector
            pixels = pixels.to(next(teacher.parameters()).device)
            penultimate = teacher.features(pixels).penultimate
        self.student_head = EmbeddingHead(
            vector.shape[1], embedding=settings.embedding, seed=seed + 1
        )
        self.teacher_head = EmbeddingHead(
            penultimate.shape[1], embedding=settings.embedding, seed=seed + 2
        )

    @property
    def student(self) -> Student:
        """The student that is deployed."""
        return self.student_parts.student

    def forward(self, pixels: Tensor) -> _Seen:
        """Return parts and embedding of pixels (N, C, H, W), which may leave [0, 1]."""
        parts: Parts = self.student_parts(pixels)
        return _Seen(parts, self.student_head(parts.vector))


def _told(found: Distilled) -> str:
    """Return what the last epoch of a training saw."""
    last = found.documents[AUDIT]["epochs"][-1]
    return f"{last['selected']:,} of {last['pool']:,} images in the last epoch"


def _allowed(transfer: TransferSet, rows: Rows, decisions: Decisions) -> Rows:
    """Return the places that no person has ruled out."""
    barred = _named(transfer, rows, decisions.ids("reject", "delete"))
    allowed = rows[~np.isin(rows, barred)]
    if len(allowed) < 2:
        raise MethodError(
            f"{len(allowed)} of {len(rows)} images of the pool are left after the decisions; "
            "expected at least 2: reject fewer, or give more images"
        )
    return allowed


def _named(transfer: TransferSet, rows: Rows, ids: list[str]) -> Rows:
    """Return the places, among some, of the images with these ids."""
    wanted = set(ids)
    if not wanted:
        return np.zeros(0, np.int64)
    names = transfer.ids.take(rows)
    return rows[np.array([name in wanted for name in names], np.bool_)]


def _fingerprint(
    teacher: Teacher,
    student: Student,
    transfer: TransferSet,
    settings: KD3Settings,
    seed: int,
    decisions: Decisions,
) -> str:
    return f"{fingerprint(teacher, student, transfer, settings, seed)}-{decisions.digest}"
