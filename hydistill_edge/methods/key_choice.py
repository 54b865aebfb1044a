"""Which teacher layers are kept while a student trains: running influences, threshold, freezing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hydistill_edge.models.taps import check_taps
from hydistill_edge.objectives.keys import largest_channels, representative


class KeyChoice:
    """Keeps all keys at first, then those above the threshold, chosen anew each epoch, then frozen.

    An influence of one batch flickers, so running means are compared. All of it can be saved and
    restored, as `training.loop.Memory`.

    Args:
        names: of the teacher's layers.
        factor: of the threshold over the mean influence; 0 keeps all.
        channel_share: of each kept layer's channels; 1 for all.
        momentum: of the running means.
        fixed: names of layers that are kept from the first step on; empty to choose.
        shuffled_by: seed of an order from which as many keys are taken as reach the threshold,
            instead of those that do; None for those that do.
        first_step: of the steps before it, all keys are kept.
        frozen_step: from it on the choice stays.
        steps: of the training.
        epochs: parts of the training; the choice is made where one ends.

    Attributes:
        names: as given.
        factor: as given.
        kept: places of the keys that are kept now, in order.
        channels: per layer, places of the channels that count; None for all.
        threshold: that the last choice was made with; None before.
        scores: running influences, shape (T,); None before the first step.
        weights: running mean of the attention, shape (rows, columns); None before the first step.
        history: one entry per epoch: `epoch`, `step`, `influences`, `threshold`, `chosen`.

    Raises:
        UsageError: a fixed key of another name.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        factor: float,
        channel_share: float,
        momentum: float,
        fixed: Sequence[str],
        shuffled_by: int | None,
        first_step: int,
        frozen_step: int,
        steps: int,
        epochs: int,
    ) -> None:
        check_taps(fixed, names)
        self.names = tuple(names)
        self.factor = factor
        self.kept = tuple(place for place, name in enumerate(names) if not fixed or name in fixed)
        self.channels: list[Tensor | None] = [None] * len(names)
        self.threshold: float | None = None
        self.scores: Tensor | None = None
        self.weights: Tensor | None = None
        self.history: list[dict[str, Any]] = []
        self._squares: list[Tensor] = []
        self._share = channel_share
        self._momentum = momentum
        self._fixed = bool(fixed)
        self._order: list[int] | None = None
        if shuffled_by is not None:
            self._order = (
                np.random.default_rng([shuffled_by, len(names)]).permutation(len(names)).tolist()
            )
        self._first, self._frozen = first_step, frozen_step
        self._steps, self._epochs = steps, epochs

    def turn(self, step: int) -> None:
        """Note the epoch that a step has ended, and choose anew where that is due."""
        epoch = step * self._epochs // self._steps
        if step == 0 or epoch == (step - 1) * self._epochs // self._steps:
            return
        self.history.append(self.entry(step))
        if self._first <= step < self._frozen:
            self._choose()

    def note(self, scores: Tensor | None, attention: Tensor, features: Sequence[Tensor]) -> None:
        """Move the running means by one batch.

        Args:
            scores: influences, shape (T,); None where they are not defined.
            attention: shape (N, rows, columns).
            features: T feature maps (N, C_t, H_t, W_t), for the choice of channels.
        """
        self.weights = self._moved(self.weights, attention.detach().mean(dim=0))
        if scores is not None:
            self.scores = self._moved(self.scores, scores)
        if self._share < 1:
            squares = [maps.detach().float().square().mean(dim=(0, 2, 3)) for maps in features]
            before: Sequence[Tensor | None] = self._squares or [None] * len(squares)
            self._squares = [
                self._moved(old, new) for old, new in zip(before, squares, strict=True)
            ]

    def entry(self, step: int) -> dict[str, Any]:
        """Return the state after some steps, as plain values."""
        return {
            "epoch": step * self._epochs // self._steps,
            "step": step,
            "influences": None if self.scores is None else self.scores.tolist(),
            "threshold": self.threshold,
            "chosen": list(self.kept),
        }

    def to_values(self) -> dict[str, Any]:
        """Return all that changes, as plain values; float32 survives them exactly."""
        return {
            "kept": list(self.kept),
            "channels": [None if places is None else places.tolist() for places in self.channels],
            "threshold": self.threshold,
            "scores": None if self.scores is None else self.scores.tolist(),
            "weights": None if self.weights is None else self.weights.tolist(),
            "squares": [squares.tolist() for squares in self._squares],
            "history": self.history,
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take over what `to_values` returned."""
        self.kept = tuple(values["kept"])
        self.channels = [
            None if places is None else torch.tensor(places) for places in values["channels"]
        ]
        self.threshold = values["threshold"]
        self.scores = None if values["scores"] is None else torch.tensor(values["scores"])
        self.weights = None if values["weights"] is None else torch.tensor(values["weights"])
        self._squares = [torch.tensor(squares) for squares in values["squares"]]
        self.history = list(values["history"])

    def _choose(self) -> None:
        if self.scores is not None and not self._fixed:
            kept, self.threshold = representative(self.scores.tolist(), factor=self.factor)
            if self._order is not None:
                kept = tuple(sorted(self._order[: len(kept)]))
            self.kept = kept
        if self._squares:
            self.channels = [
                largest_channels(squares, share=self._share) for squares in self._squares
            ]

    def _moved(self, before: Tensor | None, now: Tensor) -> Tensor:
        if before is None:
            return now
        return self._momentum * before.to(now.device) + (1.0 - self._momentum) * now
