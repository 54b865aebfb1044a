"""What is deployed of a student that answers through its teacher's classifier, and at what price.

Such a student is a backbone, a projector and the classifier, and the projector can be larger than
all the rest. Three ways lead to a smaller one:

- a lighter projector (`training.projector`), which is trained in the place of the published one;
- `head: folded`: a last distillation, in which the backbone's own head learns the logits that
  projector and classifier give. What is deployed then is the plain network of the zoo.

The fold begins with the trained backbone and a head that is fitted to those logits by least squares
(ridge regression), and then trains the whole plain network on them, softened, at a tenth of the
rate. `deployment.json` tells parameters, MACs and agreement on the hold-out before and after, and
how large other projectors would be.

Source: the fold is our own; its loss is that of method kd. The projector is SimKD's (Chen et al.
2022, arXiv:2203.14001), where projector and classifier are always deployed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.errors import MethodError
from hydistill_edge.images.augment import Augment, AugmentSettings
from hydistill_edge.images.transfer_set import Indices
from hydistill_edge.methods.distilled import Distilled
from hydistill_edge.methods.pool import Pool
from hydistill_edge.models.projected import projected_network, unproject, with_projector
from hydistill_edge.models.projector import ProjectorForm
from hydistill_edge.models.student import Student
from hydistill_edge.objectives.logits import kd_kl
from hydistill_edge.training.loop import Judgement, Plan, Progress, train

Head = Literal["projector", "folded"]

DOCUMENT = "deployment.json"
"""What is deployed and what it costs, among the documents."""

FORMS = (
    ProjectorForm(),
    ProjectorForm(factor=4),
    ProjectorForm(kind="depthwise"),
    ProjectorForm(factor=4, kind="depthwise"),
    ProjectorForm(kind="pointwise"),
)
"""Projectors whose size is told, the published one first."""

RIDGE = 1e-3
"""Weight of the fitted head's size, over the mean variance of what it sees."""

FITTED_IMAGES = 20_000
"""Images at most that the head is fitted to: it has a few hundred columns."""

RATE_SHARE = 0.1
"""Of the method's learning rate: the backbone is trained already."""

_FOLDER = "fold"


class Deployable(Protocol):
    """What the settings of a method with a projector have in common."""

    @property
    def head(self) -> Head:
        """What makes the logits of the deployed student."""
        ...

    @property
    def fold_steps(self) -> int:
        """Optimizer steps of the fold; 0 fits the head alone."""
        ...

    def augmentation(self) -> AugmentSettings:
        """Return the strengths of the views."""
        ...


@dataclass(frozen=True)
class Lesson:
    """What a fold is taught with.

    Attributes:
        pool: the transfer set.
        rows: places that were trained on.
        draw: what the method's own training saw: places of a step, shape (batch,).
        judge: compares a network with the teacher on images held out.
        judged: how many these are.
    """

    pool: Pool
    rows: Indices
    draw: Callable[[int], Indices]
    judge: Callable[[nn.Module], Judgement]
    judged: int


def head_problems(settings: Deployable) -> list[str]:
    """Return what is out of range in a method's settings, one line each."""
    problems = []
    if settings.head not in get_args(Head):
        problems.append(f'head "{settings.head}"; expected {", ".join(get_args(Head))}')
    if settings.fold_steps < 0:
        problems.append(f"fold_steps is {settings.fold_steps}; expected at least 0")
    return problems


def deploy(
    found: Distilled,
    plain: Student,
    lesson: Lesson,
    settings: Deployable,
    *,
    plan: Plan,
    workdir: Path,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Distilled:
    """Fold the head where the settings ask for it, and tell what is deployed.

    Args:
        found: of the method's training; its student has a projector.
        plain: the student as it was handed over, untrained.
        lesson: what to fold with.
        settings: of the method.
        plan: of the method's training; precision, weight decay and the like are taken over.
        workdir: the method's; the fold's checkpoint lies in a folder of it.
        seed: of everything that is drawn.
        device: where to train.
        progress: called with (steps done, steps in all, the last metrics).

    Returns:
        The student to deploy, with `deployment.json` among the documents.

    Raises:
        MethodError: the plain student has no linear layer to fold into.
    """
    projected = found.student
    told: dict[str, Any] = {
        "schema_version": 1,
        "head": settings.head,
        "judged_images": lesson.judged,
        "before": _told(projected, found.holdout_agreement) | part_sizes(projected),
        "after": None,
        "fold": None,
        "projectors": projector_sizes(projected),
    }
    if settings.head == "folded":
        shorter = None
        if settings.fold_steps:
            shorter = replace(
                plan,
                steps=settings.fold_steps,
                learning_rate=RATE_SHARE * plan.learning_rate,
                schedule="cosine",
                max_seconds=None,
            )
        folded, facts = fold(
            projected.to(device),
            plain,
            lesson,
            shorter,
            augment=settings.augmentation(),
            workdir=workdir / _FOLDER,
            seed=seed,
            device=device,
            progress=progress,
        )
        told |= {"after": _told(folded, facts["holdout_agreement"]), "fold": facts}
        found = replace(found, student=folded, holdout_agreement=facts["holdout_agreement"])
    return replace(found, documents={**found.documents, DOCUMENT: told})


def fold(
    projected: Student,
    plain: Student,
    lesson: Lesson,
    plan: Plan | None,
    *,
    augment: AugmentSettings,
    workdir: Path,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[Student, dict[str, Any]]:
    """Return the plain network that answers like a projected student, and how near it came.

    Args:
        projected: trained; the teacher of this step.
        plain: gives the architecture; it is not changed.
        lesson: what to fold with.
        plan: of the training; None to fit the head alone.
        augment: strengths of the views.
        workdir: where the checkpoint lies.
        seed: of everything that is drawn.
        device: where to train.
        progress: called with (steps done, steps in all, the last metrics).

    Returns:
        The student in eval mode; and `steps`, `fitted_agreement` (of the fitted head alone),
        `trained_agreement`, `kept` (which of both) and `holdout_agreement`.

    Raises:
        MethodError: the plain student has no linear layer to fold into.
    """
    folded = fit_head(projected, plain, lesson)
    fitted = lesson.judge(folded)
    facts: dict[str, Any] = {
        "steps": 0 if plan is None else plan.steps,
        "fitted_agreement": fitted.score,
        "trained_agreement": None,
        "kept": "fitted",
        "holdout_agreement": fitted.score,
    }
    if plan is None:
        return folded, facts
    trained_student = copy.deepcopy(folded)
    generator = torch.Generator(device).manual_seed(seed)
    views = Augment(augment)

    def batch_loss(network: nn.Module, step: int) -> Tensor:
        images = views(lesson.pool.images(lesson.draw(step)), generator=generator)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = projected(images)
        logits: Tensor = network(images)
        return kd_kl(logits, wanted)

    trained = train(
        trained_student,
        batch_loss,
        lesson.judge,
        plan,
        generators={"views": generator},
        folder=workdir,
        fingerprint=f"fold-{projected.digest}-{folded.digest}-{plan}-{augment}-{seed}",
        seed=seed,
        device=device,
        progress=progress,
    )
    facts["trained_agreement"] = trained.best.score
    if trained.best.score < fitted.score - fitted.margin:
        return folded, facts
    facts |= {"kept": "trained", "holdout_agreement": trained.best.score}
    return trained_student.eval(), facts


@torch.no_grad()
def fit_head(projected: Student, plain: Student, lesson: Lesson) -> Student:
    """Return the plain network with the trained backbone and a head fitted to the logits.

    Ridge regression of the projected student's logits on what the plain network's last linear
    layer sees, solved in float64 over images as they are, without augmentation.

    Raises:
        MethodError: no linear layer makes the plain network's logits.
    """
    folded = unproject(projected, plain).eval()
    name = folded.anatomy().classifier
    if name is None:
        raise MethodError(
            f"a folded head is a linear layer, and none makes the logits of {plain.architecture}; "
            "set head to projector, or take another student"
        )
    projected.eval()
    rows = lesson.rows
    if len(rows) > FITTED_IMAGES:
        rows = rows[np.linspace(0, len(rows) - 1, FITTED_IMAGES).astype(np.int64)]
    seen, wanted = [], []
    for start in range(0, len(rows), 256):
        images = lesson.pool.images(rows[start : start + 256])
        seen.append(folded.features(images).penultimate.double().cpu().numpy())
        wanted.append(projected(images).double().cpu().numpy())
    head = folded.network.get_submodule(name)
    assert isinstance(head, nn.Linear)
    offset: Tensor | None = head.bias
    weight, bias = ridge(np.concatenate(seen), np.concatenate(wanted), bias=offset is not None)
    head.weight.copy_(torch.from_numpy(weight))
    if offset is not None:
        offset.copy_(torch.from_numpy(bias))
    return folded


def ridge(
    seen: NDArray[np.float64],
    wanted: NDArray[np.float64],
    *,
    strength: float = RIDGE,
    bias: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight (C, D) and bias (C,) of the linear map from rows (N, D) to rows (N, C).

    Args:
        seen: inputs.
        wanted: outputs.
        strength: weight of the map's squared size, over the mean variance of the inputs.
        bias: False for a map through the origin.
    """
    middle, level = bias * seen.mean(axis=0), bias * wanted.mean(axis=0)
    inputs = seen - middle
    gram = inputs.T @ inputs
    # Where nothing varies there is nothing to tell apart, and any positive number will do.
    size = strength * max(float(np.trace(gram)) / len(gram), 1e-12)
    solved = np.linalg.solve(gram + size * np.eye(len(gram)), inputs.T @ (wanted - level))
    weight: NDArray[np.float64] = solved.T
    return weight, level - weight @ middle


def part_sizes(student: Student) -> dict[str, int]:
    """Return the parameters of a projected student's parts."""
    network = projected_network(student)
    return {
        f"{name}_params": sum(p.numel() for p in part.parameters())
        for name, part in (
            ("backbone", network.backbone),
            ("projector", network.projector),
            ("classifier", network.classifier),
        )
    }


def projector_sizes(projected: Student) -> list[dict[str, Any]]:
    """Return parameters and MACs of a projected student with lighter and heavier projectors.

    The one that was trained is among them, and marked.
    """
    used = form_of(projected)
    rows = []
    for form in FORMS if used in FORMS else (*FORMS, used):
        size = with_projector(projected, form).count()
        row = {**asdict(form), "params": size.params, "macs": size.macs, "used": form == used}
        rows.append(row)
    return rows


def form_of(projected: Student) -> ProjectorForm:
    """Return how heavy a projected student's projector is."""
    return ProjectorForm(int(projected.options["factor"]), projected.options["kind"])


def _told(student: Student, agreement: float) -> dict[str, Any]:
    size = student.count()
    return {
        "architecture": student.architecture,
        "params": size.params,
        "macs": size.macs,
        "holdout_agreement": agreement,
    }
