"""How the GAN is trained: one place for every weight and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hydistill_edge.errors import UsageError
from hydistill_edge.objectives.frequency import Weighting
from hydistill_edge.training.precision import Precision

Trunk = Literal["own", "teacher"]


@dataclass(frozen=True)
class GanSettings:
    """How the GAN is trained; the defaults are the published ones.

    Attributes:
        epochs: passes over the collected images, where `iterations` is None.
        iterations: steps of both networks.
        batch: images per step; fewer where fewer were collected.
        learning_rate: of Adam, for both networks, constant.
        adc: weight of the auxiliary discriminative classifier, in both networks.
        transfer: weight of each image's own teacher features, in the discriminator.
        blend: weight of the crossed ones.
        frequency: weight of category frequency smoothing, in the generator.
        weighting: `effective` number of samples, or `inverse` counts.
        beta: of the effective number.
        refresh: iterations between refreshes of the category weights; None for as many as make
            100 images per class.
        statistics: weight of matching the teacher's features per class in mean and deviation; a
            regulariser of our own, 0 for none.
        ema: share of the averaged generator that each step keeps.
        ema_start: iteration from which it is an average; an exact copy before.
        width: channels at multiplier 1; None for 64, and less below 32 px.
        trunk: the discriminator's body: its `own`, or the frozen `teacher` with one linear layer,
            which is an ablation.
        records: entries of the history.
        precision: `auto`, `float32` or `bf16`.
        checkpoint_seconds: wall time between checkpoints.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    epochs: int = 400
    iterations: int | None = None
    batch: int = 100
    learning_rate: float = 2e-4
    adc: float = 1.0
    transfer: float = 0.1
    blend: float = 0.1
    frequency: float = 0.1
    weighting: Weighting = "effective"
    beta: float = 0.99
    refresh: int | None = None
    statistics: float = 0.0
    ema: float = 0.9999
    ema_start: int = 1000
    width: int | None = None
    trunk: Trunk = "own"
    records: int = 20
    precision: Precision = "float32"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        problems = []
        for name in ("epochs", "iterations", "refresh", "width", "records"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} is {value}; expected at least 1")
        if self.batch < 2:
            problems.append(f"batch is {self.batch}; expected at least 2 (batch norm)")
        if not self.learning_rate > 0:
            problems.append(f"learning_rate is {self.learning_rate}; expected more than 0")
        problems += [
            f"{name} is {getattr(self, name)}; expected a weight of at least 0"
            for name in ("adc", "transfer", "blend", "frequency", "statistics")
            if getattr(self, name) < 0
        ]
        problems += [
            f"{name} is {getattr(self, name)}; expected at least 0, below 1"
            for name in ("ema", "beta")
            if not 0 <= getattr(self, name) < 1
        ]
        if self.trunk not in get_args(Trunk):
            problems.append(f'trunk "{self.trunk}"; expected "own" or "teacher"')
        if self.weighting not in ("effective", "inverse"):
            problems.append(f'weighting "{self.weighting}"; expected "effective" or "inverse"')
        if problems:
            raise UsageError("gan settings: " + "; ".join(problems))

    def refresh_every(self, classes: int, batch: int) -> int:
        """Return the iterations between two refreshes of the category weights."""
        return self.refresh or max(1, round(100 * classes / batch))
