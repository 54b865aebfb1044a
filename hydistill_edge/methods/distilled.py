"""What every method hands back, and what it checks before it starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hydistill_edge.errors import MethodError
from hydistill_edge.images.transfer_set import Indices, TransferSet
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.training.loop import Progress, Trained


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
        documents: what else the method has to say, by file name; plain values that JSON knows.
        networks: further ones that are worth keeping beside the student, by folder name.
    """

    student: Student
    history: list[dict[str, float]]
    holdout_agreement: float
    holdout_rows: Indices
    steps: int
    best_step: int
    resumed_at: int
    seconds: float
    documents: Mapping[str, Any] = field(default_factory=dict)
    networks: Mapping[str, Student] = field(default_factory=dict)

    @staticmethod
    def of(
        student: Student,
        trained: Trained,
        held_out: Indices,
        *,
        documents: Mapping[str, Any] | None = None,
        networks: Mapping[str, Student] | None = None,
    ) -> Distilled:
        """Return what a method hands back after its training.

        Args:
            student: with the weights that the training kept.
            trained: what the training loop returned.
            held_out: places in the transfer set that it was judged on.
            documents: see the attribute.
            networks: see the attribute.
        """
        return Distilled(
            student=student,
            history=trained.history,
            holdout_agreement=trained.best.metrics["holdout_agreement"],
            holdout_rows=held_out,
            steps=trained.steps,
            best_step=trained.best_step,
            resumed_at=trained.resumed_at,
            seconds=trained.seconds,
            documents=documents or {},
            networks=networks or {},
        )


def check_fit(teacher: Teacher, student: Student, transfer: TransferSet) -> None:
    """Refuse a teacher, a student and a transfer set that do not belong together.

    Raises:
        MethodError: their classes differ, or the set was made with another teacher.
    """
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


def fingerprint(
    teacher: Teacher, student: Student, transfer: TransferSet, settings: Any, seed: int
) -> str:
    """Return a digest of all that the result depends on; the student's as it starts.

    Args:
        teacher: frozen.
        student: before training.
        transfer: the images.
        settings: a dataclass of plain values.
        seed: of everything that is drawn.
    """
    values = {
        "settings": [type(settings).__name__, asdict(settings)],
        "seed": seed,
        "teacher": teacher.digest,
        "transfer": transfer.digest,
        "student": student.digest,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_SHARES = 1000


def portion(progress: Progress | None, place: int, parts: int) -> Progress | None:
    """Return the progress of one of several trainings, each of which counts as much.

    Args:
        progress: of all of them.
        place: of this one, from 0.
        parts: how many there are; one keeps its own steps.
    """
    if progress is None or parts == 1:
        return progress

    def report(done: int, total: int, metrics: Mapping[str, float]) -> None:
        progress(int(_SHARES * (place + done / total) / parts), _SHARES, metrics)

    return report
