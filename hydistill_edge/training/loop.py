"""The training loop: plain steps, one after another, that can be killed and resumed.

A method hands over two functions: one that draws a batch and returns its loss, and one that judges
the averaged network on images held out. All the rest of training stands here, in `train`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hydistill_edge.training.compiling import quick_convolutions
from hydistill_edge.training.ema import Ema, decay_for
from hydistill_edge.training.optimizers import (
    OptimizerName,
    create_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from hydistill_edge.training.precision import Precision, autocast
from hydistill_edge.training.schedules import SCHEDULES

CHECKPOINT_FILE = "checkpoint.safetensors"

Progress = Callable[[int, int, Mapping[str, float]], None]
"""`progress(done, total, metrics)`, called now and then."""

BatchLoss = Callable[[nn.Module, int], Tensor]
"""`batch_loss(network, step)` draws the batch of a step and returns its loss, shape ()."""


class Memory(Protocol):
    """What a method keeps from step to step beside weights, such as running means of its own."""

    def to_values(self) -> Mapping[str, Any]:
        """Return all of it as plain values that JSON knows; called when a checkpoint is written."""

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take over what `to_values` returned; called before the first step."""


@dataclass(frozen=True)
class Judgement:
    """How good a network is on images held out.

    The latest network whose score is within its margin of the highest is kept: trained longest,
    at the lowest rate, it is the better guess where a small hold-out cannot tell two apart.

    Attributes:
        score: higher is better.
        metrics: for the history, by name.
        margin: by how much a score may lie below another one by chance, at least 0.
    """

    score: float
    metrics: Mapping[str, float]
    margin: float = 0.0


@dataclass(frozen=True)
class Plan:
    """How long and how to train.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak of the schedule.
        schedule: a name of `SCHEDULES`.
        optimizer: `sgd` (Nesterov), `adamw` or `lion`.
        momentum: see `create_optimizer`.
        weight_decay: see `create_optimizer`.
        gradient_clip: norm of all gradients together that a step goes by at most; None for any.
        ema_share: the averaged network reaches back over this share of all steps; 0 for none.
        evaluations: how often the averaged network is judged, evenly spread; the last step is.
        max_seconds: wall time after which training ends; the schedule is compressed to end there,
            so that the rate has fallen by then. None for no limit. A run with a limit that was
            reached cannot be repeated exactly.
        checkpoint_seconds: wall time between checkpoints; 0 for one at every step.
        precision: `auto`, `float32` or `bf16`.
        compile: use `torch.compile` on a GPU.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    steps: int
    learning_rate: float
    schedule: str = "one_cycle"
    optimizer: OptimizerName = "sgd"
    momentum: float | None = None
    weight_decay: float = 5e-4
    gradient_clip: float | None = None
    ema_share: float = 0.02
    evaluations: int = 20
    max_seconds: float | None = None
    checkpoint_seconds: float = 30.0
    precision: Precision = "auto"
    compile: bool = True

    @staticmethod
    def of(settings: Any, **given: Any) -> Plan:
        """Return the plan in a method's settings: all that both name alike.

        Args:
            settings: a dataclass.
            given: what the settings do not say, or not in this form; it wins.
        """
        named = {field.name for field in fields(Plan)} & {field.name for field in fields(settings)}
        return Plan(**{name: getattr(settings, name) for name in named} | given)

    def __post_init__(self) -> None:
        problems = []
        if self.steps < 1:
            problems.append(f"steps is {self.steps}; expected at least 1")
        if not 0 < self.learning_rate < math.inf:
            problems.append(f"learning_rate is {self.learning_rate}; expected more than 0")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            problems.append(f"momentum is {self.momentum}; expected a share in [0, 1) or none")
        if not 0 <= self.weight_decay < math.inf:
            problems.append(f"weight_decay is {self.weight_decay}; expected at least 0")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            problems.append(f"gradient_clip is {self.gradient_clip}; expected more than 0 or none")
        if self.schedule not in SCHEDULES:
            problems.append(
                f'schedule "{self.schedule}" is unknown; expected {", ".join(SCHEDULES)}'
            )
        if not 0 <= self.ema_share < 1:
            problems.append(f"ema_share is {self.ema_share}; expected a share in [0, 1)")
        if self.evaluations < 1:
            problems.append(f"evaluations is {self.evaluations}; expected at least 1")
        if self.max_seconds is not None and not self.max_seconds > 0:
            problems.append(f"max_seconds is {self.max_seconds}; expected more than 0 or none")
        if problems:
            raise UsageError("training plan: " + "; ".join(problems))


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Attributes:
        best: the judgement of the averaged network that was kept; the network now has its weights.
        best_step: steps done when it was judged.
        steps: steps done in all.
        history: one entry per judgement: `step`, `lr`, `loss` (mean since the last entry),
            `seconds`, and the metrics.
        resumed_at: step at which this call went on, 0 if it began anew.
        seconds: wall time of training, interrupted parts included.
    """

    best: Judgement
    best_step: int
    steps: int
    history: list[dict[str, float]]
    resumed_at: int
    seconds: float


def train(
    network: nn.Module,
    batch_loss: BatchLoss,
    judge: Callable[[nn.Module], Judgement],
    plan: Plan,
    *,
    generators: Mapping[str, torch.Generator],
    folder: Path | None,
    fingerprint: str,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
    memory: Memory | None = None,
    position: Callable[[int], float] = float,
    pace: Callable[[float], None] | None = None,
) -> Trained:
    """Train a network in place; it ends with the best averaged weights.

    Args:
        network: all of its parameters that require gradients are trained. A method with modules
            that only training needs hands over one module that holds them and the student.
        batch_loss: called in train mode under autocast, once per step.
        judge: called with the averaged network in eval mode.
        plan: how long and how.
        generators: every generator that `batch_loss` draws from; their states are saved.
        folder: where the checkpoint lies; None for none.
        fingerprint: digest of everything else that the result depends on (settings, data, teacher).
            A checkpoint with another one is of another training: it is replaced.
        seed: of what layers draw themselves (dropout). The global generators are left as they were.
        device: where to train; the network is moved there.
        progress: called about a hundred times.
        memory: what `batch_loss` keeps from step to step; saved and restored with the rest.
        position: how far training is, out of `plan.steps`, after so many steps; rises, and decides
            rate, judgements and end. For epochs whose length is not known beforehand.
        pace: told before each step how far training is, out of `plan.steps`: by its position, or by
            the clock where that is ahead. For what a method changes along the schedule.

    Raises:
        MethodError: the loss is no longer finite.
        RunDirectoryError: the checkpoint is damaged.
        NoSpaceError: the disk is full.
    """
    network.to(device).to(memory_format=torch.channels_last).train()
    ema = Ema(network, decay=decay_for(steps=plan.steps, share=plan.ema_share))
    optimizer = create_optimizer(
        plan.optimizer,
        network,
        learning_rate=plan.learning_rate,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
    )
    fast = network
    if plan.compile and device.type == "cuda":
        fast = cast(nn.Module, torch.compile(network))
    schedule = SCHEDULES[plan.schedule]
    judge_every = max(1, plan.steps // plan.evaluations)
    report_every = max(1, plan.steps // 100)
    with _own_randomness(seed, device), quick_convolutions(device):
        run = _Run(network, ema, optimizer, generators, device, fingerprint, memory)
        if folder is not None:
            run.restore(folder / CHECKPOINT_FILE)
        resumed_at = run.step
        clock = _Clock(run.seconds)
        saved_at = clock.seconds

        while True:
            before = position(run.step)
            now = _timed(before, clock.seconds, plan)
            if now >= plan.steps:
                break
            rate = schedule(now, total=plan.steps, peak=plan.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if pace is not None:
                pace(now)
            with autocast(device, plan.precision):
                loss = batch_loss(fast, run.step)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            if plan.gradient_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), plan.gradient_clip)
            optimizer.step()
            ema.update()
            run.step += 1
            run.loss_sum += loss.detach().double()
            after = position(run.step)
            report = after // report_every > before // report_every

            # Reading the loss waits for a GPU; a CPU has it at hand.
            if device.type == "cpu" or report:
                _check_finite(run.loss_sum, run.step, rate)
            if after // judge_every > before // judge_every:
                run.judged(judge(ema.network), rate=rate, seconds=clock.seconds)
            if folder is not None and clock.seconds - saved_at >= plan.checkpoint_seconds:
                _check_finite(run.loss_sum, run.step, rate)
                run.save(folder / CHECKPOINT_FILE, seconds=clock.seconds)
                saved_at = clock.seconds
            if progress is not None and report:
                progress(int(after), plan.steps, run.latest())

        if run.judged_at != run.step:
            _check_finite(run.loss_sum, run.step, 0.0)
            run.judged(judge(ema.network), rate=0.0, seconds=clock.seconds)
        if folder is not None:
            run.save(folder / CHECKPOINT_FILE, seconds=clock.seconds)
    network.load_state_dict(run.best_weights)
    network.eval()
    return Trained(
        best=run.best,
        best_step=run.best_step,
        steps=run.step,
        history=run.history,
        resumed_at=resumed_at,
        seconds=clock.seconds,
    )


class _Run:
    """Everything that changes from step to step, and its way to the checkpoint and back."""

    def __init__(
        self,
        network: nn.Module,
        ema: Ema,
        optimizer: torch.optim.Optimizer,
        generators: Mapping[str, torch.Generator],
        device: torch.device,
        fingerprint: str,
        memory: Memory | None,
    ) -> None:
        self._network = network
        self._ema = ema
        self._optimizer = optimizer
        self._generators = generators
        self._device = device
        self._fingerprint = fingerprint
        self._memory = memory
        self.step = 0
        self.seconds = 0.0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.judged_at = 0
        self.history: list[dict[str, float]] = []
        self.highest = -math.inf
        self.best = Judgement(-math.inf, {})
        self.best_step = 0
        self.best_weights: dict[str, Tensor] = {}

    def judged(self, judgement: Judgement, *, rate: float, seconds: float) -> None:
        """Note a judgement, and keep the weights unless earlier ones were clearly better."""
        loss = self.loss_sum.item() / (self.step - self.judged_at)
        entry = {"step": float(self.step), "lr": rate, "loss": loss, "seconds": seconds}
        self.history.append({**entry, **judgement.metrics})
        self.loss_sum.zero_()
        self.judged_at = self.step
        self.highest = max(self.highest, judgement.score)
        if judgement.score >= self.highest - judgement.margin:
            self.best, self.best_step = judgement, self.step
            self.best_weights = {
                name: tensor.clone() for name, tensor in self._ema.network.state_dict().items()
            }

    def latest(self) -> dict[str, float]:
        """Return the last history entry, empty before the first."""
        return self.history[-1] if self.history else {}

    def save(self, path: Path, *, seconds: float) -> None:
        """Write the checkpoint."""
        tensors = {"random.cpu": torch.get_rng_state(), "loss_sum": self.loss_sum}
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        for prefix, group in (
            ("network", self._network.state_dict()),
            ("ema", self._ema.network.state_dict()),
            ("best", self.best_weights),
            ("generator", {name: g.get_state() for name, g in self._generators.items()}),
            ("optimizer", optimizer_tensors(self._optimizer)),
        ):
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in group.items()}
        values = {
            "fingerprint": self._fingerprint,
            "step": self.step,
            "seconds": seconds,
            "judged_at": self.judged_at,
            "ema_updates": self._ema.updates,
            "history": self.history,
            "highest": self.highest if self.best_weights else None,
            "best": asdict(self.best) if self.best_weights else None,
            "best_step": self.best_step,
            "memory": None if self._memory is None else dict(self._memory.to_values()),
        }
        write_checkpoint(path, Checkpoint(tensors, values))

    def restore(self, path: Path) -> None:
        """Go on from the checkpoint, if there is one and it is of this training."""
        checkpoint = read_checkpoint(path)
        if checkpoint is None or checkpoint.values["fingerprint"] != self._fingerprint:
            return
        values = checkpoint.values
        self._network.load_state_dict(checkpoint.group("network"))
        self._ema.network.load_state_dict(checkpoint.group("ema"))
        self._ema.updates = values["ema_updates"]
        load_optimizer_tensors(self._optimizer, checkpoint.group("optimizer"))
        for name, generator in self._generators.items():
            generator.set_state(checkpoint.tensors[f"generator.{name}"])
        torch.set_rng_state(checkpoint.tensors["random.cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.tensors["random.cuda"], self._device)
        self.step, self.seconds = values["step"], values["seconds"]
        self.loss_sum.copy_(checkpoint.tensors["loss_sum"])
        self.judged_at = values["judged_at"]
        self.history = values["history"]
        if self._memory is not None:
            self._memory.restore(values["memory"])
        if values["best"] is not None:
            self.highest, self.best = values["highest"], Judgement(**values["best"])
            self.best_step = values["best_step"]
            self.best_weights = checkpoint.group("best")


class _Clock:
    """Seconds of training, those of earlier calls included."""

    def __init__(self, before: float) -> None:
        self._start = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


def _timed(position: float, seconds: float, plan: Plan) -> float:
    """Return where on the schedule a step stands, by its position or by the time used up."""
    if plan.max_seconds is None:
        return position
    return max(position, plan.steps * seconds / plan.max_seconds)


def _check_finite(loss_sum: Tensor, step: int, rate: float) -> None:
    if not math.isfinite(loss_sum.item()):
        raise MethodError(
            f"training diverged: the loss is no longer finite at step {step} (learning rate "
            f"{rate:.3g}); expected finite numbers: lower the learning rate, or look for NaN in "
            "the teacher's logits and the images"
        )


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Let layers that draw from the global generators (dropout) draw from ours for a while."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield
