"""Epochs that begin by selecting: which images of a pool each training step sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from hydistill_edge.images.selection import (
    Rows,
    Scores,
    Selection,
    class_thresholds,
    score_pool,
    select,
)
from hydistill_edge.images.selection_record import SelectionRecord, source_of
from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.methods.pool import Pool
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import eval_mode

if TYPE_CHECKING:
    from hydistill_edge.methods.kd3 import KD3Settings


class Epochs:
    """Which images each step sees: one selection per epoch, in shuffled batches.

    It is the loop's `Memory`: a resumed run goes on within its epoch, with the same selection.

    Args:
        transfer: the whole set.
        pool: its images and logits on the device.
        rows: places that may be selected.
        network: what is trained; in eval mode while the student scores.
        student: scores the pool as it is at the beginning of an epoch.
        settings: how to select.
        seed: of the order.
        folder: where the selections are kept.
        accepted: places that are selected in any case.

    Attributes:
        nominal: steps of an epoch if everything were selected.
    """

    def __init__(
        self,
        transfer: TransferSet,
        pool: Pool,
        rows: Rows,
        network: nn.Module,
        student: Student,
        settings: KD3Settings,
        seed: int,
        *,
        folder: Path,
        accepted: Rows,
    ) -> None:
        self._transfer = transfer
        self._pool = pool
        self._rows = np.sort(rows)
        self._network = network
        self._student = student
        self._settings = settings
        self._seed = seed
        self._accepted = accepted
        self._ids = transfer.ids.take(self._rows)
        self._record = SelectionRecord(
            folder, self._rows, class_names=transfer.classes, groups=source_of(self._ids)
        )
        self.nominal = settings.steps_per_epoch or max(1, -(-len(rows) // settings.batch))
        self._epoch = 0
        self._first = 0
        self._batches: list[Rows] = []

    def position(self, step: int) -> float:
        """Return how far training is, on a scale on which every epoch has `nominal` steps."""
        done, length = step - self._first, len(self._batches)
        if done == length:
            return float(self._epoch * self.nominal)
        return (self._epoch - 1 + done / length) * self.nominal

    def rows_at(self, step: int) -> Rows:
        """Return the places in the transfer set that a step sees; an epoch begins by selecting."""
        if step - self._first == len(self._batches):
            self._record.keep_to(self._epoch)
            self._epoch, self._first = self._epoch + 1, step
            selection, scores = self._select()
            self._record.write(self._epoch, selection, scores)
            self._batches = self._shuffled(selection.rows)
        return self._batches[step - self._first]

    def to_values(self) -> Mapping[str, Any]:
        """Return where training is; the selections themselves lie in the record."""
        return {"epoch": self._epoch, "first_step": self._first}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on within an epoch."""
        self._epoch, self._first = values["epoch"], values["first_step"]
        if self._epoch:
            self._batches = self._shuffled(self._record.rows(self._epoch))

    def last_rows(self) -> Rows:
        """Return the places that the last epoch selected."""
        return self._record.rows(self._epoch)

    def audit(self) -> dict[str, Any]:
        """Return what was selected, when and why."""
        return self._record.audit(self._ids)

    def _select(self) -> tuple[Selection, Scores]:
        settings = self._settings
        if settings.selection == "all":
            return self._everything()
        with eval_mode(self._network):
            scores = score_pool(
                self._pool.batches(self._rows, settings.batch),
                student=self._student,
                share=settings.teacher_share(self._epoch),
                classes=len(self._transfer.classes),
                combine=settings.combine,
            )
        selection = select(
            scores,
            threshold=settings.threshold,
            minimum=2 * settings.batch,
            fallback_share=settings.fallback_share,
            accepted=self._accepted,
            class_names=self._transfer.classes,
        )
        if settings.selection == "random":
            selection = self._random(selection, scores)
        return selection, scores

    def _everything(self) -> tuple[Selection, Scores]:
        """Return the whole pool; scores are the teacher's stored ones."""
        transfer, rows = self._transfer, self._rows
        scores = Scores(
            rows,
            transfer.confidences[rows],
            transfer.pseudo_labels[rows],
            np.zeros(len(rows), np.float32),
            share=1.0,
            class_count=len(transfer.classes),
        )
        predicted = np.bincount(scores.classes, minlength=scores.class_count)
        ratios, _ = class_thresholds(predicted)
        note = "selection is off: every image of the pool is taken"
        return Selection(
            rows, predicted, ratios, np.zeros(len(ratios)), predicted, 1.0, notes=(note,)
        ), scores

    def _random(self, selection: Selection, scores: Scores) -> Selection:
        """Return as many images as were selected, drawn from the whole pool."""
        choice = np.random.default_rng([self._seed, 1, self._epoch])
        places = np.sort(choice.choice(len(scores), len(selection), replace=False))
        return Selection(
            scores.rows[places],
            selection.predicted,
            selection.ratios,
            selection.thresholds,
            np.bincount(scores.classes[places], minlength=scores.class_count),
            selection.share,
            notes=(*selection.notes, "random: as many images as pass, whichever"),
        )

    def _shuffled(self, rows: Rows) -> list[Rows]:
        """Cut the selection into batches: one pass, or passes up to the asked number of steps."""
        batch, wanted = self._settings.batch, self._settings.steps_per_epoch
        choice = np.random.default_rng([self._seed, 0, self._epoch])
        order = choice.permutation(rows)
        if wanted is None:
            cuts = list(range(batch, len(order), batch))
            if cuts and len(order) - cuts[-1] == 1:
                cuts.pop()
            return np.split(order, cuts)
        while len(order) < wanted * batch:
            order = np.concatenate([order, choice.permutation(rows)])
        return [order[start : start + batch] for start in range(0, wanted * batch, batch)]
