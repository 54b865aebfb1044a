"""The training loop, killed and resumed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.training.loop import CHECKPOINT_FILE, Judgement, Plan, Progress, Trained, train

PLAN = Plan(
    steps=12, learning_rate=0.05, evaluations=4, checkpoint_seconds=0.0, precision="float32"
)


class KilledError(Exception):
    """Stands for kill -9: nothing in the loop may catch it."""


@dataclass
class Task:
    """A tiny network with BatchNorm and dropout that learns the sign of a noisy sum.

    Its second convolution has several channels in and out, so that the order of its weights in
    memory (channels_last) matters.
    """

    die_at: int = -1
    nan_at: int = -1
    margin: float = 0.0
    losses: list[float] = field(default_factory=list)
    network: nn.Module = field(init=False)
    noise: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(
                *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
                *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
                *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 2)),
            )
        self.noise = torch.Generator().manual_seed(1)

    def batch_loss(self, network: nn.Module, step: int) -> Tensor:
        if step == self.die_at:
            raise KilledError
        images = torch.randn(8, 1, 4, 4, generator=self.noise)
        loss = F.cross_entropy(network(images), (images.sum(dim=(1, 2, 3)) > 0).long())
        self.losses.append(loss.item())
        return loss * float("nan") if step == self.nan_at else loss

    def to_values(self) -> dict[str, list[float]]:
        return {"losses": self.losses}

    def restore(self, values: Mapping[str, Any]) -> None:
        self.losses = list(values["losses"])

    def judge(self, network: nn.Module) -> Judgement:
        images = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            right = network(images).argmax(dim=1) == (images.sum(dim=(1, 2, 3)) > 0)
        accuracy = right.float().mean().item()
        return Judgement(accuracy, {"accuracy": accuracy}, margin=self.margin)


def run(
    task: Task,
    folder: Path | None = None,
    plan: Plan = PLAN,
    *,
    fingerprint: str = "same",
    progress: Progress | None = None,
) -> Trained:
    return train(
        task.network,
        task.batch_loss,
        task.judge,
        plan,
        generators={"noise": task.noise},
        folder=folder,
        fingerprint=fingerprint,
        seed=5,
        device=torch.device("cpu"),
        progress=progress,
        memory=task,
    )


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lion"])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 11])
def test_result_is_the_same_when_run_is_killed_and_resumed(
    tmp_path: Path, step: int, optimizer: str
) -> None:
    plan = replace(PLAN, optimizer=optimizer)  # type: ignore[arg-type]
    whole, killed, resumed = Task(), Task(die_at=step), Task()
    expected = run(whole, tmp_path / "whole", plan)
    with pytest.raises(KilledError):
        run(killed, tmp_path / "cut", plan)
    outcome = run(resumed, tmp_path / "cut", plan)
    assert outcome.resumed_at == step
    assert without_seconds(outcome.history) == without_seconds(expected.history)
    assert_same_weights(whole.network, resumed.network)
    assert resumed.losses == whole.losses


def test_finished_training_is_not_repeated_when_it_is_run_again(tmp_path: Path) -> None:
    first, second = Task(), Task(die_at=0)
    expected = run(first, tmp_path)
    again = run(second, tmp_path)
    assert (again.resumed_at, again.best_step) == (12, expected.best_step)
    assert_same_weights(first.network, second.network)


def test_training_begins_anew_when_checkpoint_is_of_another_training(tmp_path: Path) -> None:
    run(Task(), tmp_path)
    assert run(Task(), tmp_path, fingerprint="other").resumed_at == 0


def test_network_ends_with_the_best_weights_in_eval_mode() -> None:
    task = Task()
    trained = run(task, plan=replace(PLAN, steps=40))
    assert not task.network.training
    assert task.judge(task.network).score == trained.best.score
    assert trained.best.score == max(entry["accuracy"] for entry in trained.history)


def test_last_weights_are_kept_when_no_earlier_ones_are_clearly_better() -> None:
    trained = run(Task(margin=1.0), plan=replace(PLAN, steps=40))
    assert trained.best_step == 40


def test_loss_falls_when_training_goes_on() -> None:
    history = run(Task(), plan=replace(PLAN, steps=240)).history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    run(Task())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("step", [0, 5])
def test_error_names_the_step_when_loss_is_nan(tmp_path: Path, step: int) -> None:
    with pytest.raises(MethodError, match=rf"step {step + 1} .*learning rate"):
        run(Task(nan_at=step), tmp_path)


def test_last_good_checkpoint_stays_when_loss_is_nan(tmp_path: Path) -> None:
    with pytest.raises(MethodError):
        run(Task(nan_at=5), tmp_path)
    assert (tmp_path / CHECKPOINT_FILE).exists()
    assert run(Task(), tmp_path).resumed_at == 5


def test_training_ends_near_its_limit_when_time_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = itertools.count()
    # A clock that moves by 10 ms whenever it is looked at: a loaded machine changes nothing.
    monkeypatch.setattr("hydistill_edge.training.loop.time.monotonic", lambda: 0.01 * next(looks))

    trained = run(Task(), plan=replace(PLAN, steps=10**7, evaluations=10**6, max_seconds=1.0))

    assert 1.0 <= trained.seconds < 1.1
    assert trained.history[-2]["lr"] < 0.5 * max(entry["lr"] for entry in trained.history)


def test_progress_ends_with_the_total() -> None:
    seen: list[tuple[int, int]] = []

    def note(done: int, total: int, metrics: Mapping[str, float]) -> None:
        seen.append((done, total))

    run(Task(), progress=note)
    assert seen[-1] == (12, 12)


def test_nothing_is_written_when_no_folder_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Task())
    assert list(tmp_path.iterdir()) == []


def test_plan_lists_every_problem_when_values_are_out_of_range() -> None:
    with pytest.raises(UsageError, match=r"(?s)steps is 0.*learning_rate is -1.*linear.*ema_share"):
        Plan(steps=0, learning_rate=-1, schedule="linear", ema_share=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_decay": -1e-4},
        {"weight_decay": math.nan},
        {"momentum": 1.0},
        {"gradient_clip": 0.0},
        {"gradient_clip": math.nan},
    ],
    ids=["negative", "nan", "momentum", "no gradient", "nan gradient"],
)
def test_plan_refuses_what_an_optimizer_would_refuse_in_the_middle_of_a_build(
    wrong: dict[str, float],
) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} is .*expected"):
        replace(PLAN, **wrong)


@pytest.mark.parametrize(("clip", "longest"), [(None, math.inf), (1e6, math.inf), (0.01, 0.01)])
def test_a_step_goes_by_no_more_than_the_clipped_gradient(
    clip: float | None, longest: float
) -> None:
    task = Task()
    plan = replace(
        PLAN, steps=1, evaluations=1, ema_share=0.0, weight_decay=0.0, gradient_clip=clip
    )

    def weights() -> Tensor:
        return torch.cat([weight.detach().flatten() for weight in task.network.parameters()])

    before = weights()
    train(
        task.network, task.batch_loss, task.judge, plan,
        generators={"noise": task.noise}, folder=None, fingerprint="same", seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    moved = weights() - before
    # Nesterov's first step is the rate times 1.9 gradients.
    length = float(moved.norm()) / (1.9 * plan.learning_rate)
    assert 0 < length <= 1.001 * longest
    if clip != longest:
        assert length > 0.05  # the gradient as it is


def test_position_decides_rate_judgements_and_end(tmp_path: Path) -> None:
    # Each step counts three of the twelve: four steps in all, judged at the half and at the end.
    task, plan = Task(), replace(PLAN, evaluations=2, schedule="multi_step")
    trained = train(
        task.network, task.batch_loss, task.judge, plan,
        generators={"noise": task.noise}, folder=tmp_path, fingerprint="same", seed=0,
        device=torch.device("cpu"), position=lambda step: 3.0 * step,
    )  # fmt: skip
    assert trained.steps == 4
    assert [entry["step"] for entry in trained.history] == [2, 4]
    assert [entry["lr"] for entry in trained.history] == pytest.approx([0.05, 0.0005])


def test_pace_is_told_where_training_stands_before_every_step() -> None:
    task, told = Task(), []
    position = [0.0, 3.0, 6.0, 9.0, 12.0].__getitem__
    outcome = train(
        task.network,
        task.batch_loss,
        task.judge,
        PLAN,
        generators={},
        folder=None,
        fingerprint="",
        seed=0,
        device=torch.device("cpu"),
        position=position,
        pace=told.append,
    )
    assert told == [0.0, 3.0, 6.0, 9.0]
    assert outcome.steps == len(told)


def test_plan_takes_what_settings_name_alike() -> None:
    @dataclass(frozen=True)
    class Settings:
        steps: int | None = None
        learning_rate: float = 0.3
        schedule: str = "cosine"
        batch: int = 8

    plan = Plan.of(Settings(), steps=7)

    assert plan == Plan(steps=7, learning_rate=0.3, schedule="cosine")
