"""HiDFD: distillation from a few collected images and many that a GAN made after them.

Source: Tang, Chen and Gong 2024, "Hybrid Data-Free Knowledge Distillation", arXiv:2412.13525,
second module; the first one is `synthesis/gan.py`. The transfer set joins the two.

The student's last feature map, brought to the teacher's channels by a projector, is made equal to
the teacher's, and the teacher's own classifier turns its mean into logits. Nothing else is asked:
no label is used, so a wrong pseudo-label does no harm. Collected images are repeated N times among
the synthetic ones, which moves the mixture towards the real distribution.

What it needs: a teacher whose logits are a linear layer of its last map's mean, and a transfer set
of collected and synthetic images.
What it gives: a student of backbone, projector and the teacher's classifier as one network.

Three arms can be trained under one budget of steps, to show what each part of the set is worth:
`synthetic`, `collected` and `hybrid`.

Where this departs from the released code, and why:

- One list of N times the collected and once the synthetic images is shuffled anew in every pass,
  as published, and each repeat is augmented afresh.
- Every image is seen by student and teacher under their own normalisation; there, student images
  had the statistics of one data set in training and of another in validation.
- The weights that are kept are the latest whose agreement on collected images held out is within a
  standard error of the highest; there, the best epoch on the test set was reported.
- Nesterov momentum, and no weight decay on biases and norms.
- The decays of the rate stand at the same shares of the budget for all arms.
- The activation-region terms are an option of our own: the paper does not have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError
from hydistill_edge.images.augment import Augment, AugmentSettings
from hydistill_edge.images.transfer_set import Indices, TransferSet
from hydistill_edge.methods import comparison
from hydistill_edge.methods.deployment import Head, Lesson, deploy, head_problems
from hydistill_edge.methods.distilled import Distilled, check_fit, fingerprint, portion
from hydistill_edge.methods.pool import Pool, is_real, judge_on, split
from hydistill_edge.methods.quick_teacher import quick_answers
from hydistill_edge.methods.settings import TrainingSettings
from hydistill_edge.models.anatomy import probe_input
from hydistill_edge.models.projected import StudentParts, project
from hydistill_edge.models.projector import Parts, ProjectorForm, match_maps
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import Tap, eval_mode, list_taps, reading
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.alignment import feature_alignment
from hydistill_edge.objectives.regions import (
    class_activation_maps,
    grad_cam,
    region_consistency,
    region_difference,
)
from hydistill_edge.training.loop import Judgement, Plan, Progress, train
from hydistill_edge.training.sampling import Passes

Arm = Literal["synthetic", "collected", "hybrid"]
ARMS: tuple[Arm, ...] = get_args(Arm)

DOCUMENT = "hidfd.json"
"""What was trained on, among the documents."""

REGION_RISE = 0.1
"""Share of all steps over which the activation-region terms come in."""

FEW_HELD_OUT = 20
"""With fewer collected images held out, synthetic ones help to choose the weights."""

_SLOW = ("mobilenet", "shufflenet", "efficientnet")


@dataclass(frozen=True)
class HiDFDSettings(TrainingSettings):
    """How the student is trained; the defaults are the published ones.

    Attributes:
        arm: `hybrid`, or one of its parts alone: `synthetic`, `collected`.
        inflation: how often each collected image stands in the list that a pass goes through.
        epochs: passes over the hybrid list, where `steps` is null.
        steps: optimizer steps; the same for all arms.
        projector: from the student's map to the teacher's; null for the published one.
        head: what makes the logits of the deployed student: `projector`, with the teacher's
            classifier behind it, as published; or `folded`, the student's own head, which learns
            from those two at the end.
        fold_steps: optimizer steps of the fold; 0 fits the head alone.
        compare: train the other two arms too, under the same budget of steps, and judge whether a
            larger stage is worth it (`comparison.json`).
        gap_points: how far below the teacher the hybrid arm may lie for that, in percent points.
        usual_images: real images that other ways of collecting take; what is saved against them is
            told. null for no comparison.
        regions: weight of the activation-region terms, 0 for none; they come in over the first
            tenth of the steps.
        learning_rate: peak of the schedule; null for 0.05, and 0.01 for MobileNet, ShuffleNet and
            EfficientNet.
        schedule: `three_step` (a tenth from 62.5, 75 and 87.5 % on) as published, or another.
        augment: strengths in full; null for crops of 8 to 100 % of the area, and `flip`.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    arm: Arm = "hybrid"
    inflation: int = 10
    epochs: int = 240
    steps: int | None = None
    projector: ProjectorForm | None = None
    head: Head = "projector"
    fold_steps: int = 1000
    compare: bool = False
    gap_points: float = 2.0
    usual_images: int | None = 600_000
    regions: float = 0.0
    learning_rate: float | None = None
    schedule: str = "three_step"

    def problems(self) -> list[str]:
        """Return what is out of range, one line each."""
        problems = super().problems()
        if self.arm not in ARMS:
            problems.append(f'arm "{self.arm}"; expected {", ".join(ARMS)}')
        problems += [
            f"{name} is {getattr(self, name)}; expected at least 1"
            for name in ("inflation", "epochs")
            if getattr(self, name) < 1
        ]
        if not self.regions >= 0:
            problems.append(f"regions is {self.regions}; expected a weight of at least 0")
        if self.compare and self.arm != "hybrid":
            problems.append(f'compare trains all arms, and arm is "{self.arm}"; leave it at hybrid')
        if not self.gap_points >= 0:
            problems.append(f"gap_points is {self.gap_points}; expected at least 0")
        if self.usual_images is not None and self.usual_images < 1:
            problems.append(f"usual_images is {self.usual_images}; expected at least 1, or none")
        problems += head_problems(self)
        return problems

    def plan(self, steps: int, *, learning_rate: float) -> Plan:
        """Return what the training loop needs of this.

        Args:
            steps: optimizer steps.
            learning_rate: where the settings leave it to the architecture.
        """
        rate = learning_rate if self.learning_rate is None else self.learning_rate
        return Plan.of(self, steps=steps, learning_rate=rate)

    def augmentation(self) -> AugmentSettings:
        """Return the strengths of the augmentation."""
        if self.augment is not None:
            return self.augment
        return AugmentSettings(resized_crop=0.92, flip=0.5 * self.flip)


def real_share(collected: int, synthetic: int, *, inflation: int) -> float:
    """Return the share of collected images in a hybrid list, N n_r / (N n_r + n_s)."""
    return inflation * collected / (inflation * collected + synthetic)


class HybridDraws:
    """Which images a step sees: one list of all repeats, shuffled anew in every pass.

    Args:
        collected: places of the collected images, shape (n_r,).
        synthetic: places of the synthetic ones, shape (n_s,).
        inflation: how often each collected image stands in the list.
        batch: images per step.
        seed: of the order.
    """

    def __init__(
        self,
        collected: Indices,
        synthetic: Indices,
        *,
        inflation: int,
        batch: int,
        seed: int,
    ) -> None:
        self._places = np.concatenate([np.tile(collected, inflation), synthetic])
        self._passes = Passes(len(self._places), batch=batch, seed=seed)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def rows(self) -> Indices:
        """The images of the list, each once, shape (n_r + n_s,)."""
        return np.unique(self._places)

    def at(self, step: int) -> Indices:
        """Return places, shape (batch,)."""
        places: Indices = self._places[self._passes.at(step)]
        return places


def distill(
    teacher: Teacher,
    student: Student,
    transfer: TransferSet,
    settings: HiDFDSettings | None = None,
    *,
    workdir: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Distilled:
    """Train a copy of the student's backbone, with a projector, on one arm of the transfer set.

    Args:
        teacher: frozen; its classifier becomes the student's.
        student: gives the backbone; it is not changed. The trained student is another one, with
            projector and classifier unless its head is folded.
        transfer: collected and synthetic images; neither labels nor logits are trained on.
        settings: how to train.
        workdir: where the checkpoint lies. Called again after a kill, with the same arguments,
            training goes on and ends with the same result.
        seed: of everything that is drawn. Arms with the same seed hold out the same images.
        device: where to train.
        progress: called with (steps done, steps in all, the last metrics).

    Returns:
        The student, and among the documents what it was trained on (`hidfd.json`) and what of it
        is deployed (`deployment.json`); with `compare` also the arms (`comparison.json`).

    Raises:
        MethodError: classes differ, the teacher's classifier cannot be shared, the arm has no
            images or fewer collected ones than classes, or the loss is no longer finite.
    """
    settings = settings or HiDFDSettings()
    device = torch.device(device)
    check_fit(teacher, student, transfer)
    teacher.to(device).to(memory_format=torch.channels_last)
    trained_network = StudentParts(project(student, teacher, form=settings.projector, seed=seed))
    trained_network.to(device)
    real = is_real(transfer)
    train_on, held_out = split(transfer, settings.holdout, seed)
    collected, synthetic = train_on[real[train_on]], train_on[~real[train_on]]
    _check_arm(settings.arm, len(collected), len(synthetic), classes=len(teacher.classes))
    nobody = collected[:0]
    draws = HybridDraws(
        nobody if settings.arm == "synthetic" else collected,
        nobody if settings.arm == "collected" else synthetic,
        inflation=settings.inflation,
        batch=settings.batch,
        seed=seed,
    )
    per_pass = -(-(settings.inflation * len(collected) + len(synthetic)) // settings.batch)
    steps = settings.epochs * per_pass if settings.steps is None else settings.steps
    pool = Pool(transfer, device)
    generator = torch.Generator(device).manual_seed(seed)
    augment = Augment(settings.augmentation())
    ask = quick_answers(teacher, device)
    regions = _Regions(teacher, trained_network) if settings.regions else None
    risen = 0.0

    def pace(position: float) -> None:  # the clock's, where time is short
        nonlocal risen
        risen = min(1.0, position / (REGION_RISE * steps))

    def batch_loss(network: nn.Module, step: int) -> Tensor:
        images = augment(pool.images(draws.at(step)), generator=generator)
        images = images.contiguous(memory_format=torch.channels_last)
        if regions is not None:
            loss, term = regions.losses(images)
            return loss + settings.regions * risen * term
        parts: Parts = network(images)
        return feature_alignment(*match_maps(parts.projected, ask(images).final_map))

    judged = held_out[real[held_out]]
    if len(judged) < FEW_HELD_OUT:
        judged = held_out
    judge = judge_on(pool, judged, real, settings.batch)

    def judge_student(network: nn.Module) -> Judgement:
        assert isinstance(network, StudentParts)
        return judge(network.student)

    plan = settings.plan(steps, learning_rate=usual_rate(student.architecture))
    others = [arm for arm in ARMS if arm != settings.arm] if settings.compare else []
    parts = 1 + len(others) + (settings.head == "folded")
    trained = train(
        trained_network,
        batch_loss,
        judge_student,
        plan,
        generators={"batch": generator},
        folder=workdir,
        fingerprint=fingerprint(teacher, student, transfer, settings, seed),
        seed=seed,
        device=device,
        progress=portion(progress, 0, parts),
        pace=pace,
    )
    shown = {
        "schema_version": 1,
        "arm": settings.arm,
        "inflation": settings.inflation,
        "collected": len(collected),
        "synthetic": len(synthetic),
        "real_share": _arm_share(settings, len(collected), len(synthetic)),
        "steps": trained.steps,
        "judged_on": "collected images" if real[judged].all() else "collected and synthetic images",
        "data_reduction": _reduction(int(real.sum()), settings.usual_images),
    }
    documents = {DOCUMENT: shown}
    if others:
        rows = [_row(settings.arm, trained_network.student, trained.steps)]
        for place, arm in enumerate(others):
            other = distill(
                teacher,
                student,
                transfer,
                replace(settings, arm=arm, compare=False, head="projector"),
                workdir=workdir / arm,
                seed=seed,
                device=device,
                progress=portion(progress, 1 + place, parts),
            )
            rows.append(_row(arm, other.student, other.steps))
        documents[comparison.DOCUMENT] = _compared(rows, teacher, pool, judged, settings)
    return deploy(
        Distilled.of(trained_network.student, trained, held_out, documents=documents),
        student,
        Lesson(pool, draws.rows, draws.at, judge, len(judged)),
        settings,
        plan=plan,
        workdir=workdir,
        seed=seed,
        device=device,
        progress=portion(progress, parts - 1, parts),
    )


def _row(arm: Arm, student: Student, steps: int) -> comparison.Row:
    what = {
        "synthetic": "the GAN's images alone",
        "collected": "the collected images alone",
        "hybrid": "both, collected images repeated",
    }
    return comparison.Row(arm, what[arm], student, steps)


def _compared(
    rows: Sequence[comparison.Row],
    teacher: Teacher,
    pool: Pool,
    judged: Indices,
    settings: HiDFDSettings,
) -> dict[str, Any]:
    """Return the arms, in their own order, with the gate to a larger stage."""
    from hydistill_edge.methods.staged_gate import staged_gate  # which names the arms

    ordered = sorted(rows, key=lambda row: ARMS.index(row.name))
    told = comparison.compare(ordered, teacher, pool, judged, batch=settings.batch)
    gate = staged_gate(
        {row["name"]: row["agreement"] for row in told["rows"]},
        teacher=1.0,
        gap_points=settings.gap_points,
    )
    return {"of": "arms", **told, "gate": gate.to_dict()}


def _reduction(collected: int, usual: int | None) -> dict[str, Any] | None:
    """Return what share of the usual number of real images was needed."""
    from hydistill_edge.methods.staged_gate import data_reduction

    if usual is None or collected == 0:
        return None
    share = data_reduction(collected, usual=usual)
    return {"collected": collected, "usual": usual, "share": share}


def usual_rate(architecture: str) -> float:
    """Return the published learning rate of an architecture."""
    return 0.01 if any(name in architecture for name in _SLOW) else 0.05


class _Regions:
    """Alignment together with the activation-region terms, in one pass of each network.

    Args:
        teacher: frozen.
        network: the student, not compiled: its stages are read by hooks.
    """

    def __init__(self, teacher: Teacher, network: StudentParts) -> None:
        self._teacher, self._network = teacher, network
        student = network.student
        with eval_mode(student.network):
            example = probe_input(student.network, channels=student.channels, size=student.size)
            taps = list_taps(student.network, example)
        own = [tap for tap in taps if tap.name.removeprefix("network.").startswith("backbone.")]
        spec = teacher.spec
        example = probe_input(teacher.network, channels=spec.channels, size=spec.size)
        of_student, of_teacher = stage_taps(own), stage_taps(list_taps(teacher.network, example))
        depth = min(len(of_student), len(of_teacher))
        if depth == 0:
            raise MethodError(
                "student or teacher has no feature map before the last one that could be compared "
                "by regions; set regions to 0"
            )
        # Counted from the end: the last ones are those that mean the same.
        self.student_taps, self.teacher_taps = of_student[-depth:], of_teacher[-depth:]

    def losses(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return alignment and region terms, each a scalar, for images in [0, 1]."""
        network = self._network.student.network
        with reading(network, outputs=self.student_taps) as found:
            parts: Parts = self._network(images)
        # The teacher's weights are frozen, so its maps have a gradient through the images only.
        answer = self._teacher.features(images.detach().requires_grad_(), self.teacher_taps)
        classes = answer.logits.detach().argmax(dim=1)
        own = [found.outputs[name] for name in self.student_taps]
        theirs = [answer.taps[name] for name in self.teacher_taps]
        assert self._teacher.classifier is not None
        weight = self._teacher.classifier.weight
        cam = region_difference(
            class_activation_maps(parts.projected, weight),
            class_activation_maps(answer.final_map.detach(), weight),
        )
        stages = region_consistency(
            grad_cam(parts.logits, own, classes=classes),
            [stage.detach() for stage in grad_cam(answer.logits, theirs, classes=classes)],
        )
        aligned = feature_alignment(*match_maps(parts.projected, answer.final_map.detach()))
        return aligned, cam + stages


def stage_taps(taps: Sequence[Tap]) -> tuple[str, ...]:
    """Return the last tap of every size of map but the last size, in order of execution.

    Args:
        taps: in order of execution; those that are overwritten, or of single pixels, do not count.
    """
    maps = [tap for tap in taps if len(tap.shape) == 3 and tap.shape[1] * tap.shape[2] > 1]
    last = {tap.shape[1:]: tap.name for tap in maps if not tap.overwritten}
    final = maps[-1].shape[1:] if maps else ()
    return tuple(name for size, name in last.items() if size != final)


def _arm_share(settings: HiDFDSettings, collected: int, synthetic: int) -> float:
    if settings.arm != "hybrid":
        return float(settings.arm == "collected")
    return real_share(collected, synthetic, inflation=settings.inflation)


def _check_arm(arm: Arm, collected: int, synthetic: int, *, classes: int) -> None:
    if arm != "synthetic" and collected < classes:
        raise MethodError(
            f"the transfer set has {collected} collected images to train on, for {classes} "
            "classes; expected at least one per class: add a source of real images, or use method "
            "kd"
        )
    if arm != "collected" and synthetic == 0:
        raise MethodError(
            "the transfer set has no synthetic image to train on; make some "
            "(images.synthetic.count), or train the arm collected"
        )
