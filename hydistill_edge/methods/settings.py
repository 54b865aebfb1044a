"""What the settings of all methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydistill_edge.errors import UsageError
from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.training.loop import Plan
from hydistill_edge.training.optimizers import OptimizerName
from hydistill_edge.training.precision import Precision

_UNTIL_TOLD: dict[str, Any] = {"steps": 1, "learning_rate": 0.1, "schedule": "one_cycle"}
"""What stands for the part of a plan that a method decides later, while the rest is checked."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained; each method has the defaults that were published for it.

    Attributes:
        batch: images per step.
        optimizer: `sgd` (Nesterov), `adamw` or `lion`.
        learning_rate: peak of the schedule.
        schedule: `one_cycle`, `cosine`, `multi_step`, `three_step` (a tenth of the rate from 62.5,
            75 and 87.5 % of the steps on), `warm_cosine` or `periodic`.
        weight_decay: of weights; biases and norms have none.
        flip: mirror half of the images. Wrong where left and right differ in meaning, as in
            digits and text.
        augment: strengths in full; None for those of the method, and `flip`.
        ema_share: an averaged student reaches back over this share of all steps; 0 for none.
        holdout: share of the images that chooses the weights; never trained on.
        evaluations: how often the hold-out is asked.
        max_seconds: wall time after which training ends, its schedule compressed; None for none.
        precision: `auto`, `float32` or `bf16`.
        checkpoint_seconds: wall time between checkpoints.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    batch: int = 64
    optimizer: OptimizerName = "sgd"
    learning_rate: float | None = 0.05
    schedule: str | None = "three_step"
    weight_decay: float = 5e-4
    flip: bool = True
    augment: AugmentSettings | None = None
    ema_share: float = 0.0
    holdout: float = 0.1
    evaluations: int = 20
    max_seconds: float | None = None
    precision: Precision = "auto"
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            method = type(self).__module__.rpartition(".")[2]  # settings stand beside their method
            raise UsageError(f"{method} settings: " + "; ".join(problems))

    def problems(self) -> list[str]:
        """Return what is out of range, one line each."""
        problems = []
        if self.batch < 2:
            problems.append(
                f"batch is {self.batch}; expected at least 2 (BatchNorm needs a spread)"
            )
        if not 0 < self.holdout < 1:
            problems.append(f"holdout is {self.holdout}; expected a share between 0 and 1")
        later = {
            name: value for name, value in _UNTIL_TOLD.items() if getattr(self, name, None) is None
        }
        try:
            Plan.of(self, **later)
        except UsageError as error:
            problems.append(str(error).removeprefix("training plan: "))
        return problems
